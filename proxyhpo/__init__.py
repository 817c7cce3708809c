"""Tune a pruned stand-in for a deep network, and measure how far it can be trusted.

A network of your own, cut to a quarter of its multiply-accumulates, with fresh weights:

    proxy = make_proxy(network, pictures, criterion="snip", macs=0.25, batch=(pictures, labels))
    stand_in = proxy.build(seed=0)

Hyperparameters, searched where it is cheap and verified on the network itself:

    print(tune(lambda: MyNetwork(classes=10), (pictures, labels)))

One experiment of the grid, from pictures to recorded rows:

    rows = run_experiment(Experiment("digits", "resnet8", "tpe", PROFILES["smoke"]))

Public names, each with a help of its own:

    tune            hyperparameters for your own network, searched where it is cheap
    transfer_check  whether a stand-in's learning rate suits the network: a look beforehand
    Settings        all other settings of such a search
    make_proxy      cut a network down to a share of its cost; return its proxy
    Proxy           what is kept of a network: builds it with fresh weights, travels as JSON
    load_dataset    pictures and labels of a data set, split and in memory
    build_network   a base network by name, with fresh weights
    Experiment      one cell of the grid: data set, network, HPO method, profile, seed
    PROFILES        the scales that experiments are run at, by name
    Profile         one scale: pictures, epochs, trials and all else that sets the cost
    scaled          a profile, changed as asked
    run_experiment  run all steps of an experiment, or what is missing of them
    Run             the same, step by step
    load_table      a recorded learning-curve table: trainings that studies can be replayed on
    replay          rows of a study on such a table, in milliseconds
    load_results    recorded rows of a folder as one frame
    InputError      bad input, named before any work, with the valid choices

Figures are in ``proxyhpo.report``, tables in ``proxyhpo.analysis``; neither loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyhpo.config import PROFILES, Experiment, InputError, Profile, installed, load, scaled

if TYPE_CHECKING:  # what editors and type checkers see of the names that load on first use
    from proxyhpo.data.datasets import load_dataset as load_dataset
    from proxyhpo.experiment.protocol import Run as Run
    from proxyhpo.experiment.protocol import run_experiment as run_experiment
    from proxyhpo.hpo.curves import load_table as load_table
    from proxyhpo.hpo.replay import replay as replay
    from proxyhpo.models import build_network as build_network
    from proxyhpo.pruning.proxy import Proxy as Proxy
    from proxyhpo.pruning.proxy import make_proxy as make_proxy
    from proxyhpo.rows import load_results as load_results
    from proxyhpo.tuning.settings import Settings as Settings
    from proxyhpo.tuning.transfer import transfer_check as transfer_check
    from proxyhpo.tuning.tune import tune as tune

__version__ = installed("proxyhpo") or "0.0.0"  # a bare checkout isn't installed

# The others load on first use: figures and the command line must not wait for torch.
_HOMES = {
    "Proxy": "pruning.proxy",
    "Run": "experiment.protocol",
    "Settings": "tuning.settings",
    "build_network": "models",
    "load_dataset": "data.datasets",
    "load_results": "rows",
    "load_table": "hpo.curves",
    "make_proxy": "pruning.proxy",
    "replay": "hpo.replay",
    "run_experiment": "experiment.protocol",
    "transfer_check": "tuning.transfer",
    "tune": "tuning.tune",
}

__all__ = ["PROFILES", "Experiment", "InputError", "Profile", "__version__", "scaled"]
__all__ += sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'proxyhpo' has no attribute {name!r}")
    return getattr(load(f"proxyhpo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
