"""Made-up rows for tests of tables and figures: nobody measured them."""

import numpy as np
import pandas as pd

from proxyhpo.rows import COLUMNS, config_id

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


def frame(rows):
    """Rows as a frame, like ``rows.load_results``; nothing is checked."""
    return pd.DataFrame(rows).assign(file="made-up.csv")


def experiment(*, share=0.6, trials=12, rng=0, accuracy=0.9, **identity):
    """All rows of one experiment whose proxy takes ``share`` of the base's seconds."""
    rng = np.random.default_rng(rng)
    cell = IDENTITY | identity
    proxy = cell | PROXY
    rows = [row("data", 0.5, **cell), row("proxy", 2.0, proxy_seconds=1.9, **proxy)]
    for role, scale in ((cell, 1.0), (proxy, share)):
        for trial in range(trials):
            lr = 10 ** rng.uniform(-4, 0)
            epochs = int(rng.choice([1, 3, 9]))
            state = "complete" if epochs == 9 else "stopped"
            seconds = 10 * epochs * scale * rng.uniform(0.9, 1.1)
            reached = accuracy - 0.1 * (np.log10(lr) + 2) ** 2 + rng.normal(0, 0.01)
            rows.append(
                row(
                    "study",
                    seconds + 0.2,
                    trial=trial,
                    state=state,
                    epochs=epochs,
                    budget=9,
                    val_accuracy=float(np.clip(reached, 0.1, 1)),
                    train_seconds=seconds * 0.9,
                    eval_seconds=seconds * 0.1,
                    sampler_seconds=0.1,
                    samples=1000 * epochs,
                    macs=int(1_000_000 * scale),
                    config_id=config_id({"lr": lr}),
                    param_lr=lr,
                    **role,
                )
            )
    full = {"epochs": 9, "budget": 9, "samples": 9000, "macs": 1_000_000}
    for trial in range(2):
        reached = accuracy - 0.01 * trial
        rows.append(row("verify", 90.0, trial=trial, val_accuracy=reached, **full, **cell))
    for choice, reached in (("base", accuracy), ("proxy", accuracy - 0.02), ("verified", accuracy)):
        final = {"choice": choice, "test_accuracy": reached + rng.normal(0, 0.003)}
        rows.append(row("final", 100.0, trial=0, **final, **full, **cell))
    return rows


def rival(sampler, **identity):
    """Rows of a way of HPO that needs no proxy: what an experiment records of N_B alone."""
    rows = experiment(sampler=sampler, **identity)
    mine = [r for r in rows if r["role"] == "base" and r["purpose"] != "verify"]
    return [r for r in mine if r["choice"] in ("", "base")]


def ranking(stand_ins=None, *, n=24, rng=0, **identity):
    """Ranking rows: ``stand_ins`` maps (proxy, ratio) to (noise of its accuracy, its share)."""
    rng = np.random.default_rng(rng)
    stand_ins = stand_ins or {("snip", 0.5): (0.03, 0.6), ("uniform", 0.5): (0.04, 0.55)}
    cell = IDENTITY | {"sampler": ""} | identity
    quality = np.clip(0.9 - 0.2 * rng.uniform(-1.5, 1.5, n) ** 2, 0.1, 1)
    entrants = [(0, cell, 0.01, 1.0), (1, cell, 0.01, 1.0)]
    for (proxy, ratio), (noise, share) in stand_ins.items():
        other = cell | {"role": "proxy", "proxy": proxy, "pruning_ratio": ratio}
        entrants.append((1, other, noise, share))
    rows = []
    for seed, who, noise, share in entrants:
        for index in range(n):
            rows.append(
                row(
                    "ranking",
                    10.0 * share,
                    val_accuracy=float(np.clip(quality[index] + rng.normal(0, noise), 0.05, 1)),
                    config_id=f"{index:08x}",
                    epochs=9,
                    budget=9,
                    samples=9000,
                    macs=int(1_000_000 * share),
                    param_lr=0.01 * (index + 1),
                    **(who | {"seed": seed}),
                )
            )
    return rows


STAND_INS = {
    ("snip", 0.5): (0.03, 0.6),
    ("snip", 0.75): (0.05, 0.4),
    ("snip", 0.9): (0.1, 0.25),
    ("random", 0.5): (0.04, 0.6),
    ("random", 0.75): (0.06, 0.4),
    ("uniform", 0.5): (0.03, 0.55),
    ("uniform", 0.75): (0.05, 0.35),
    ("uniform", 0.9): (0.09, 0.22),
    ("epochs", 0.5): (0.05, 0.5),
    ("subset", 0.5): (0.06, 0.5),
    ("resolution", 0.5): (0.08, 0.45),
}


TRUST = {
    (proxy, round(1 - share, 2)): (0.1 - 0.15 * share, 0.25 + share + 0.02 * number)
    for number, proxy in enumerate(("snip", "synflow", "random", "uniform"))
    for share in (0.5, 0.25, 0.1)
} | {
    ("epochs", 0.75): (0.05, 0.18),
    ("subset", 0.75): (0.05, 0.26),
    ("resolution", 0.75): (0.06, 0.5),
}


def whole_grid(profile="laptop"):
    """All 27 experiments and the ranking studies of two data sets."""
    rows = []
    networks = ("resnet56", "vgg16_bn", "mobilenetv2")
    for d, dataset in enumerate(("cifar10", "cifar100", "tinyimagenet")):
        for m, network in enumerate(networks):
            names = {"profile": profile, "dataset": dataset, "network": network}
            for s, sampler in enumerate(("tpe", "cmaes", "gp")):
                number = 9 * d + 3 * m + s
                share = 0.3 + 0.03 * number
                rows += experiment(share=share, rng=number, sampler=sampler, **names)
            rows += ranking(STAND_INS if d == 0 else None, rng=3 * d + m, **names)
    return rows
