"""Tune your own network: many configurations where it is cheap, the best on the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from torch import Tensor, nn

from proxyhpo.analysis.certificate import CONFIGURATIONS, Certificate, affordable, certificate
from proxyhpo.analysis.cost import seconds
from proxyhpo.config import InputError, check_integer, check_verify, choose
from proxyhpo.data.datasets import Dataset
from proxyhpo.data.given import Given, as_dataset
from proxyhpo.experiment.progress import duration
from proxyhpo.experiment.trial import Bench, Clock, Record, Row, Task, Workbench
from proxyhpo.hpo import storage as storages
from proxyhpo.hpo.ladder import View
from proxyhpo.hpo.search import SAMPLERS, SPACES, Configuration, check_space, ends
from proxyhpo.hpo.stand_ins import epochs_of, parse, pictures_of
from proxyhpo.pruning.proxy import Proxy
from proxyhpo.rows import as_frame, config_id
from proxyhpo.training import check_configuration, threads_kept
from proxyhpo.tuning.bench import Objective, OwnBench, builder, check_network, qualified_name
from proxyhpo.tuning.rung import Rung, Site
from proxyhpo.tuning.settings import AUTO, METHODS, Plan, Settings, warm_configurations

BASE = "base"


@dataclass(frozen=True)
class Tuned:
    """What came of :func:`tune`; ``print`` it for a summary.

    Attributes:
        best: the hyperparameters to train the network with.
        accuracy: their validation accuracy, a fraction, or the score of your own training code:
            of the network itself where they were verified, else of the stand-in.
        verified: whether it is the network's own.
        certificate: how far the first rung is to be trusted; None where none was asked for, or
            where the search was too short to earn one back.
        cost: seconds by purpose: data, stand-in, search, certificate, verification, lost (to
            interruptions).
        clock: of these seconds: "CPU", which neighbours on the machine hardly change, or
            "wall-clock" on a GPU and for training code of your own, which may work elsewhere.
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
    clock: str
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
        lines += [f"cost, {self.clock} time: {whole}{f' ({parts})' if parts else ''}{about}"]
        return "\n".join([*lines, f"best: {values}: {kind} {self.accuracy:.3f} on {on}"])


