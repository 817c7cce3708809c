"""Is this Python ready? What ``run_all.sh`` asks before it runs or installs anything.

``python -m proxyhpo.environment [ARGUMENT ...]`` takes the arguments of ``run_all.sh``. Its exit
status is 0 if all that ``pyproject.toml`` asks for is installed, 1 if not (what is lacking is
printed), and 2 for wrong arguments. Installed versions are read, nothing is imported: importing
torch would take seconds. The standard library is enough to get an answer.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from proxyhpo.config import InputError, choose
from proxyhpo.runner import VERBS, parse

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
NAMED = 4


def requirements(extras: Iterable[str] = ()) -> dict[str, str]:
    """Return what ``pyproject.toml`` asks for, with these extras: name -> range of versions."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return dict(re.findall(r"^([\w.-]+?)\s*([<>=!~].*)?$", text)[0] for text in wanted)


def shortfall(wanted: dict[str, str]) -> list[str]:
    """Return which of ``wanted`` aren't installed, or else which are in another version."""
    installed = {name: found for name in wanted if (found := _version(name))}
    if len(installed) < len(wanted):
        return [name for name in wanted if name not in installed]
    from packaging.specifiers import SpecifierSet  # one of those that aren't missing

    return [
        f"{name}{wanted[name]} (it has {found})"
        for name, found in installed.items()
        if not SpecifierSet(wanted[name]).contains(found, prereleases=True)
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(arguments: list[str]) -> int:
    """Check ``arguments`` and this Python; return the exit status."""
    testing = arguments[:1] == ["test"]
    try:
        if arguments and not arguments[0].startswith("-"):
            choose("verb", arguments[0], {**VERBS, "test": "run the tests"})
        if not testing:
            parse(arguments)
    except InputError as error:
        print(f"proxyhpo: {error}", file=sys.stderr)
        return 2
    lacking = shortfall(requirements(["test"] if testing else []))
    if lacking:
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        print(", ".join(lacking[:NAMED]) + more)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
