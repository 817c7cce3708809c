"""Trials without a network: a smooth function takes the place of the training."""

import math

from proxyhpo.hpo.search import SPACES, StudySettings
from proxyhpo.hpo.study import Study, work
from proxyhpo.training import Outcome

SETTINGS = StudySettings(
    "a study", SPACES["default"], "tpe", "hyperband", trials=12, epochs=9, seed=1
)


def settings(**changes):
    """The settings above, changed."""
    return StudySettings(**{**vars(SETTINGS), **changes})


def accuracy(configuration, epoch):
    """Best at lr = 0.03, better with every epoch."""
    return math.exp(-((math.log10(configuration["lr"]) + 1.5) ** 2)) * (1 - 0.5**epoch)


def attempt(claim, epochs=9):
    """What a worker does with a claim."""
    curve, state = [], "complete"
    for epoch in range(1, epochs + 1):
        curve.append(accuracy(claim.configuration, epoch))
        if epoch < epochs and claim.stop(epoch, curve[-1]):
            state = "stopped"
            break
    outcome = Outcome(state, len(curve), curve[-1], 1.0, tuple(curve), 0, 0, 0, "fp32")
    return outcome, [{"trial": claim.number, "state": state, "lost": claim.lost}]


def opened(chosen, where, name="", **options):
    """The study, made or taken up."""
    return Study.open(chosen, where, name, **options)


def run(study, count=None):
    """Train ``count`` trials, or all that are left."""
    epochs = study.settings.epochs
    if count is None:
        work(study, lambda claim: attempt(claim, epochs))
        return study
    for _ in range(count):
        with study.claim() as claim:
            claim.tell(*attempt(claim, epochs))
    return study


def configurations(study):
    """Parameters of the finished trials."""
    return [trial.params for trial in study.finished]