@threads_kept()
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
    processes or machines that make it at once share the search; its budget is kept exactly. Other
    settings, another number of ``trials``, another network or other pictures under the same name
    are refused. A network is known by its class, parameters and multiply-accumulates, pictures by
    a hash of all their bytes, an ``objective`` by its module and name alone. For more trials, start
    another search, by ``Settings(study_name=..., warm_start=found.study)`` with this one's best.

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
    plan = choose("method", method, {**METHODS, "auto": METHODS[AUTO]})(settings)
    brings = SAMPLERS[plan.sampler].trial_pruner
    if brings not in ("", plan.trial_pruner):
        raise InputError(
            f"sampler {plan.sampler!r} ends trials by {brings!r}, and method {method!r} with these "
            f"settings by {plan.trial_pruner!r}: method 'hyperband' is that sampler's"
        )
    check_integer("trials", trials, 1)
    check_verify(settings.verify or 0, trials)
    if objective is not None and space is None:
        raise InputError("space: your own training code needs one, a dict of distributions")
    if objective is not None:
        plan = replace(plan, ladder=plan.ladder.by_score)
    if whole := [one for one in plan.ladder.rungs[:-1] if _shares(one, settings) == {"epochs": 1}]:
        print(f"left out: {', '.join(whole)}, of as many epochs as the network, {settings.epochs}")
        rungs = tuple(one for one in plan.ladder.rungs if one not in whole)
        plan = replace(plan, ladder=replace(plan.ladder, rungs=rungs))
    space = SPACES["default"] if space is None else dict(space)
    check_space(space)
    own = settings.warm_start
    warm = [] if own is None else warm_configurations(own, space, max(1, trials // 2))
    where = InMemoryStorage() if storage is None else storages.open_storage(storage)
    rows: list[Row] = []
    bench, trains = _bench(network, data, objective, space, plan, settings, rows.append)
    site = Site(bench, trains, settings, space, where, rows.append)
    search = _Search(site, plan, trials, rows, warm)
    try:
        return search.run()
    except KeyboardInterrupt:
        done = sum(len(rung.ended) for rung in search.rungs)
        message = (
            f"interrupted after {done} training{'s' * (done != 1)}; with a storage, the same call "
            "goes on from there"
        )
        print(message, flush=True)
    raise KeyboardInterrupt(message) from None


def _bench(
    network: Callable[[], nn.Module],
    data: Given | Tensor | None,
    objective: Objective | None,
    space: Mapping[str, BaseDistribution],
    plan: Plan,
    settings: Settings,
    record: Record,
) -> tuple[Bench[Any], dict[str, object]]:
    """Return where trials are trained, and what: see :attr:`proxyhpo.tuning.rung.Site.trains`."""
    clock, build = Clock(), builder(network)
    name = getattr(network, "__name__", type(network).__name__)
    own = {key: getattr(settings, key) for key in ("seed", "epochs", "batch_size", "share")}
    task = Task("custom", "given", name, plan.sampler, **own)
    # of the network itself: a shorter stand-in may come to the same number of epochs
    trains: dict[str, object] = {"full epochs": settings.epochs}
    trains["objective"] = qualified_name(objective)
    if objective is not None:
        bench: Bench[Any] = OwnBench(task, build, objective, data)
    else:
        if data is None:
            raise InputError("data: pictures to train on, or objective=, your own training code")
        for end in ends(space):
            check_configuration(end)
        dataset = as_dataset(data, val=settings.val, seed=settings.seed)  # type: ignore[arg-type]
        if settings.augmentation is not None:
            dataset = replace(dataset, augmentation=settings.augmentation)
        check_network(build(settings.seed), dataset)
        _check_batches(space, plan, settings, dataset)
        bench = Workbench(replace(task, dataset=dataset.name), dataset, build)
        splits = dataset.train, dataset.val
        sizes = " + ".join(str(len(split)) for split in splits)
        digests = " + ".join(split.digest for split in splits)
        trains["pictures"] = f"{sizes} of {len(dataset.classes)} classes ({digests})"
        trains["augmentation"] = str(dataset.augmentation)
        if not isinstance(data, Dataset):  # whose splits are cut
            trains["val"] = settings.val
    base = bench.stand_in(BASE, record)
    kind = type(build(settings.seed)).__name__
    trains["built network"] = f"{kind} of {base.parameters:,} parameters"
    if base.macs:
        trains["multiply-accumulates"] = base.macs
    record(bench.row(clock, purpose="data"))
    return bench, trains


def _shares(rung: str, own: Settings) -> dict[str, float]:
    """Return the kinds of stand-in of a rung, each with its share; of epochs, those run."""
    view = View.of(rung)
    shares = {} if view.stand_in == BASE else parse(view.stand_in, own.share)
    epochs = view.epochs or epochs_of(view.stand_in, own.epochs, own.share)
    return shares | {"epochs": min(1, epochs / own.epochs)}


def _check_batches(
    space: Mapping[str, BaseDistribution], plan: Plan, settings: Settings, dataset: Dataset
) -> None:
    """Raise :class:`InputError` where a rung has fewer pictures than a batch may have."""
    sizes = [round(end["batch_size"]) for end in ends(space) if "batch_size" in end]
    size = max(sizes, default=settings.batch_size)
    for rung in plan.ladder.rungs:
        pictures = pictures_of(View.of(rung).stand_in, dataset, settings.share)
        if size > pictures:
            raise InputError(f"batch_size {size}: more than the {pictures} pictures of {rung!r}")


@dataclass
class _Search:
    """One call of :func:`tune`: rung by rung, each a study that survives."""

    site: Site
    plan: Plan
    trials: int
    rows: list[Row]
    warm: Sequence[Configuration] = ()
    rungs: list[Rung] = field(default_factory=list)

    def run(self) -> Tuned:
        """Run what is missing of the search."""
        views, certified = self.plan.ladder.rungs, None
        sampled = {"sampler": self.plan.sampler, "trial_pruner": self.plan.trial_pruner}
        few = self.certified_trials()
        first = self.rung(views[0], self.trials, fixed=self.warm, spared=few, **sampled)
        if few:
            first.work(few)
            certified = self.certify(first)
        if certified is None or certified.verdict != "don't":
            first.work()
            self.climb(first, certified)
        elif self.trials > few:
            print(f"certificate: don't use {views[0]}; the search goes on with the network")
            self.rung(BASE, self.trials - few, role="rest", **sampled).work()
        return self.tuned(certified)

    def certified_trials(self) -> int:
        """Return how many configurations run on the network before the search is spent."""
        own, rungs = self.site.settings, self.plan.ladder.rungs
        few = own.certify
        if few is None:
            share = math.prod(_shares(rungs[0], own).values())
            few = CONFIGURATIONS if affordable(self.trials, share, own.reseed) else 0
        return min(few, max(1, self.trials // 2)) if len(rungs) > 1 else 0

    def rung(self, name: str, trials: int, **options: Any) -> Rung:
        """Return a rung, noted in the order of use."""
        self.rungs.append(Rung(self.site, name, trials, **options))
        return self.rungs[-1]

    def certify(self, first: Rung) -> Certificate:
        """Run the configurations that have ended on both, and return what follows."""
        ended = first.ended[: first.spared]  # an earlier call may have gone further
        again = first.best(self.site.settings.reseed, first.spared)
        both = [*(first.configuration(row) for row in ended), *again]
        base = self.rung(BASE, len(both), purpose="certificate", role="certificate", fixed=both)
        base.work()
        full = {row["trial"]: row for row in base.ended}
        scores = {trial: base.score(row) for trial, row in full.items()}
        pairs = [(scores.get(i, math.nan), first.score(row)) for i, row in enumerate(ended)]
        places = [row["config_id"] for row in ended]
        twice = [
            (scores.get(places.index(config_id(one)), math.nan), scores.get(i, math.nan))
            for i, one in enumerate(again, len(ended))
        ]
        ran = [i for i, pair in enumerate(pairs) if all(map(math.isfinite, pair))]
        share = 1.0
        if ran:
            spent, alone = (
                self.seconds(as_frame([rows[i] for i in ran])).sum() for rows in (ended, full)
            )
            share = float(spent / alone)
        accuracy = not isinstance(self.site.bench, OwnBench)
        return certificate(first.name, pairs, twice, share, self.trials, accuracy=accuracy)

    def climb(self, rung: Rung, certified: Certificate | None) -> None:
        """Send the best of each rung to the next, without those that ran on N_B already."""
        counts, verify = self.plan.ladder.counts(self.trials), self.site.settings.verify
        if verify is None and certified is not None:
            verify = min(certified.verify, counts[-2])
        if verify is not None:
            counts[1:] = [*counts[1:-1], verify]
        for name, count in zip(self.plan.ladder.rungs[1:], counts[1:], strict=False):
            best, last = rung.best(count), name == BASE
            if last:
                ran = [row for own in self.rungs if own.name == BASE for row in own.ended]
                known = {row["config_id"] for row in ran}
                best = [one for one in best if config_id(one) not in known]
            if best:
                purpose = "verification" if last else "search"
                rung = self.rung(name, len(best), purpose=purpose, role="rung", fixed=best)
                rung.work()

    def seconds(self, rows: pd.DataFrame) -> pd.Series:
        """Return the seconds of rows: the user's own code may work in other processes."""
        own = isinstance(self.site.bench, OwnBench)
        return rows["wall_seconds"] if own else seconds(rows)

    def tuned(self, certified: Certificate | None) -> Tuned:
        """Return what came of it."""
        settings = self.site.settings
        parts = [(row["purpose"].replace("proxy", "stand-in"), row) for row in self.rows]
        parts += [(rung.purpose, row) for rung in self.rungs for row in rung.rows]
        frame = as_frame([row for _, row in parts])
        spent = self.seconds(frame)
        kinds = ["lost" if row["purpose"] == "lost" else purpose for purpose, row in parts]
        rejected = certified is not None and certified.verdict == "don't"
        trusted = settings.verify == 0 and not rejected and self.plan.ladder.rungs != (BASE,)
        on_base = [rung for rung in self.rungs if rung.name == BASE]
        judges = [] if trusted else on_base
        scores, configurations = _scores(judges)
        verified = bool(scores)
        if not verified and not rejected:
            judges = [rung for rung in self.rungs if rung.name != BASE][-1:] or judges
            scores, configurations = _scores(judges)
            if scores and on_base and not trusted:
                print("no training of the network ended well: the stand-in's best isn't verified")
        if not scores:
            ended = sum(len(rung.ended) for rung in self.rungs)
            advice = "give more trials, or a search space with smaller learning rates"
            if isinstance(self.site.bench, OwnBench):
                advice = "see what your training code reports and returns, or give another space"
            errors = [t.user_attrs.get("error") for rung in judges for t in rung.study.finished]
            told = next((f"; the first error: {e.splitlines()[0]}" for e in errors if e), "")
            raise InputError(f"none of the {ended} trainings ended well: {advice}{told}")
        best = max(scores, key=lambda key: fmean(scores[key]))
        base = frame[(frame["role"] == "base") & (frame["epochs"] > 0)]
        epoch = spent[base.index].sum() / base["epochs"].sum() if len(base) else math.nan
        return Tuned(
            best=configurations[best],
            accuracy=fmean(scores[best]),
            verified=verified,
            certificate=certified,
            cost=spent.groupby(kinds, sort=False).sum().to_dict(),
            clock="CPU" if spent.equals(frame["cpu_seconds"]) else "wall-clock",
            alone=float(epoch) * settings.epochs * self.trials,
            rows=frame,
            study=self.rungs[0].study.optuna,
            proxy=next((rung.stand_in.proxy for rung in self.rungs if rung.stand_in.proxy), None),
        )


def _scores(rungs: Sequence[Rung]) -> tuple[dict[str, list[float]], dict[str, Configuration]]:
    """Return the scores of each configuration that ended well on ``rungs``, and what it was."""
    scores: dict[str, list[float]] = {}
    configurations: dict[str, Configuration] = {}
    for rung in rungs:
        for row in rung.ended:
            if not math.isnan(score := rung.score(row)):
                scores.setdefault(row["config_id"], []).append(score)
                configurations[row["config_id"]] = rung.configuration(row)
    return scores, configurations
