"""Where a row comes from: versions, the checkout's commit, and when it was made."""

from __future__ import annotations

import os
import subprocess
import tomllib
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent


def provenance() -> dict[str, str]:
    """Return the columns torch, optuna, version, commit and recorded (now).

    The device, its threads and its precision are the trainer's to say.
    """
    versions = {name: _version(name) for name in ("torch", "optuna")}
    recorded = datetime.now(UTC).isoformat(timespec="seconds")
    return {**versions, "version": _version("proxyhpo"), "commit": commit(), "recorded": recorded}


@cache
def commit(folder: Path = HERE) -> str:
    """Return the git commit of the checkout that ``folder`` belongs to; "" outside git.

    ``-dirty`` is added where a file of ``folder`` differs from the commit: results and figures,
    which lie outside it, change while a run goes on. Looked up once a process.
    """

    def git(*arguments: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        # an installed copy may lie inside somebody else's checkout: only a tracked one counts
        git("ls-files", "--error-unmatch", ".")
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        project = HERE.parent / "pyproject.toml"
        if package != "proxyhpo" or not project.is_file():
            return ""
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
