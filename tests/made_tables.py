"""Learning-curve tables made by formula, whose truth is known."""

import numpy as np
import pandas as pd

from proxyhpo.analysis.certified import certified
from proxyhpo.analysis.evidence import Evidence, write_replays
from proxyhpo.analysis.quality import race
from proxyhpo.analysis.released import cells, switches
from proxyhpo.analysis.ways import LadderWay, StudyWay, study_way
from proxyhpo.hpo.curves import table_of
from proxyhpo.hpo.ladder import LADDERS
from proxyhpo.hpo.tables import FIRST_TRUTH_SEED, SEARCH_SEEDS, TABLES, VERIFY_SEED
from proxyhpo.rows import as_frame, identity, write_rows

# entrant -> (octaves that its best learning rate lies above N_B's, accuracy, seconds a step)
ENTRANTS = {
    "base": (0.0, 0.55, 0.050),
    "uniform@0.25": (1.0, 0.50, 0.022),
    "snip@0.25": (0.8, 0.50, 0.028),
    "epochs@0.3": (-0.3, 0.43, 0.050),
    "uniform@0.25+epochs@0.3": (0.5, 0.41, 0.022),
    "subset@0.25": (-0.2, 0.42, 0.050),
}
NOISE = 0.012
TRUTH_SEEDS = 8
RECORDED = "2026-11-24T00:00:00+00:00"


def mean_accuracy(entrant, lr, weight_decay):
    """Return the accuracy that a training of ``entrant`` comes to, noise apart."""
    shift, top, _ = ENTRANTS[entrant]
    away = np.log2(lr) - np.log2(0.06) - shift
    decay = np.log2(weight_decay * lr) - np.log2(5e-4 * 0.06)
    return float(np.clip(top - 0.012 * away**2 - 0.002 * max(0.0, decay - 3) ** 2, 0.1, 1))


def made_rows(name="cifar10-resnet20", noise=NOISE, seed=0):
    """Return the rows of a whole table."""
    regime, rng = TABLES[name], np.random.default_rng(seed)
    rows = []

    def add(entrant, levels, weights, purpose):
        budget = max(1, round(regime.epochs * (0.3 if "epochs" in entrant else 1)))
        mean = mean_accuracy(entrant, **regime.configuration(levels))
        reached = mean + noise * rng.normal()
        curve = reached - (mean - 0.1) * 0.6 * (1 - np.arange(1, budget + 1) / budget)
        curve[:-1] += noise * rng.normal(size=budget - 1)
        curve = np.clip(curve, 0, 1)
        samples = regime.samples // (4 if entrant.startswith("subset") else 1)
        half = max(1, budget // 2)

        def text(values):
            return " ".join(f"{value:.4f}" for value in values)

        rows.append(
            {
                **regime.labels(entrant),
                "purpose": purpose,
                "seed": weights,
                **identity(regime.configuration(levels)),
                "level_lr": levels[0],
                "level_weight_decay": levels[1],
                "state": "complete",
                "epochs": budget,
                "budget": budget,
                "val_accuracy": float(curve[-1]),
                "val_loss": float(3 * (1 - curve[-1])),
                "test_accuracy": float(np.clip(curve[-1] + 0.004 * rng.normal(), 0, 1)),
                "curve": text(curve),
                "curve_loss": text(3 * (1 - curve)),
                "curve_averaged": text(curve[:half] + 0.02),
                "curve_averaged_loss": text(2.9 * (1 - curve[:half])),
                "samples": samples * budget,
                "side": regime.side,
                "batch_size": regime.batch_size,
                "macs": 10_000_000 // (4 if "@0.25" in entrant and "subset" not in entrant else 1),
                "parameters": 270_000,
                "wall_seconds": 1.0,
                "cpu_seconds": 1.0,
                "device": "made",
                "threads": 1,
                "recorded": RECORDED,
            }
        )

    for levels in regime.configurations:
        for entrant in regime.entrants:
            for weights in SEARCH_SEEDS:
                add(entrant, levels, weights, "curve")
        add("base", levels, VERIFY_SEED, "verify")
        good = mean_accuracy("base", **regime.configuration(levels)) > 0.53
        for extra in range(TRUTH_SEEDS if good else 1):
            add("base", levels, FIRST_TRUTH_SEED + extra, "truth")
    return as_frame(rows)


def made_steps(entrants=tuple(ENTRANTS), repeats=9, seed=0):
    """Return a step benchmark."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "entrant": entrant,
            "repeat": repeat,
            "step_seconds": ENTRANTS[entrant][2] * (1 + 0.02 * rng.normal()),
            "picture_seconds": ENTRANTS[entrant][2] / 250 * (1 + 0.02 * rng.normal()),
            "build_seconds": 0.0 if entrant == "base" else 1.0,
            "recorded": RECORDED,
        }
        for repeat in range(repeats)
        for entrant in entrants
    )


def made_table(name="cifar10-resnet20", **options):
    """Return a whole table."""
    regime = TABLES[name]
    return table_of(regime, made_rows(name, **options), made_steps(regime.entrants))


def write_table(folder, name="cifar10-resnet20", rows=None):
    """Write a table, whole unless ``rows`` are given, and its step benchmark to ``folder``."""
    write_rows(folder / f"{name}.csv", made_rows(name) if rows is None else rows)
    made_steps(TABLES[name].entrants).to_csv(folder / f"{name}-steps.csv", index=False)


def made_evidence(folder):
    """Write two whole tables and their replays, small ones, to ``folder``; return the evidence."""
    replays = folder / "replays"
    replays.mkdir(parents=True)
    for name in ("cifar10-resnet20", "cifar10-resnet56"):
        write_table(folder / "curves", name)
    evidence = Evidence(folder / "curves")
    for name, table in evidence.tables.items():
        entrants = [one for one in table.entrants if one != "base"]
        ways = {study_way("base", 0): StudyWay("random")}
        ways |= {
            study_way(one, 3, same_time=same): StudyWay("random", one, 3, same_time=same)
            for one in entrants
            for same in (False, True)
        }
        ways["best after one epoch"] = LadderWay(LADDERS["best_k"])
        made = {"race": race(table, ways, draws=3, seeds=1)}
        if name == "cifar10-resnet20":
            made["switches"] = switches(table, studies=2)
            made["certified"] = certified(table, ["snip@0.25"], studies=4)
        else:
            made["cells"] = cells(table, samplers={"tpe": 2}, trials=8)
        for kind, frame in made.items():
            write_replays(replays / f"{name}-{kind}.csv", frame)
    return evidence
