"""What must stay the same while code is moved, as checksums: ``python benchmarks/frozen.py``.

Prints one line a thing: recorded rows as they are read, the generated pages, every figure's file,
the proxies of three families by every criterion, and the trials of one smoke experiment (about
two minutes, one core). Run it before and after, and compare: ``diff before.txt after.txt``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from proxyhpo import (
    PROFILES,
    Experiment,
    build_network,
    load_dataset,
    make_proxy,
    run_experiment,
)
from proxyhpo.rows import read_rows

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("resnet8", "vgg11_bn_x0.25", "mobilenetv2_x0.35")
CRITERIA = ("snip", "synflow", "random", "uniform", "l1")
TRIAL = ["purpose", "role", "config_id", "trial", "state", "epochs", "val_accuracy", "curve"]


def show(name: str, content: bytes) -> None:
    """Print the checksum of one thing."""
    print(f"{hashlib.sha256(content).hexdigest()[:16]}  {name}", flush=True)


def main() -> None:
    """Print all checksums."""
    for path in sorted((ROOT / "results" / "curves").glob("*.csv")):
        if not path.stem.endswith("-steps"):
            show(f"rows of {path.stem}", read_rows(path).to_csv(index=False).encode())
    for page in ("README.md", "figures/README.md", "RESULTS.md"):
        if (ROOT / page).exists():
            show(page, (ROOT / page).read_bytes())
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "results").symlink_to(ROOT / "results")
        command = [sys.executable, "-m", "proxyhpo", "figures", "--out", scratch]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        for figure in sorted(Path(scratch, "figures").rglob("*.*")):
            show(str(figure.relative_to(scratch)), figure.read_bytes())
    pictures = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 10
    for family in FAMILIES:
        for criterion in CRITERIA:
            network = build_network(family, classes=10, seed=0)
            try:
                proxy = make_proxy(
                    network, pictures, criterion=criterion, macs=0.25, batch=(pictures, labels)
                )
            except ValueError as error:
                show(f"{family} {criterion}", str(error).encode())
            else:
                kept = json.loads(proxy.to_json())
                del kept["seconds"]  # of making it
                show(f"{family} {criterion}", json.dumps(kept).encode())
    data = load_dataset("digits", subset=50)
    show("digits", data.train.images.numpy().tobytes() + data.val.images.numpy().tobytes())
    with tempfile.TemporaryDirectory() as scratch:
        with contextlib.redirect_stdout(io.StringIO()):
            rows = run_experiment(
                Experiment("digits", "resnet8", "tpe", PROFILES["smoke"]), out=scratch
            )
        shown = rows[[*TRIAL, "test_accuracy", "param_lr"]]
        show("trials of digits, resnet8, tpe", shown.to_csv(index=False).encode())


if __name__ == "__main__":
    main()
