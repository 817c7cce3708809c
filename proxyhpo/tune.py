"""Tune a network of one's own on a stand-in, and verify the best on the network itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import optuna
import pandas as pd
import torch
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial
from torch import nn

from proxyhpo.analysis.cost import ledger
from proxyhpo.config import Experiment, InputError, Profile
from proxyhpo.data.feed import Augmentation
from proxyhpo.data.given import Given, as_dataset
from proxyhpo.experiment.protocol import ranked
from proxyhpo.experiment.trial import Clock, Row, Workbench
from proxyhpo.hpo.search import SPACES, Configuration, StudySettings, check_space
from proxyhpo.hpo.stand_ins import StandIn, epochs_of, parse
from proxyhpo.hpo.study import Study, plain, work
from proxyhpo.progress import Progress, StudyProgress, duration
from proxyhpo.pruning.proxy import Proxy, seeded
from proxyhpo.rows import as_frame, config_id
from proxyhpo.training import check_configuration

Callback = Callable[[optuna.Study, FrozenTrial], object]


@dataclass(frozen=True)
class Tuned:
    """What came of :func:`tune`; ``print`` it for a summary.

    Attributes:
        best: the hyperparameters to train the network with.
        accuracy: their validation accuracy, a fraction: of the network itself where they were
            verified, else of the stand-in.
        verified: whether it is the network's own.
        study: the study on the stand-in, as Optuna has it.
        rows: one row a trial and verification (:data:`proxyhpo.rows.COLUMNS`).
        ledger: seconds by purpose and kind (:func:`proxyhpo.statistics.ledger`).
        proxy: the pruned network, if the stand-in is one.
    """

    best: Configuration
    accuracy: float
    verified: bool
    study: optuna.Study
    rows: pd.DataFrame
    ledger: pd.DataFrame
    proxy: Proxy | None

    def __str__(self) -> str:
        trials = self.rows[self.rows["purpose"] == "study"]
        verified = self.rows[self.rows["purpose"] == "verify"]
        states = trials["state"].value_counts()
        ended = ", ".join(f"{n} {state}" for state, n in states.items())
        spent = self.rows.groupby("purpose")["wall_seconds"].sum()
        network, stand_in = self.rows["network"].iloc[0], trials["proxy"].iloc[0] or "itself"
        share = (
            f" at {self.proxy.macs / self.proxy.base_macs:.0%} of its MACs" if self.proxy else ""
        )
        lines = [
            f"{network}, tuned on {stand_in}{share}: {len(trials)} trials ({ended}) in "
            f"{duration(spent['study'])}, {duration(spent.get('proxy', 0.0))} to make it"
        ]
        if len(verified):
            lines.append(f"verified on {network}: {len(verified)} in {duration(spent['verify'])}")
        if lost := spent.get("lost", 0.0):
            lines.append(f"lost to interruptions: {duration(lost)}")
        values = ", ".join(f"{name} {value:.4g}" for name, value in self.best.items())
        on = network if self.verified else "the stand-in, not verified"
        return "\n".join(
            [*lines, f"best: {values}: validation accuracy {self.accuracy:.3f} on {on}"]
        )


def tune(
    network: Callable[[], nn.Module],
    data: Given,
    space: Mapping[str, BaseDistribution] | None = None,
    *,
    proxy: str = "snip",
    macs: float = 0.25,
    sampler: str = "tpe",
    trial_pruner: str = "hyperband",
    trials: int = 20,
    epochs: int = 9,
    batch_size: int = 64,
    verify: int = 3,
    storage: str | BaseStorage | None = None,
    study_name: str | None = None,
    seed: int = 0,
    val: float = 0.2,
    augmentation: Augmentation | None = None,
    callbacks: Sequence[Callback] = (),
) -> Tuned:
    """Search hyperparameters for ``network`` on a stand-in, and verify the best on the network.

    With a ``storage``, the same call goes on where an earlier one was interrupted, and several
    processes or machines that make it at once share the study; its budget is kept exactly.

    Args:
        network: builds N_B with fresh weights; takes normalised pictures ``(N, C, H, W)``, gives
            a score for each class ``(N, classes)``.
        data: what to train on; see :func:`proxyhpo.data.given.as_dataset`.
        space: search space, a dict of Optuna's distributions for ``lr``, ``weight_decay``,
            ``momentum`` and ``batch_size``; by default the first three.
        proxy: the stand-in, a key of :data:`proxyhpo.hpo.stand_ins.STAND_INS` or two joined by "+";
            "base" tunes the network itself.
        macs: share of the network's cost to keep, in (0, 1).
        sampler: a key of :data:`proxyhpo.hpo.search.SAMPLERS`.
        trial_pruner: a key of :data:`proxyhpo.hpo.search.TRIAL_PRUNERS`.
        trials: of the study.
        epochs: of a full trial.
        batch_size: pictures a step, unless the space has it.
        verify: how many of the best to train on the network itself; 0 trusts the stand-in.
        storage: a file or URL that Optuna can open, or one of its storages; in memory by default.
        study_name: in the storage; by default of network, stand-in, sampler and seed.
        seed: of everything.
        val: share of the pictures to validate on, where they come in one piece.
        augmentation: of training pictures; by default what suits the data.
        callbacks: called with Optuna's study and each trial that ended, as by
            ``Study.optimize``; ``study.stop()`` ends the search.

    Raises:
        InputError: for anything that doesn't fit, before any training.
        KeyboardInterrupt: on Ctrl-C; what is finished is in the storage.
    """
    space = SPACES["default"] if space is None else dict(space)
    check_space(space)
    check_configuration(space)
    if proxy != "base":
        parse(proxy)
    profile = Profile(
        name="custom",
        datasets=(),
        networks=(),
        epochs=epochs,
        trials=trials,
        batch_size=batch_size,
        trial_pruner=trial_pruner,
        proxy=proxy,
        pruning_ratio=1 - macs if isinstance(macs, float) else macs,
        verify=verify,
    )
    name = getattr(network, "__name__", type(network).__name__)
    experiment = Experiment("given", name, sampler, profile, seed)
    settings = StudySettings(
        name=f"{name}-{sampler}-seed{seed}",
        space=space,
        sampler=sampler,
        trial_pruner=trial_pruner,
        trials=trials,
        epochs=epochs_of(proxy, epochs, 1 - profile.pruning_ratio),
        seed=seed,
        trains={"network": name, "stand_in": proxy, "macs": macs, "batch_size": batch_size},
    )
    rows: list[Row] = []
    clock = Clock()
    dataset = as_dataset(data, val=val, seed=seed)
    if augmentation is not None:
        dataset = replace(dataset, augmentation=augmentation)
    build = _builder(network)
    _check_network(build(seed), dataset.channels, dataset.side, len(dataset.classes))
    bench = Workbench(replace(experiment, dataset=dataset.name), dataset, build)
    rows.append(bench.row(clock, purpose="data"))

    where = InMemoryStorage() if storage is None else storage
    study_name = study_name or f"{settings.name}-{proxy}"
    study = Study.open(
        settings, where, study_name, plan=lambda: bench.stand_in(proxy, rows.append).plan
    )
    stand_in = bench.stand_in(proxy, rows.append, study.plan)
    _search(study, bench, stand_in, callbacks)
    trials_told = [row for trial in study.finished for row in trial.user_attrs["rows"]]
    rows += trials_told
    best = ranked(as_frame(trials_told).query("purpose == 'study'"))
    if not best:
        raise InputError(
            f"none of the {len(study.finished)} trials was trained in full: give more trials, or "
            "a search space with smaller learning rates"
        )
    verified = _verify(study, bench, best[:verify] if stand_in.name != "base" else [])
    rows += verified
    frame = as_frame(rows)
    measured = frame[frame["purpose"] == "verify"] if verified else frame
    best = ranked(measured) if verified else best
    if not best:
        raise InputError(f"all of the {len(verified)} verified configurations diverged")
    chosen = measured[measured["config_id"] == config_id(best[0])]
    return Tuned(
        best=best[0],
        accuracy=float(chosen["val_accuracy"].max()),
        verified=bool(verified) or stand_in.name == "base",
        study=study.optuna,
        rows=frame,
        ledger=ledger(frame),
        proxy=stand_in.proxy,
    )


def _builder(network: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    if isinstance(network, nn.Module) or not callable(network):
        raise InputError(
            f"network {type(network).__name__}: a callable that builds one with fresh weights, "
            "such as lambda: MyNetwork(classes=10)"
        )

    def build(seed: int) -> nn.Module:
        with seeded(seed):
            return network()

    return build


def _check_network(network: object, channels: int, side: int, classes: int) -> None:
    if not isinstance(network, nn.Module):
        raise InputError(f"network built a {type(network).__name__}, not a torch.nn.Module")
    pictures = torch.zeros(2, channels, side, side)
    try:
        with torch.no_grad():
            shape = tuple(network.eval()(pictures).shape)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"network can't take pictures {tuple(pictures.shape)}: {str(error).splitlines()[0]}"
        ) from error
    if shape != (2, classes):
        raise InputError(
            f"network gives {shape} for 2 pictures; the {classes} classes of the data need "
            f"{(2, classes)}"
        )


def _search(
    study: Study, bench: Workbench, stand_in: StandIn, callbacks: Sequence[Callback]
) -> None:
    with StudyProgress(f"tuning on {stand_in.name}", study.settings.trials) as progress:
        for trial in study.finished:
            progress.start_with(trial.user_attrs["rows"][-1])

        def after(trial: FrozenTrial) -> None:
            progress.tell(trial.user_attrs["rows"][-1])
            for callback in callbacks:
                callback(study.optuna, trial)

        try:
            work(study, bench.attempts(Clock(), stand_in, "tune", progress.epoch), after)
        except KeyboardInterrupt:
            print(
                f"interrupted after {len(study.finished)} trials; with a storage, the same call "
                "goes on from there",
                flush=True,
            )
            raise


def _verify(study: Study, bench: Workbench, best: list[Configuration]) -> list[Row]:
    """Train N_B with each; what an earlier call did is kept with the study."""
    done: dict[str, Row] = dict(study.optuna.user_attrs.get("verified", {}))
    base, clock, rows = bench.stand_in("base", lambda _: None), Clock(), []
    earlier = sum(config_id(configuration) in done for configuration in best)
    with Progress("verification on the network", len(best), earlier) as progress:
        for rank, configuration in enumerate(best):
            key = config_id(configuration)
            if key not in done:
                outcome, done[key] = bench.attempt(
                    clock, base, configuration, seed=("verify", rank), purpose="verify", trial=rank
                )
                study.optuna.set_user_attr("verified", {k: plain(row) for k, row in done.items()})
                progress.advance(outcome.told)
            rows.append(done[key])
    return rows
