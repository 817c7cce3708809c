"""Tune a network of one's own: many configurations where it is cheap, the best on the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from torch import Tensor, nn

from proxyhpo.analysis.certificate import Certificate, certificate
from proxyhpo.config import InputError, choose, is_integer
from proxyhpo.data.given import Given, as_dataset
from proxyhpo.experiment.trial import Clock, Row, Workbench
from proxyhpo.hpo import storage as storages
from proxyhpo.hpo.ladder import Rung, promote
from proxyhpo.hpo.search import SPACES, Configuration, StudySettings, check_space
from proxyhpo.hpo.stand_ins import epochs_of
from proxyhpo.hpo.study import Claim, Study, work
from proxyhpo.progress import StudyProgress, duration
from proxyhpo.pruning.proxy import Proxy
from proxyhpo.rows import PARAMETER, as_frame, config_id
from proxyhpo.training import Outcome, check_configuration
from proxyhpo.tuning.bench import Objective, OwnBench, Task, builder, check_network
from proxyhpo.tuning.settings import AUTO, METHODS, Plan, Settings

BASE, NAN = "base", math.nan
ROWS = {"search": "study", "certificate": "verify", "verification": "verify"}
"""The purpose that rows have, by what the seconds were spent on."""


@dataclass(frozen=True)
class Tuned:
    """What came of :func:`tune`; ``print`` it for a summary.

    Attributes:
        best: the hyperparameters to train the network with.
        accuracy: their validation accuracy, a fraction, or the score of one's own training code:
            of the network itself where they were verified, else of the stand-in.
        verified: whether it is the network's own.
        certificate: how far the first rung is to be trusted; None where none was asked for.
        cost: wall-clock seconds by purpose: data, stand-in, search, certificate, verification,
            lost (to interruptions).
        alone: seconds that all trials on the network itself would have taken, estimated from its
            measured epochs; NaN where it was never trained.
        rows: one row a training (:data:`proxyhpo.rows.COLUMNS`).
        study: the first rung's, as Optuna has it.
        proxy: the pruned network, if there is one.
    """

    best: Configuration
    accuracy: float
    verified: bool
    certificate: Certificate | None
    cost: Mapping[str, float]
    alone: float
    rows: pd.DataFrame
    study: optuna.Study
    proxy: Proxy | None

    def __str__(self) -> str:
        trials = self.rows[self.rows["purpose"] == "study"]
        ended = ", ".join(f"{n} {state}" for state, n in trials["state"].value_counts().items())
        network, first = self.rows["network"].iloc[0], self.study.user_attrs["settings"]["view"]
        parts = ", ".join(f"{name} {duration(s)}" for name, s in self.cost.items() if s >= 0.5)
        whole = duration(sum(self.cost.values()))
        about = f", {network} alone about {duration(self.alone)}" if self.alone > 0 else ""
        values = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.best.items()
        )
        on = network if self.verified else "the stand-in, not verified"
        kind = "score" if self.rows["score"].notna().any() else "validation accuracy"
        lines = [f"{network}, tuned on {first}: {len(trials)} trials ({ended})"]
        lines += [str(self.certificate)] if self.certificate else []
        lines += [f"cost: {whole}{f' ({parts})' if parts else ''}{about}"]
        return "\n".join([*lines, f"best: {values}: {kind} {self.accuracy:.3f} on {on}"])


def tune(
    network: Callable[[], nn.Module],
    data: Given | Tensor | None = None,
    *,
    method: str = "auto",
    space: Mapping[str, BaseDistribution] | None = None,
    trials: int = 20,
    objective: Objective | None = None,
    storage: str | BaseStorage | None = None,
    settings: Settings | None = None,
) -> Tuned:
    """Search hyperparameters for ``network`` where it is cheap, and verify the best on it.

    With a ``storage``, the same call goes on where an earlier one was interrupted, and several
    processes or machines that make it at once share the search; its budget is kept exactly.

    Args:
        network: builds N_B with fresh weights; takes normalised pictures ``(N, C, H, W)``, gives
            a score for each class ``(N, classes)``. With ``objective``, any module.
        data: what to train on; see :func:`proxyhpo.data.given.as_dataset`. With ``objective``, a
            batch of inputs, or of inputs and targets, by which the network is traced; it may be
            left out, and then stand-ins aren't pruned.
        method: a key of :data:`proxyhpo.tuning.settings.METHODS`, or "auto".
        space: search space, a dict of Optuna's distributions; by default ``lr``,
            ``weight_decay`` and ``momentum`` of our own training loop, which also knows
            ``batch_size``. With ``objective``, anything.
        trials: configurations that are tried.
        objective: your own training code, :class:`proxyhpo.tuning.bench.Objective`.
        storage: a file or URL that Optuna can open, or one of its storages; in memory by default.
        settings: all else, :class:`proxyhpo.Settings`.

    Raises:
        InputError: for anything that doesn't fit, before any training.
        KeyboardInterrupt: on Ctrl-C; what is finished is in the storage.
    """
    settings = Settings() if settings is None else settings
    if not isinstance(settings, Settings):
        raise InputError(f"settings {settings!r}: a proxyhpo.Settings, such as Settings(epochs=9)")
    name = AUTO if method == "auto" else method
    plan = choose("method", name, {**METHODS, "auto": METHODS[AUTO]})(settings)
    if not is_integer(trials) or trials < 1:
        raise InputError(f"trials {trials!r}: a whole number, at least 1")
    if (settings.verify or 0) > trials:
        raise InputError(f"verify {settings.verify}: at most the {trials} trials")
    if objective is not None and space is None:
        raise InputError("space: your own training code needs one, a dict of distributions")
    space = SPACES["default"] if space is None else dict(space)
    check_space(space)
    where = InMemoryStorage() if storage is None else storages.open_storage(storage)
    rows: list[Row] = []
    bench = _bench(network, data, objective, space, plan, settings, rows)
    search = _Search(bench, plan, space, trials, where, settings, rows)
    try:
        return search.run()
    except KeyboardInterrupt:
        told = (
            f"interrupted after {search.done} training{'s' * (search.done != 1)}; with a storage, the same call goes on "
            "from there"
        )
        print(told, flush=True)
    raise KeyboardInterrupt(told) from None


def _bench(
    network: Callable[[], nn.Module],
    data: Given | Tensor | None,
    objective: Objective | None,
    space: Mapping[str, BaseDistribution],
    plan: Plan,
    settings: Settings,
    rows: list[Row],
) -> Workbench:
    clock, build = Clock(), builder(network)
    name = getattr(network, "__name__", type(network).__name__)
    if objective is not None:
        bench: Workbench = OwnBench(
            Task.of(name, "given", plan.sampler, settings), build, objective, data
        )
    else:
        if data is None:
            raise InputError("data: pictures to train on, or objective=, your own training code")
        check_configuration(space)
        dataset = as_dataset(data, val=settings.val, seed=settings.seed)  # type: ignore[arg-type]
        if settings.augmentation is not None:
            dataset = replace(dataset, augmentation=settings.augmentation)
        check_network(build(settings.seed), dataset)
        task = Task.of(name, dataset.name, plan.sampler, settings)
        bench = Workbench(task, dataset, build)  # type: ignore[arg-type]
    rows.append(bench.row(clock, purpose="data"))
    return bench


class _Search:
    """One call of :func:`tune`: rung by rung, each a study that survives."""

    def __init__(
        self,
        bench: Workbench,
        plan: Plan,
        space: Mapping[str, BaseDistribution],
        trials: int,
        where: BaseStorage,
        settings: Settings,
        rows: list[Row],
    ) -> None:
        self.bench, self.plan, self.space, self.trials = bench, plan, space, trials
        self.where, self.settings, self.rows = where, settings, rows
        self.own, self.done = isinstance(bench, OwnBench), 0
        self.rungs: list[_Rung] = []

    def run(self) -> Tuned:
        """Run what is missing of the search."""
        views, certified = self.plan.ladder.rungs, None
        sampled = {"sampler": self.plan.sampler, "trial_pruner": self.plan.trial_pruner}
        spared = min(self.settings.certify, max(1, self.trials // 2)) if len(views) > 1 else 0
        first = self.rung(views[0], "search", self.trials, spared=spared, **sampled)
        first.fix(self.warm())
        if spared:
            first.work(until=spared)
            certified = self.certify(first, spared)
        if certified is not None and certified.verdict == "don't":
            print(f"{views[0]}: {certified.change}; the search goes on on {self.name} itself")
            rest = self.trials - len(first.told)
            if rest:
                self.rung("base", "search", rest, role="rest", **sampled).work()
            return self.tuned(certified)
        first.work()
        self.climb(first, certified)
        return self.tuned(certified)

    @property
    def name(self) -> str:
        """Of the network."""
        return self.bench.experiment.network

    @property
    def full(self) -> list[Row]:
        """The trainings of N_B to the end."""
        return [row for rung in self.rungs if rung.view == BASE for row in rung.told]

    def warm(self) -> list[Configuration]:
        """Return the best configurations of a study of the user's."""
        study = self.settings.warm_start
        if study is None:
            return []
        sign = -1 if study.direction == StudyDirection.MINIMIZE else 1
        fit = [t for t in study.trials if t.value is not None and {*self.space} <= {*t.params}]
        order = promote([sign * float(t.value or 0) for t in fit], max(1, self.trials // 2))
        return [{name: fit[place].params[name] for name in self.space} for place in order]

    def rung(self, view: str, purpose: str, trials: int, **options: Any) -> _Rung:
        """Open a rung, made where it is new."""
        self.rungs.append(_Rung(self, view, purpose, trials, **options))
        return self.rungs[-1]

    def certify(self, first: _Rung, n: int) -> Certificate:
        """Run the first configurations on both, and return what follows."""
        view, accuracy = self.plan.ladder.rungs[0], not self.own
        told = [row for row in first.told if row["trial"] < n]
        chosen, again = list(map(self.configuration, told)), first.best(self.settings.reseed, n)
        if not chosen:
            return certificate(view, (), (), 1.0, self.trials, accuracy=accuracy)
        both = [*chosen, *again]
        base = self.rung("base", "certificate", len(both), role="certificate", fixed=both)
        base.work()
        scores = {row["trial"]: base.score(row) for row in base.told}
        seconds = {row["trial"]: row["wall_seconds"] for row in base.told}
        places = [config_id(one) for one in chosen]
        pairs = [(scores.get(i, NAN), first.score(row)) for i, row in enumerate(told)]
        twice = [
            (scores.get(places.index(config_id(one)), NAN), scores.get(i, NAN))
            for i, one in enumerate(again, len(chosen))
        ]
        ran = [i for i, pair in enumerate(pairs) if all(map(math.isfinite, pair))]
        spent = [sum(own[i] for i in ran) for own in ([r["wall_seconds"] for r in told], seconds)]
        share = spent[0] / spent[1] if ran else 1.0
        return certificate(view, pairs, twice, share, self.trials, accuracy=accuracy)

    def climb(self, rung: _Rung, certified: Certificate | None) -> None:
        """Send the best of each rung to the next, those that N_B knows already apart."""
        ladder, verify = self.plan.ladder, self.settings.verify
        counts = ladder.counts(self.trials)
        if verify is None and certified is not None:
            verify = min(certified.verify, counts[-2])
        if verify is not None and len(counts) > 1:
            counts[-1] = verify
        for view, count in zip(ladder.rungs[1:], counts[1:], strict=True):
            best = rung.best(count)
            if view == BASE:
                known = {row["config_id"] for row in self.full}
                best = [one for one in best if config_id(one) not in known]
            if not best:
                break
            purpose = "verification" if view == BASE else "search"
            rung = self.rung(view, purpose, len(best), role="rung", fixed=best)
            rung.work()

    def configuration(self, row: Row) -> Configuration:
        """Return what a row was trained with."""
        return {name: row[f"{PARAMETER}{name}"] for name in self.space}

    def made(self, row: Row) -> None:
        """Record what making a stand-in cost."""
        self.rows.append(row)

    def tuned(self, certified: Certificate | None) -> Tuned:
        """Return what came of it."""
        cost: dict[str, float] = {}
        for row, purpose in [
            *((row, row["purpose"].replace("proxy", "stand-in")) for row in self.rows),
            *((row, rung.purpose) for rung in self.rungs for row in rung.rows),
        ]:
            purpose = "lost" if row["purpose"] == "lost" else purpose
            cost[purpose] = cost.get(purpose, 0.0) + row["wall_seconds"]
        frame = as_frame([*self.rows, *(row for rung in self.rungs for row in rung.rows)])
        judges = [rung for rung in self.rungs if rung.view == BASE]
        alone = len(self.plan.ladder.rungs) == 1
        verified = alone or (bool(judges) and self.settings.verify != 0)
        judges = judges if verified else [rung for rung in self.rungs if rung.view != BASE][-1:]
        scores: dict[str, list[float]] = {}
        configurations = {}
        for rung in judges:
            for row in rung.told:
                if not math.isnan(score := rung.score(row)):
                    scores.setdefault(row["config_id"], []).append(score)
                    configurations[row["config_id"]] = self.configuration(row)
        if not scores:
            raise InputError(
                f"none of the {len(frame)} trainings ended well: give more trials, or a search "
                "space with smaller learning rates"
            )
        best = max(scores, key=lambda key: float(np.mean(scores[key])))
        base = frame[(frame["role"] == "base") & (frame["epochs"] > 0)]
        epoch = base["wall_seconds"].sum() / base["epochs"].sum() if len(base) else NAN
        return Tuned(
            best=configurations[best],
            accuracy=float(np.mean(scores[best])),
            verified=verified,
            certificate=certified,
            cost=cost,
            alone=float(epoch) * self.settings.epochs * self.trials,
            rows=frame,
            study=self.rungs[0].study.optuna,
            proxy=next((rung.stand_in.proxy for rung in self.rungs if rung.stand_in.proxy), None),
        )


class _Rung:
    """A rung of a search: a study of one view."""

    def __init__(
        self,
        search: _Search,
        view: str,
        purpose: str,
        trials: int,
        *,
        role: str = "search",
        sampler: str = "random",
        trial_pruner: str = "none",
        fixed: Sequence[Configuration] = (),
        spared: int = 0,
    ) -> None:
        """Open its study; ``fixed`` is what it trains, ``spared`` trials are never stopped."""
        self.search, self.view, self.purpose, self.spared = search, view, purpose, spared
        self.role, self.seen = role, Rung.of(view)
        task, settings = search.bench.experiment, search.settings
        epochs = epochs_of(self.seen.stand_in, settings.epochs, settings.share)
        name = f"{task.network}-{task.sampler}-seed{task.seed}"
        own = StudySettings(
            name=name,
            space=search.space,
            sampler=sampler,
            trial_pruner=trial_pruner,
            trials=trials,
            epochs=self.seen.epochs or epochs,
            seed=task.seed,
            trains={
                "network": task.network,
                "view": view,
                "share": settings.share,
                "of": epochs,
                "batch_size": settings.batch_size,
            },
        )
        chosen = f"-{crc32(repr([config_id(one) for one in fixed]).encode()):08x}" if fixed else ""

        def made(plan: str = "") -> Any:
            return search.bench.stand_in(self.seen.stand_in, search.made, plan)

        self.study = Study.open(
            own,
            search.where,
            f"{settings.study_name or name}-{role}-{view}{chosen}",
            plan=lambda: made().plan,
        )
        self.stand_in = made(self.study.plan)
        self.fix(fixed)

    def fix(self, configurations: Sequence[Configuration]) -> None:
        """Let the first trials be these."""
        for number, one in enumerate(configurations):
            trial = storages.open_trial(self.study.optuna, number)
            storages.set_params(trial, one, self.study.settings.asked)

    @property
    def rows(self) -> list[Row]:
        """All rows of the trials that have ended."""
        return [row for trial in self.study.finished for row in trial.user_attrs["rows"]]

    @property
    def told(self) -> list[Row]:
        """The row of each trial that has ended."""
        return [trial.user_attrs["rows"][-1] for trial in self.study.finished]

    def score(self, row: Row) -> float:
        """Return what the rung saw of a trial, higher is better; NaN unless it went to the end."""
        if row["state"] != "complete":
            return NAN
        if "score" in row:
            return row["score"]
        if self.seen.signal == "averaged":
            return float(row["curve_averaged"].split()[-1])
        return -row["val_loss"] if self.seen.signal == "loss" else row["val_accuracy"]

    def best(self, count: int, first: int | None = None) -> list[Configuration]:
        """Return the best configurations of all trials, or the ``first``, each of them once."""
        rows = self.told if first is None else [row for row in self.told if row["trial"] < first]
        order = promote([self.score(row) for row in rows], len(rows))
        once: dict[str, Row] = {}
        for place in order:
            once.setdefault(rows[place]["config_id"], rows[place])
        return [self.search.configuration(row) for row in [*once.values()][:count]]

    def work(self, until: int = 0) -> None:
        """Train what waits, or no more than it takes until the first ``until`` have ended."""
        search, study = self.search, self.study
        trials = study.trials[: until or None]
        if all(trial.state.is_finished() for trial in trials):
            return
        on = f"tuning on {self.view}" if self.purpose == "search" else self.purpose
        with StudyProgress(on, len(trials)) as progress:
            for trial in study.finished:
                progress.start_with(_shown(trial))

            def after(trial: FrozenTrial) -> None:
                search.done += 1
                progress.tell(_shown(trial))
                for callback in search.settings.callbacks:
                    callback(study.optuna, trial)
                if study.optuna.stopped:
                    self.ended = True
                elif all(trial.state.is_finished() for trial in study.trials[: until or None]):
                    study.optuna.stop()

            work(study, partial(self.attempt, Clock(), progress.epoch), after)
            study.optuna.stopped = self.ended

    ended = False  # by a callback, for good

    def attempt(
        self, clock: Clock, epoch: Callable[[int, int], None], claim: Claim
    ) -> tuple[Outcome, list[Row]]:
        """Train a claim; its rows are what earlier workers lost on it, then its own."""
        bench, budget = self.search.bench, self.study.settings.epochs
        trial: dict[str, Any] = {"trial": claim.number, "purpose": ROWS[self.purpose]}

        def stop(done: int, score: float) -> bool:
            epoch(done, budget)
            asked = claim.stop(done, score) if done < budget else True
            return done >= budget or (asked and claim.number >= self.spared)

        outcome, row = bench.attempt(
            clock,
            self.stand_in,
            claim.configuration,
            seed=(self.role, self.view, claim.number),
            stop=stop,
            average=budget if self.seen.signal == "averaged" else 0,
            sampler_seconds=claim.seconds,
            **trial,
        )
        if outcome.state == "stopped" and outcome.epochs == budget:  # all that the rung looks at
            outcome = replace(outcome, state="complete")
            row |= {"state": "complete", "budget": budget}
        trial["purpose"] = "lost"
        lost = [
            bench.untrained_row(self.stand_in, claim.configuration, seconds, **trial)
            for seconds in claim.lost
        ]
        return outcome, [*lost, row]


def _shown(trial: FrozenTrial) -> Row:
    """Return a trial's row as progress shows it, by its score."""
    row = trial.user_attrs["rows"][-1]
    return {"val_accuracy": row.get("score", NAN), **row}
