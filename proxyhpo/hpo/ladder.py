"""Ladders: many configurations on the cheapest rung, fewer on the next, the last on N_B in full.

The rule by which configurations go on is here alone: what is tuned and what is replayed on a table
share it. Neither torch nor a storage is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from proxyhpo.config import InputError, check_share

SIGNALS = ("accuracy", "loss", "averaged")


@dataclass(frozen=True)
class View:
    """What a rung looks at.

    Attributes:
        stand_in: what is trained, "base" for N_B.
        epochs: after how many of them it looks; 0 is after the last.
        signal: what it looks at, one of :data:`SIGNALS`.
    """

    stand_in: str
    epochs: int = 0
    signal: str = "accuracy"

    @classmethod
    def of(cls, view: str) -> View:
        """Return the view of a name such as "base", "base:1" or "base:1 loss".

        Raises:
            InputError: no number of epochs behind the colon, or an unknown signal.
        """
        stand_in, colon, part = str(view).partition(":")
        if not colon:
            return cls(stand_in)
        epochs, _, signal = part.partition(" ")
        if not epochs.isdecimal() or int(epochs) < 1 or signal not in ("", *SIGNALS):
            raise InputError(
                f"rung {view!r}: a stand-in, or its first epochs as in 'base:1', "
                "'base:1 loss', 'base:1 averaged'"
            )
        return cls(stand_in, int(epochs), signal or "accuracy")


@dataclass(frozen=True)
class Ladder:
    """The settings of a ladder.

    Attributes:
        rungs: what configurations are seen through, the cheapest first; the last is "base".
        keep: the share of the configurations that goes on from each rung, at least one.
    """

    rungs: tuple[str, ...]
    keep: float = 1 / 3

    def __post_init__(self) -> None:
        if not self.rungs or self.rungs[-1] != "base":
            raise InputError(f"ladder {self.rungs!r}: rungs, of which the last is 'base'")
        for view in self.rungs:
            View.of(view)
        check_share("keep", self.keep, "the configurations")

    @property
    def by_score(self) -> Ladder:
        """The same where one score an epoch is all there is; the default one without averages.

        Raises:
            InputError: a rung looks at something else.
        """
        if self == LADDERS["ladder"]:
            return replace(self, rungs=("base:1", "base"))
        for rung in self.rungs:
            if (signal := View.of(rung).signal) != "accuracy":
                plain = rung.removesuffix(f" {signal}")
                raise InputError(
                    f"rung {rung!r}: your own training code reports a score, no {signal}; {plain!r}"
                )
        return self

    def counts(self, configurations: int) -> list[int]:
        """Return how many configurations each rung trains, if the first has so many."""
        counts = [configurations]
        for _ in self.rungs[1:]:
            counts.append(max(1, round(self.keep * counts[-1])))
        return counts


def promote(scores: Sequence[float] | np.ndarray, count: int) -> list[int]:
    """Return the places of the ``count`` highest scores, best first; ties go by place, NaN goes."""
    known = [place for place, score in enumerate(scores) if not math.isnan(score)]
    return sorted(known, key=lambda place: -scores[place])[:count]


LADDERS: dict[str, Ladder] = {
    # train all for one epoch, then the best in full (Egele et al., arXiv:2307.15422)
    "best_k": Ladder(("base:1", "base")),
    # the best of its kind after a quarter of a search's time on CIFAR-10, ResNet-20
    "ladder": Ladder(("base:1 averaged", "base"), keep=0.2),
}
"""The ladders of the methods of :func:`proxyhpo.tune` that have these names."""

_BOTH = "uniform@0.25+epochs@0.3"
RIVALS = (
    Ladder(("base:1", "base"), keep=0.2),
    Ladder(("base:1 loss", "base"), keep=0.2),
    Ladder((_BOTH, "base")),
    Ladder((_BOTH, "base"), keep=0.2),
    Ladder((_BOTH, "base:1", "base")),
    Ladder(("base:1", _BOTH, "base")),
    Ladder(("base:1", "base:3", "base")),
)
"""Ladders that theirs are raced against on the recorded tables."""
