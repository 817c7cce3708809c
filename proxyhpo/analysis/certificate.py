"""The certificate of a stand-in: how far a few configurations, run on both, say to trust it.

Scores are accuracies (fractions) or a user's own, higher is better. Few configurations bound
hardly anything; the certificate says so, and how many would settle it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from proxyhpo.analysis.bootstrap import LEVEL, rho
from proxyhpo.analysis.cost import break_even, saving

CONFIGURATIONS, AGAIN = 4, 1
"""Configurations that run on both, and how many of them N_B trains once more, by default."""
TRUSTED = 0.5
"""Rank correlation above which a stand-in is used without more ado."""
HALF_POINT = 0.005
"""Accuracy that may be lost and counts as equal."""
_CLOSE_TO_ONE = 0.98
_QUANTILE = float(stats.norm.ppf((1 + LEVEL) / 2))


@dataclass(frozen=True)
class Certificate:
    """What a few configurations on a stand-in and on N_B say.

    Attributes:
        stand_in: what was compared with N_B.
        base, other: scores of the same configurations on N_B and on the stand-in, ``(n,)``.
        again: pairs of scores of one configuration on N_B, from two weight seeds.
        share: the time of a trial on the stand-in by one on N_B, measured.
        trials: of the search.
        accuracy: whether scores are accuracies, so that half a point counts as equal.
    """

    stand_in: str
    base: tuple[float, ...]
    other: tuple[float, ...]
    again: tuple[tuple[float, float], ...]
    share: float
    trials: int
    accuracy: bool = True

    @property
    def n(self) -> int:
        """Configurations that ran on both."""
        return len(self.base)

    @property
    def noise(self) -> float:
        """Standard deviation of N_B's score between weight seeds; NaN where none was reseeded."""
        pairs = np.asarray(self.again, float)
        return float(np.sqrt(np.mean(np.diff(pairs) ** 2) / 2)) if len(pairs) else math.nan

    @property
    def rho(self) -> tuple[float, float, float]:
        """Spearman's rho with its interval, by Fisher's z.

        NOTE: the variance is that of Bonett and Wright (2000), (1 + rho^2 / 2) / (n - 3). With 3
        configurations or fewer there is no interval, with 4 it reaches nearly from -1 to 1.
        """
        if self.n < 2:
            return math.nan, -1.0, 1.0
        estimate = float(rho(np.array(self.base), np.array(self.other), np.ones((1, self.n)))[0])
        if self.n < 4 or math.isnan(estimate):
            return estimate, -1.0, 1.0
        half = _QUANTILE * math.sqrt((1 + estimate**2 / 2) / (self.n - 3))
        return estimate, math.tanh(_z(estimate) - half), math.tanh(_z(estimate) + half)

    @property
    def bounded(self) -> bool:
        """Whether the configurations suffice to say anything of rho."""
        _, low, high = self.rho
        return high - low <= 1

    @property
    def ceiling(self) -> float:
        """The correlation that N_B reseeded would reach with itself on these configurations."""
        spread = float(np.var(self.base, ddof=1)) if self.n > 1 else math.nan
        return max(0.0, 1 - self.noise**2 / spread) if spread > 0 else math.nan

    @property
    def _apart(self) -> float:
        """Standard deviation of a difference of two scores on N_B, as far as it is known."""
        return 0.0 if math.isnan(self.noise) else self.noise * math.sqrt(2)

    @property
    def equal(self) -> float:
        """Differences of scores on N_B up to this count as none."""
        return max(self._apart, HALF_POINT if self.accuracy else 0.0)

    @property
    def regret(self) -> tuple[float, float, float]:
        """What N_B loses with the stand-in's best of these, with the noise's interval.

        By Student's t, as the noise is estimated from hardly more than one pair; without one, no
        loss is beyond it.
        """
        lost = max(self.base) - self.base[int(np.argmax(self.other))] if self.n else math.nan
        half = math.inf
        if self.again:
            half = float(stats.t.ppf((1 + LEVEL) / 2, len(self.again))) * self._apart
        return lost, max(0.0, lost - half), lost + half

    @property
    def place(self) -> int:
        """The stand-in's rank of the first configuration that is as good as N_B's best of them."""
        order = np.argsort(-np.array(self.other), kind="stable")
        good = np.array(self.base)[order] >= max(self.base) - self.equal
        return int(np.argmax(good)) + 1

    @property
    def verify(self) -> int:
        """How many of the search's best to train on N_B: the share that held N_B's best here."""
        return max(1, math.ceil(self.place * self.trials / self.n)) if self.n else self.trials

    @property
    def saved(self) -> float:
        """Share of the time of a search on N_B alone that is saved, all its trainings included.

        At the least: the certificate's own may be among the k.
        """
        return float(saving(self.trials, self.verify + self.n + len(self.again), self.share))

    @property
    def worth(self) -> bool:
        """Whether the rest of the search takes less time on the stand-in than on N_B."""
        left = self.trials - self.n
        return left > 0 and float(saving(left, self.verify, self.share)) > 0

    @property
    def enough(self) -> int:
        """Configurations that would bound rho above :data:`TRUSTED`, if it is as estimated."""
        estimate = self.rho[0]
        if math.isnan(estimate) or estimate <= TRUSTED:
            return 0
        apart = (_z(estimate) - math.atanh(TRUSTED)) / _QUANTILE
        return max(5, math.ceil(3 + (1 + estimate**2 / 2) / apart**2))

    @property
    def verdict(self) -> str:
        """What follows: "use it", "verify k = n", or "don't"."""
        contradicted = self.n > 2 and self.rho[0] <= 0 and self.regret[1] > 0
        if not self.n or contradicted or not self.worth:
            return "don't"
        trusted = self.rho[1] >= TRUSTED and self.place == 1
        return "use it" if trusted else f"verify k = {self.verify}"

    @property
    def change(self) -> str:
        """What would change the verdict."""
        if not self.n:
            return "configurations that train to the end on both"
        if not self.worth:
            return (
                f"a stand-in that takes less than {self.share:.0%} of the time, or more trials than"
                f" {self.trials}: as it is, nothing is saved"
            )
        if self.verdict == "use it":
            return "a search space with other hyperparameters, or another network"
        if self.verdict == "don't":
            return "another stand-in: this one's order contradicts the network's beyond its noise"
        if self.enough:
            return f"about {max(self.enough, self.n + 1)} configurations on both, if rho is as seen"
        return "a higher rho; as it is, no number of configurations would settle it"

    @property
    def agreement(self) -> str:
        """Rho with its interval in words: "rho 0.80 (0.35 to 0.95)"."""
        value, low, high = self.rho
        if math.isnan(value):
            return "rho unknown, scores are alike" if self.n > 1 else "rho unknown"
        interval = f"{low:.2f} to {high:.2f}" if self.bounded else "not bounded"
        return f"rho {value:.2f} ({interval})"

    def __str__(self) -> str:
        lost, least, most = (100 * v if self.accuracy else v for v in self.regret)
        unit = " points" if self.accuracy else ""
        ceiling = "unknown" if math.isnan(self.ceiling) else f"{self.ceiling:.2f}"
        return (
            f"certificate of {self.stand_in}: {self.verdict}\n"
            f"  {self.n} configurations on both: {self.agreement}, noise ceiling {ceiling}, "
            f"its best loses {lost:.2g}{unit} ({least:.2g} to {most:.2g})\n"
            f"  a trial takes {self.share:.0%} of the network's time; with k = {self.verify}"
            f" the search takes at most {1 - self.saved:.0%} of one on the network alone\n"
            f"  what would change it: {self.change}"
        )


def certificate(
    stand_in: str,
    pairs: Sequence[tuple[float, float]],
    again: Sequence[tuple[float, float]],
    share: float,
    trials: int,
    *,
    accuracy: bool = True,
) -> Certificate:
    """Return the certificate of ``pairs`` (score on N_B, on the stand-in); those with NaN go."""
    known = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    base, other = (tuple(column) for column in zip(*known, strict=True)) if known else ((), ())
    both = tuple((x, y) for x, y in again if math.isfinite(x) and math.isfinite(y))
    return Certificate(stand_in, base, other, both, share, trials, accuracy)


def affordable(trials: int, share: float, again: int = AGAIN) -> bool:
    """Return whether a search of so many ``trials`` can earn a certificate back.

    ``share`` is what a trial on the stand-in costs by one on N_B. It can if it takes no more time
    than a search on N_B alone with :data:`CONFIGURATIONS` run on both, ``again`` of them once more,
    and one verification, the fewest there are.
    """
    return trials >= break_even(CONFIGURATIONS + again + 1, share) - 1e-9  # 6 / (1 - 3 / 9) is 9


def _z(value: float) -> float:
    return math.atanh(max(-_CLOSE_TO_ONE, min(_CLOSE_TO_ONE, value)))
