"""Tune a pruned stand-in for a deep network, and measure how far it can be trusted."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from proxyhpo.config import load

try:
    __version__ = version("proxyhpo")
except PackageNotFoundError:  # a bare checkout on the path, before it is installed
    __version__ = "0.0.0"

# Public names load on first use: figures and the command line must not wait for torch.
_HOMES = {
    "Experiment": "config",
    "InputError": "config",
    "PROFILES": "config",
    "Proxy": "pruning",
    "Run": "experiment",
    "build_network": "models",
    "load_dataset": "data",
    "load_results": "results",
    "make_proxy": "pruning",
    "run_experiment": "experiment",
    "scaled": "config",
    "tune": "tuning",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'proxyhpo' has no attribute {name!r}")
    return getattr(load(f"proxyhpo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
