"""All recorded evidence in one place, and what follows from it, each table made once.

Figures, pages, notebooks and the explorer read what they show from here, so they can't differ.
"""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from math import nan
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Self

import pandas as pd

from proxyhpo.analysis import certified, claims, cost, quality, ranking, released, ways
from proxyhpo.analysis.bootstrap import simultaneous_level, t_interval
from proxyhpo.config import InputError, choose, write_whole
from proxyhpo.hpo.curves import NotRecordedError, Table, curves_folder, load_table
from proxyhpo.hpo.tables import TABLES, table_rows

TRIED = "digits-resnet8"
"""The table for trying things out, which is no evidence."""
_COUNT = "rows"
_RACE = ["way", "draw", "table"]  # what a line of a race is about; its other columns are budgets


class Evidence:
    """The tables of a folder and their recorded replays.

    Attributes:
        folder: of tables (``results/curves``); replays lie in ``replays`` beside it.
        tables: those recorded in part at least, by name, at the scale of a CPU: at another one,
            the same network is no further case to pool.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = curves_folder(folder)
        self.tables = self._begun(scaled=False)
        if not self.tables:
            raise InputError(
                f"no recorded table in {self.folder}: ./run_all.sh record lists what there could be"
            )

    def _begun(self, *, scaled: bool) -> dict[str, Table]:
        """Return the tables of a CPU's scale, or of others, of which a weight seed is whole."""
        found = {}
        for name, one in TABLES.items():
            path = self.folder / f"{name}.csv"
            if name == TRIED or bool(one.scale) != scaled or not path.exists():
                continue
            try:
                found[name] = load_table(one.dataset, one.network, self.folder, scale=one.scale)
            except NotRecordedError:
                continue  # begun, but no weight seed is whole
        return found

    def narrowed(self, names: Iterable[str]) -> Self:
        """Return the evidence of some tables, from which their figures are drawn.

        Its claims keep the intervals that hold for all tables together.
        """
        own = copy.copy(self)
        own.__dict__ = {
            "folder": self.folder,
            "tables": {name: self.tables[name] for name in names},
        }
        for kind in ("races", "cells", "switches", "claims"):
            frame = getattr(self, kind)
            setattr(own, kind, frame[frame["table"].isin(own.tables)])
        return own

    @cached_property
    def by_dataset(self) -> dict[str, Self]:
        """The evidence of each data set's tables."""
        parts: dict[str, list[str]] = {}
        for name, table in self.tables.items():
            parts.setdefault(table.regime.dataset, []).append(name)
        return {dataset: self.narrowed(names) for dataset, names in parts.items()}

    def rows(self, name: str) -> pd.DataFrame:
        """Return all trainings of a table, those that only refine it among them."""
        return table_rows(self.folder / f"{name}.csv")

    @property
    def timed(self) -> list[Table]:
        """The tables whose step costs are measured."""
        return [table for table in self.tables.values() if len(table.steps)]

    def _recorded(self, *kinds: str, columns: Sequence[str] = ("table",)) -> pd.DataFrame:
        folder = self.folder.parent / "replays"
        paths = [folder / f"{table}-{kind}.csv" for table in self.tables for kind in kinds]
        return _stacked(map(read_replays, filter(Path.exists, paths)), columns)

    @cached_property
    def races(self) -> pd.DataFrame:
        """What :func:`proxyhpo.analysis.quality.race` recorded, rivals from outside among it."""
        return self._recorded("race", "rivals", columns=quality.COLUMNS)

    @cached_property
    def race_summary(self) -> pd.DataFrame:
        """One line a way and table, :func:`proxyhpo.analysis.quality.race_summary`."""
        return quality.race_summary(self.races, self.searches)

    @cached_property
    def sooner(self) -> pd.DataFrame:
        """How much sooner the way of ``tune``'s method is good enough, by ``quality.sooner``."""
        return quality.sooner(self.races, ways.WINNER, self.searches)

    @cached_property
    def overall(self) -> pd.DataFrame:
        """One line a way over the tables it wasn't chosen on, by ``quality.overall``."""
        summary = self.race_summary
        return quality.overall(summary, self.searches) if len(summary) else summary

    @cached_property
    def ahead(self) -> pd.DataFrame:
        """How far the first of :attr:`overall` is ahead of the next two, by ``quality.ahead``."""
        return quality.ahead(self.race_summary, self.overall["way"].head(3).tolist())

    @cached_property
    def behind(self) -> pd.DataFrame:
        """How far the way of ``tune``'s method is behind its best rival, by ``quality.behind``."""
        return quality.behind(self.races, ways.WINNER, self.searches)

    @cached_property
    def scaled(self) -> dict[str, Table]:
        """The tables of other scales, recorded in part at least, by name."""
        return self._begun(scaled=True)

    @cached_property
    def scaled_steps(self) -> pd.DataFrame:
        """Seconds of training steps at other scales, recorded or not.

        With the ``table`` of the same data set and network, and what a ``step`` takes.
        """
        frames = []
        for name, one in TABLES.items():
            path = self.folder / f"{name}-steps.csv"
            if one.scale and path.exists():
                step = f"{one.batch_size} pictures of {one.side} pixels"
                table = f"{one.dataset}-{one.network}"
                frames.append(pd.read_csv(path).assign(table=table, step=step))
        return _stacked(frames)

    @property
    def searches(self) -> dict[str, int]:
        """Trainings of a full search on N_B, by table."""
        return {name: one.trials for name, one in self.tables.items()}

    @cached_property
    def live(self) -> pd.DataFrame:
        """Live studies beside their replays, as ``benchmarks/live.py`` recorded them."""
        return _stacked(map(pd.read_csv, sorted((self.folder.parent / "live").glob("*.csv"))))

    @cached_property
    def cells(self) -> pd.DataFrame:
        """What :func:`proxyhpo.analysis.released.cells` recorded."""
        return self._recorded("cells")

    @cached_property
    def switches(self) -> pd.DataFrame:
        """What :func:`proxyhpo.analysis.released.switches` recorded."""
        return self._recorded("switches")

    @cached_property
    def certificates(self) -> pd.DataFrame:
        """What :func:`proxyhpo.analysis.certified.certified` recorded."""
        return self._recorded("certified", columns=("table", "stand_in"))

    @cached_property
    def certified(self) -> pd.DataFrame:
        """What certified searches lose, :func:`proxyhpo.analysis.certified.certified_summary`."""
        studies = self.certificates
        return certified.certified_summary(studies) if len(studies) else studies

    @cached_property
    def claims(self) -> pd.DataFrame:
        """Every claim, decided."""
        return claims.claims(self.timed, self.races)

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """The claim of quality against other searches on N_B, at the level of :attr:`claims`."""
        return claims.baselines(self.races, simultaneous_level(len(self.claims)))

    @cached_property
    def headlines(self) -> pd.DataFrame:
        """The claims of the first screen, which share their level among themselves."""
        return claims.claims(self.timed, self.races, claims.HEADLINES)

    @cached_property
    def headlines_by_network(self) -> pd.DataFrame:
        """The same with networks as their unit, by :func:`proxyhpo.analysis.claims.by_network`."""
        return claims.by_network(self.headlines)

    @cached_property
    def gates(self) -> pd.DataFrame:
        """The gate of each table, one line a table."""
        return pd.DataFrame({name: ranking.gate(table) for name, table in self.tables.items()}).T

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """How each view ranks, :func:`proxyhpo.analysis.ranking.agreement`, of all tables."""
        return _each(ranking.agreement, self.tables.values())

    @cached_property
    def plans(self) -> pd.DataFrame:
        """What another plan changes, of the tables where others are recorded."""
        return _each(lambda table: ranking.plans(self.rows(table.name)), self.tables.values())

    @cached_property
    def shift(self) -> pd.DataFrame:
        """Where each view's best learning rate lies, of all tables."""
        return _each(ranking.shift, self.tables.values())

    @cached_property
    def corrections(self) -> pd.DataFrame:
        """What a corrected learning rate gains, of the tables whose network has others.

        Behind those of each pruned network a line for tables in general, without a ``table``.
        """
        frames = []
        for view in claims.PRUNED:
            own = ranking.corrections(self.tables, self.shift, view).assign(low=nan, high=nan)
            if len(own) >= claims.LEAST:
                gain = dict(zip(("gain", "low", "high"), t_interval(own["gain"]), strict=True))
                own = pd.concat([own, pd.DataFrame([{"table": "", "view": view, **gain}])])
            frames.append(own)
        return _stacked(frames)

    @cached_property
    def transfer(self) -> pd.DataFrame:
        """How each table's best learning rate goes with width."""
        return _each(ranking.transfer, self.tables.values())

    @cached_property
    def sight(self) -> pd.DataFrame:
        """Which hyperparameter each view can see, of the tables with two."""
        return _each(ranking.sight, self.tables.values())

    @cached_property
    def epoch_costs(self) -> pd.DataFrame:
        """What an epoch of each entrant costs, of all tables that are timed."""
        return _each(cost.epoch_costs, self.timed)

    @cached_property
    def raced(self) -> pd.DataFrame:
        """Regret of each way by budget, with intervals."""
        return quality.raced(self.races)

    def replay(self, name: str, *, jobs: int = 1, report: Callable[[str], object] = print) -> None:
        """Replay all ways, the paper's experiments and the released code's switches on a table.

        Written to ``results/replays``, whole files. Minutes of ``jobs`` cores, GP's most of them.

        Raises:
            InputError: an unknown table, or one whose truth or step costs aren't recorded.
        """
        table = choose("recorded table", name, self.tables)
        if not len(table.steps):
            which = f"--dataset {table.regime.dataset} --model {table.regime.network}"
            raise InputError(
                f"table {name}: no step costs; measure them: python benchmarks/steps.py {which}"
            )
        folder = self.folder.parent / "replays"
        folder.mkdir(parents=True, exist_ok=True)
        others = active_children()
        with ProcessPoolExecutor(jobs, get_context("spawn"), _alone) as pool:
            makers: dict[str, Callable[[], pd.DataFrame]] = {
                "race": lambda: quality.race(table, ways.ways(table), each=pool.map),
                "switches": lambda: released.switches(table),
                "certified": lambda: certified.certified(table, each=pool.map),
                "cells": lambda: released.cells(table, each=pool.map),
            }
            if len(table.regime.weight_decay) > 1:
                del makers["cells"]  # the paper tunes the learning rate alone
            try:
                for kind, make in makers.items():
                    frame = make()
                    write_replays(folder / f"{name}-{kind}.csv", frame)
                    report(f"{name}: {kind} replayed, {len(frame)} lines")
            except BaseException:  # or the pool would wait for its tasks
                pool.shutdown(wait=False, cancel_futures=True)
                for process in active_children():
                    if process not in others:
                        process.kill()
                raise
        summary = Evidence(self.folder).race_summary
        path = self.folder.parent / "race.csv"
        write_whole(path, summary.to_csv(index=False, float_format="%.4g").encode())


