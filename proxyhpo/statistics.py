"""Recorded rows -> tables: the door to all of them.

Pure functions of a frame of rows (:mod:`proxyhpo.results`); none changes its input. Intervals are
those of :mod:`proxyhpo.bootstrap`, in columns ``NAME_low`` and ``NAME_high``; ``n`` says how many
were resampled. What HPO cost: :mod:`proxyhpo.costs`; how far a stand-in ranks as N_B does:
:mod:`proxyhpo.trust`; what was found in the end, and by when: :mod:`proxyhpo.quality`; what these
rows could have shown: :mod:`proxyhpo.power`.
"""

from proxyhpo.costs import (
    CELL,
    CLOCKS,
    COSTS,
    EXPERIMENT,
    PAIR,
    SCOPES,
    STAND_IN,
    clock,
    cost,
    incumbent,
    ledger,
    machines,
    speedup,
    ways,
)
from proxyhpo.power import detectable
from proxyhpo.quality import at_equal_time, final_quality, rival_differences, rivals
from proxyhpo.trust import (
    BEST,
    CEILING,
    CONTROLS,
    frontier,
    is_control,
    learning_rate_shift,
    proxy_differences,
    rank_correlation,
    ranked,
)

__all__ = [
    "BEST",
    "CEILING",
    "CELL",
    "CLOCKS",
    "CONTROLS",
    "COSTS",
    "EXPERIMENT",
    "PAIR",
    "SCOPES",
    "STAND_IN",
    "at_equal_time",
    "clock",
    "cost",
    "detectable",
    "final_quality",
    "frontier",
    "incumbent",
    "is_control",
    "learning_rate_shift",
    "ledger",
    "machines",
    "proxy_differences",
    "rank_correlation",
    "ranked",
    "rival_differences",
    "rivals",
    "speedup",
    "ways",
]
