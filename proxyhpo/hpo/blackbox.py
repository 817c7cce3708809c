"""Recorded tables for other people's searches: files that Syne Tune opens as a blackbox.

The layout is that of ``syne_tune.blackbox_repository.blackbox_tabular.serialize`` (Salinas et al.
2022, Syne Tune: A Library for Large Scale Hyperparameter Tuning), as of version 0.16.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from proxyhpo.config import InputError
from proxyhpo.hpo.curves import Table

OBJECTIVES = ("valid_error", "valid_loss", "elapsed_time")
"""After each epoch: share of errors, cross entropy, seconds since the training began."""


def export_table(table: Table, folder: str | Path, entrant: str = "base") -> Path:
    """Write the trainings of ``entrant`` that studies may see to ``folder``; return it.

    Five files: ``hyperparameters.parquet`` (a line a configuration, in the table's order),
    ``objectives_evaluations.npy`` ``(1, C, S, E, 3)`` of :data:`OBJECTIVES` by configuration,
    weight seed and epoch, ``fidelities_values.npy`` (epochs done), ``configspace.json`` with
    ``fidelityspace.json``, and ``metadata.json``. Truth and verification stay here.

    Raises:
        InputError: an unknown entrant, one without measured step costs, or no library that writes
            Parquet.
    """
    curves, regime = table.curves(entrant), table.regime
    epochs = np.arange(1, curves.epochs + 1)
    seconds = np.broadcast_to(table.seconds(entrant, epochs), curves.accuracy.shape)
    values = np.stack([1 - curves.accuracy, curves.loss, seconds], axis=-1)
    tried = pd.DataFrame([regime.configuration(levels) for levels in regime.configurations])
    space = {
        name: _domain("Categorical", categories=sorted(map(float, tried[name].unique())))
        for name in tried
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tried.to_parquet(folder / "hyperparameters.parquet", index=False, compression="gzip")
    except ImportError as error:
        raise InputError("a table's export is in Parquet: pip install pyarrow") from error
    # a task of one, in the precision that Syne Tune keeps
    np.save(folder / "objectives_evaluations.npy", values[None].astype(np.float32))
    np.save(folder / "fidelities_values.npy", epochs)
    documents = {
        "configspace": space,
        "fidelityspace": {"epochs": _domain("Integer", lower=1, upper=int(epochs[-1]))},
        "metadata": {"objectives_names": OBJECTIVES, "task_names": [table.name]},
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def _domain(kind: str, **options: object) -> dict[str, object]:
    """Return a domain of a search space as Syne Tune writes it, to be drawn from uniformly."""
    uniform = {"sampler_cls": "Uniform", "sampler_kwargs": {}}
    return {"domain_cls": kind, "domain_kwargs": options, **uniform}
