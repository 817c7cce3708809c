"""The explorer's tables: what there is to choose, and what a choice shows.

Computed once for all recorded rows; :mod:`proxyhpo.notebook.explorer_drawing` draws from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from proxyhpo.analysis.cost import CELL, PAIR, STAND_IN, incumbent, speedup, ways
from proxyhpo.analysis.ranking import CEILING, rank_correlation, ranked
from proxyhpo.rows import PARAMETER

_UNUSED = ["val_loss", "test_accuracy", "curve", "parameters", "precision", "recorded"]
_UNUSED += ["torch", "optuna", "version", "commit"]  # by any table: to carry them takes long

CHOICE = (*CELL, *STAND_IN)
"""What is chosen: profile, data set, network, sampler, stand-in and its pruning ratio."""


@dataclass(frozen=True)
class Tables:
    """Everything that a picture is drawn from, one line each in frames of their own.

    Attributes:
        rows: the recorded rows.
        speeds: :func:`proxyhpo.statistics.speedup`, seeds pooled.
        spent: wall-clock seconds of each way by purpose, means over seeds.
        curves: :func:`proxyhpo.statistics.incumbent`.
        ranks: :func:`proxyhpo.statistics.rank_correlation`.
        points: accuracies on N_B and on each stand-in, columns ``on_base`` and ``on_stand_in``
            (:func:`proxyhpo.statistics.ranked`).
    """

    rows: pd.DataFrame
    speeds: pd.DataFrame
    spent: pd.DataFrame
    curves: pd.DataFrame
    ranks: pd.DataFrame
    points: pd.DataFrame

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Tables:
        """Compute all tables of ``rows``; none of them is changed afterwards."""
        rows = rows[(rows["sampler"] != "") | (rows["purpose"] == "ranking")]
        parameters = [column for column in rows if column.startswith(PARAMETER)]
        ours = rows.drop(columns=[*_UNUSED, *parameters])
        parts = ways(ours)
        seeds = parts.groupby([*CHOICE, "way"], dropna=False)["seed"].transform("nunique")
        parts["wall_seconds"] = parts["wall_seconds"] / seeds
        keys = [*CHOICE, "way", "purpose"]
        reached = {"base": "on_base", "proxy": "on_stand_in"}  # "proxy" is also a stand-in's name
        points = [
            pairs[list(reached)].rename(columns=reached).assign(**identity)
            for identity, pairs in ranked(ours)
        ]
        tables = {
            "speeds": speedup(ours, pool_seeds=True),
            "spent": parts.groupby(keys, dropna=False, as_index=False)["wall_seconds"].sum(),
            "curves": incumbent(ours),
            "ranks": rank_correlation(ours),
            "points": pd.concat(points) if points else pd.DataFrame(),
        }
        empty = pd.DataFrame(columns=list(CHOICE))
        filled = {name: table if len(table) else empty for name, table in tables.items()}
        return cls(rows=rows, **{name: _named(table) for name, table in filled.items()})

    def narrowed(self, choice: Mapping[str, Any]) -> Tables:
        """Return the lines that a picture of ``choice`` is drawn from.

        Those are the experiment's and its stand-in's. Of the ranking study all stand-ins stay,
        to be compared, except in ``rows``: there N_B and the chosen stand-in stay. Where HPO wasn't
        run on the stand-in, the experiment's own rows are none of its.
        """
        tables = {field.name: getattr(self, field.name) for field in fields(self)}
        narrow = {
            name: lines_of(table, choice, PAIR if name in ("ranks", "points") else CHOICE)
            for name, table in tables.items()
            if name != "rows"
        }
        rows = lines_of(self.rows, choice, PAIR)
        mine = rows["purpose"] == "ranking"
        if len(narrow["spent"]):
            mine |= rows["sampler"] == choice["sampler"]
        stand_in = (rows["proxy"] == choice["proxy"]) & np.isclose(
            rows["pruning_ratio"], choice["pruning_ratio"]
        )
        return Tables(rows=rows[mine & ((rows["role"] == "base") | stand_in)], **narrow)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Where no stand-in was made yet, its ratio is missing; 0 can be compared and chosen."""
    return table.assign(pruning_ratio=table["pruning_ratio"].astype(float).fillna(0.0))


def lines_of(table: pd.DataFrame, choice: Mapping[str, Any], keys: Sequence[str]) -> pd.DataFrame:
    """Return the lines of ``table`` that are of ``choice`` in all columns ``keys``."""
    if table.empty:
        return table
    kept = np.logical_and.reduce([table[key].to_numpy() == choice[key] for key in keys])
    return table[kept]


def choices(tables: Tables) -> pd.DataFrame:
    """Return what there is to choose: the distinct :data:`CHOICE`, those with HPO first.

    A stand-in that was ranked but never searched on is offered beside every sampler that the data
    set and network were searched with, or with an empty sampler where there is none.
    """
    tuned = tables.speeds[list(CHOICE)]
    ranks = tables.ranks
    known = ranks[ranks["proxy"] != CEILING][[*PAIR, *STAND_IN]]
    others = known.merge(tuned[CELL].drop_duplicates(), on=PAIR, how="left").fillna({"sampler": ""})
    frames = [frame[list(CHOICE)] for frame in (tuned, others) if len(frame)]
    if not frames:
        return tuned
    return pd.concat(frames, ignore_index=True).drop_duplicates(ignore_index=True)
