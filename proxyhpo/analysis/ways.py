"""Ways of tuning, replayed on a recorded table: what each would answer, and at which cost.

A *way* is a search that may be stopped at any budget: a study on N_B or on a stand-in with its k
best verified on N_B, or a ladder of views.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from proxyhpo.analysis.ranking import seen, view_cost
from proxyhpo.hpo.curves import Table
from proxyhpo.hpo.ladder import LADDERS, RIVALS, Ladder, View, promote
from proxyhpo.hpo.replay import Recorded, Trial, replay_study

Steps = Iterator[tuple[float, int]]
"""What a way would answer, at ever larger budgets: (cost in trainings of N_B, configuration)."""
Way = Callable[[Table, int], Steps]


@dataclass(frozen=True)
class StudyWay:
    """A study by an Optuna sampler, and verification of its k best on N_B.

    It has as many trials as a full search on N_B, or with ``same_time`` as many as the time of one
    has room for, at most all of the grid, but no fewer than a full search has, which may take
    longer.
    """

    sampler: str
    stand_in: str = "base"
    verify: int = 0
    trial_pruner: str = "none"
    same_time: bool = False

    def trials(self, table: Table) -> int:
        """Return how many trials its study has on ``table``."""
        if not self.same_time:
            return table.trials
        every = len(table.regime.configurations)
        if self.stand_in == "base":  # it stops some, nobody knows how many
            return every
        room = (table.trials - self.verify) / table.share(self.stand_in)
        return min(every, max(table.trials, int(room)))

    def studied(self, table: Table) -> tuple[str, str, str, int]:
        """Return what decides its studies on ``table``: ways with the same differ in verifying."""
        return self.stand_in, self.sampler, self.trial_pruner, self.trials(table)

    def __call__(self, table: Table, seed: int) -> Steps:
        """Yield what it would answer if it were ended after each trial."""
        trials = _trials(table, *self.studied(table), seed)
        oracle = Recorded(table, "base", seed)
        spent, found = table.costs[self.stand_in].build / table.whole, []
        checks = table.verification.final.mean(1) if table.verification is not None else None
        for trial in trials:
            spent += float(table.seconds(self.stand_in, trial.epochs)) / table.whole
            spent += trial.sampler_seconds / table.whole
            if trial.state == "complete":
                found.append((trial.accuracy, oracle.place(trial.configuration)))
            best = list(dict.fromkeys(c for _, c in sorted(found, key=lambda pair: -pair[0])))
            if best and self.verify:
                assert checks is not None
                top = best[: self.verify]
                yield spent + len(top), max(top, key=lambda c: checks[c])
            elif best:
                yield spent, best[0]


@lru_cache(maxsize=1)
def _trials(
    table: Table, stand_in: str, sampler: str, trial_pruner: str, trials: int, seed: int
) -> tuple[Trial, ...]:
    """Return a study's trials, kept for the ways that share it, which are asked one by one."""
    return replay_study(
        table, stand_in=stand_in, sampler=sampler, trials=trials, trial_pruner=trial_pruner,
        seed=seed,
    ).trials  # fmt: skip


def study_way(stand_in: str, verify: int, sampler: str = "tpe", *, same_time: bool = False) -> str:
    """Return the name of a study's way: "tpe on N_B", "tpe on snip@0.25, 3 verified"."""
    on = "N_B" if stand_in == "base" else stand_in
    more = [SAME_TIME] * same_time + [f", {verify} verified"] * bool(verify)
    return f"{sampler} on {on}{''.join(more)}"


SAME_TIME = ", same time"
"""In the name of a way that has as many trials as the time of a full search has room for, but no
fewer than a full search has."""
NONE_TWICE = ", none twice"
"""In the name of a way that tries no configuration again: samplers do on a grid, ladders don't."""
WINS_ON = "epochs@0.3"
WINNER = study_way(WINS_ON, 0, same_time=True)
"""Chosen on the tables of :data:`DESIGNED_ON`: docs/method.md, "What is chosen on which table"."""
DESIGNED_ON = "cifar10"
"""The data set on whose tables ways are chosen; they are judged on the others."""
SYNE_TUNE, NEPS = "asha on N_B (syne-tune)", "priorband on N_B (neps)"
"""Rivals from outside, which ``benchmarks/rivals.py`` replays."""


def ways(table: Table) -> dict[str, Way]:
    """Return all ways that a table can replay, by name."""
    found: dict[str, Way] = {}
    stand_ins = table.stand_ins
    for sampler in ("random", "tpe", "cmaes"):
        found[study_way("base", 0, sampler)] = StudyWay(sampler)
        for name in stand_ins:
            found[study_way(name, 3, sampler)] = StudyWay(sampler, name, 3)
    for name in stand_ins:
        found[study_way(name, 0)] = StudyWay("tpe", name)
        for k in (0, 3):
            found[study_way(name, k, same_time=True)] = StudyWay("tpe", name, k, same_time=True)
    found[study_way("base", 0, "gp")] = StudyWay("gp")
    found["tpe on N_B, halving"] = StudyWay("tpe", trial_pruner="halving", same_time=True)
    found["hyperband on N_B"] = StudyWay("hyperband", same_time=True)
    found[study_way("base", 0, "random") + NONE_TWICE] = LadderWay(Ladder(("base",)))
    found["best after one epoch"] = LadderWay(LADDERS["best_k"])
    found["ladder"] = LadderWay(LADDERS["ladder"])
    for ladder in RIVALS:
        views = [View.of(name) for name in ladder.rungs]
        if all(
            view.stand_in in ("base", *stand_ins)
            and view.epochs < table.curves(view.stand_in).epochs
            for view in views
        ):
            name = f"ladder of {' and '.join(ladder.rungs)}, {100 * ladder.keep:.0f} % go on"
            found[name] = LadderWay(ladder)
    return found


@dataclass(frozen=True)
class LadderWay:
    """A ladder over configurations drawn at random, each once.

    A promoted configuration is trained anew, as by :func:`proxyhpo.tune`, and that is paid for.
    """

    ladder: Ladder

    def __call__(self, table: Table, seed: int) -> Steps:
        """Yield what ladders of ever more configurations would answer."""
        rng = np.random.default_rng([seed, 3])
        drawn = rng.permutation(len(table.regime.configurations))
        views = self.ladder.rungs
        trained = _trained(table, views, rng)
        entrants = {View.of(name).stand_in for name in views}
        build = sum(table.costs[name].build for name in entrants) / table.whole
        for width in range(1, len(drawn) + 1):
            on, spent = drawn[:width], build
            counts = [*self.ladder.counts(width), 1]
            for view, going in zip(views, counts[1:], strict=True):
                spent += len(on) * view_cost(table, view)
                on = on[promote(trained[view][on], going)]
            yield spent, int(on[0])


def _trained(table: Table, views: Sequence[str], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return one training of each configuration through each view, ``(C,)``.

    Views of one entrant are of other trainings each, as far as weight seeds are recorded.
    """
    first: dict[str, np.ndarray] = {}
    looks: Counter[str] = Counter()
    trained = {}
    for view in views:
        entrant, shown = View.of(view).stand_in, seen(table.curves, view)
        count, seeds = len(shown), shown.shape[1]
        if entrant not in first:
            first[entrant] = rng.integers(seeds, size=count)
        trained[view] = shown[np.arange(count), (first[entrant] + looks[entrant]) % seeds]
        looks[entrant] += 1
    return trained
