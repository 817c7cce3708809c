"""What is checked before an experiment's work: names, folders, and settings taken up."""

from __future__ import annotations

import json
from pathlib import Path

from proxyhpo.config import Experiment, InputError, Profile, choose
from proxyhpo.data.datasets import DATASETS
from proxyhpo.hpo import search
from proxyhpo.hpo.stand_ins import parse
from proxyhpo.models import MODELS
from proxyhpo.rows import write_whole
from proxyhpo.training import check_configuration


def check(experiment: Experiment) -> None:
    """Raise :class:`InputError` for any name in ``experiment`` that no registry knows."""
    profile = experiment.profile
    if not experiment.dataset.startswith("imagefolder:"):
        choose("dataset", experiment.dataset, {**DATASETS, "imagefolder:PATH": None})
    choose("network", experiment.network, MODELS)
    choose("sampler", experiment.sampler, search.SAMPLERS)
    choose("trial pruner", profile.trial_pruner, search.TRIAL_PRUNERS)
    check_configuration(choose("search space", profile.space, search.SPACES))
    for name in (profile.proxy, *profile.ranked):
        parse(name)


def make_folder(folder: Path) -> None:
    """Make a folder; raise :class:`InputError` where it can't be written."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"can't write to the output folder {folder}: {error.strerror}") from None


def hold_settings(path: Path, profile: Profile, recorded: Path) -> None:
    """Hold a run that is taken up, or is ``recorded``, to the settings that it was started with.

    Raises:
        InputError: they differ; names what.
    """
    wanted = json.loads(json.dumps(profile.scale))
    if path.exists():
        started = json.loads(path.read_text())
        told = ", ".join(
            f"{key} was {started.get(key)}, now {value}"
            for key, value in wanted.items()
            if started.get(key) != value
        )
        if told:
            both = f" and {recorded}" if recorded.exists() else ""
            raise InputError(
                f"{path.parent} was started with other settings: {told}; "
                f"remove that folder{both}, or use another one for results"
            )
    write_whole(path, json.dumps(wanted, indent=1).encode())
