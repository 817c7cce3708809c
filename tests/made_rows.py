"""Rows that nobody measured."""

from proxyhpo.rows import COLUMNS

IDENTITY = {
    "profile": "laptop",
    "dataset": "digits",
    "network": "resnet8",
    "role": "base",
    "proxy": "",
    "pruning_ratio": 0.0,
    "sampler": "tpe",
    "seed": 0,
}
PROVENANCE = {
    "device": "a processor",
    "threads": 1,
    "precision": "fp32",
    "torch": "2.15.0",
    "optuna": "5.0.0",
    "version": "0.1.0",
    "commit": "0123456789abcdef",
    "recorded": "2026-11-21T12:00:00+00:00",
}
PROXY = {"role": "proxy", "proxy": "snip", "pruning_ratio": 0.5}


def row(purpose, seconds=1.0, **fields):
    """One whole row; CPU seconds are the wall-clock ones unless given."""
    costs = {"state": "complete", "wall_seconds": seconds, "cpu_seconds": seconds, "load": 1.0}
    missing = {name: column.missing for name, column in COLUMNS.items()}
    return missing | IDENTITY | PROVENANCE | costs | {"purpose": purpose} | fields