def _each(analyse: Callable[[Table], pd.DataFrame], tables: Iterable[Table]) -> pd.DataFrame:
    return _stacked(analyse(table).assign(table=table.name) for table in tables)


def _stacked(frames: Iterable[pd.DataFrame], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return frames under each other; of none, an empty one with ``columns``."""
    frames = list(frames)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def write_replays(path: Path, frame: pd.DataFrame) -> None:
    """Write recorded replays by rename; a last column says how many lines there are.

    Races lie with a column for each budget, a ninth of the bytes.
    """
    if "budget" in frame:
        lost = frame.set_index([*_RACE, "budget"])["regret"]
        frame = lost.unstack(sort=False).reset_index()  # noqa: PD010, pivots sort or lose NaN
    write_whole(path, frame.assign(**{_COUNT: len(frame)}).to_csv(index=False).encode())


def read_replays(path: Path) -> pd.DataFrame:
    """Return what :func:`write_replays` wrote.

    Raises:
        InputError: the file was cut, or isn't one of recorded replays.
    """
    try:
        frame = pd.read_csv(path)
    except ValueError:
        frame = pd.DataFrame()
    if _COUNT not in frame or set(frame.pop(_COUNT)) != {len(frame)}:
        raise InputError(f"{path} isn't whole; delete it and make it again: ./run_all.sh replay")
    if not {*_RACE} <= {*frame}:
        return frame
    long = frame.melt(_RACE, var_name="budget", value_name="regret", ignore_index=False)
    return long.sort_index(kind="stable", ignore_index=True).astype({"budget": float})


def _alone() -> None:
    """Keep torch, which GP loads, to one thread, and leave Ctrl-C to the process that waits."""
    os.environ["OMP_NUM_THREADS"] = "1"  # more of them wait for each other here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
