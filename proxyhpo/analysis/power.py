"""Recorded rows -> what they could have shown: the smallest differences that they would detect."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from proxyhpo.analysis.cost import CELL, CLOCKS, PAIR, STAND_IN, clock, speedup
from proxyhpo.analysis.quality import final_quality
from proxyhpo.analysis.ranking import CEILING, proxy_differences

POWER = 0.8
LEVEL = 0.05
COMPARED = {
    "rho": ("rho", ""),
    "rho_half": ("rho over the better half", ""),
    "regret1": ("regret@1", "points"),
}
FORMULA = "(t(0.975) + t(0.80)) x standard error, with n - 1 degrees of freedom"


def smallest_difference(error: float, n: int) -> float:
    """Return the difference that n items with standard error ``error`` detect with 80 % power.

    Two-sided at 5 %, :data:`FORMULA`: 2.8 standard errors for large n, 5.4 for n = 3 and 14 for
    n = 2. NaN below two items, and where all items are alike and nothing is known of their spread.
    """
    if n < 2 or not error > 0:
        return np.nan
    return float((stats.t.ppf(1 - LEVEL / 2, n - 1) + stats.t.ppf(POWER, n - 1)) * error)


def detectable(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what was compared, what was seen, and what would have been detected: one line each.

    ``quantity`` says what, in ``unit``; ``seen`` is the difference found, ``n`` the number of
    ``items`` (configurations, seeds, trials or trainings) that were resampled, ``se`` the standard
    error, ``detectable`` that of :func:`smallest_difference`. Nothing is corrected for the number
    of lines: with m comparisons more is needed.
    """
    lines = []
    for measure, (words, unit) in COMPARED.items():
        for one in proxy_differences(rows, measure).to_dict("records"):
            line = {name: one[name] for name in (*PAIR, *STAND_IN)} | {"sampler": ""}
            rival = "N_B reseeded" if one["against"] == CEILING else one["against"]
            line |= {"quantity": f"{words} less that of {rival}", "unit": unit}
            lines.append(line | _seen(one, "difference", "configurations"))
    unit = clock(rows) if len(rows) else "wall"
    speeds = speedup(rows, pool_seeds=True).to_dict("records")
    for one in (one for one in speeds if not one["note"].endswith("on N_P")):
        line = {name: one[name] for name in (*CELL, *STAND_IN)}
        line |= {"quantity": f"reduction of {CLOCKS[unit]} time, verified", "unit": "per cent"}
        lines.append(line | _seen(one, f"reduction_hpo_{unit}", one["interval"]))
    for one in final_quality(rows).to_dict("records"):
        if one["choice"] != "base":
            line = {name: one[name] for name in CELL} | {"proxy": "", "pruning_ratio": np.nan}
            choices = {"proxy": "the proxy's choice", "verified": "the verified choice"}
            line["quantity"] = f"test accuracy lost with {choices[one['choice']]}"
            lines.append(line | {"unit": "points"} | _seen(one, "regret", "trainings"))
    columns = [*CELL, *STAND_IN, "quantity", "unit", "seen", "items", "n", "se", "detectable"]
    return pd.DataFrame(lines, columns=columns)


def _seen(line: dict, name: str, items: str) -> dict[str, object]:
    error = line[f"{name}_se"]
    found = {"seen": line[name], "items": items, "n": line["n"], "se": error}
    return found | {"detectable": smallest_difference(error, line["n"])}
