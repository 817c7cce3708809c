"""The notebooks: one template, the grid that is generated from it, and papermill.

``notebooks/experiment.ipynb`` is the template. ``notebooks/grid/`` holds a copy of it for each data
set, network and HPO method of the paper, with the parameters set; these are generated, never
edited. The repository's address stands once, among the project's URLs, and is generated into each
notebook's badge and its cell for Colab.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path

import nbformat
import papermill
from nbformat import NotebookNode

from proxyhpo.config import PROFILES, Experiment, InputError, grid
from proxyhpo.rows import write_whole

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
TEMPLATE = "experiment.ipynb"
GRID_PROFILE = "laptop"
CELL_SECONDS = 48 * 3600
"""A cell that takes longer is taken for dead; the longest is a study at the paper's scale."""


def project() -> dict:
    """Return the checkout's ``[project]`` table, whether or not the package is installed."""
    return tomllib.loads((FOLDER.parent / "pyproject.toml").read_text("utf-8"))["project"]


def address() -> str:
    """Return the repository's address, from the project's URLs."""
    return project()["urls"]["Repository"]


def badge(path: str) -> str:
    """Return the Markdown of the badge that opens notebook ``path`` (in notebooks/) on Colab."""
    repository = address().removeprefix("https://")
    target = f"https://colab.research.google.com/{repository.replace('.com', '', 1)}"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({image})]({target}/blob/main/notebooks/{path})"


def colab_cell() -> str:
    """Return the source of the cell that installs the package on Colab, and only there."""
    package = f"proxyhpo @ git+{address()}@v{project()['version']}"
    return f'import sys\n\nif "google.colab" in sys.modules:\n    %pip install -q "{package}"'


def rows_cell() -> str:
    """Return the source of the cell that fetches the recorded rows on Colab, and only there."""
    clone = f"!git clone -q --depth 1 --branch v{project()['version']} {address()} recorded"
    return f'if "google.colab" in sys.modules and out is None:\n    {clone}\n    out = "recorded"'


def cost_cell() -> str:
    """Return the Markdown that tells what an experiment costs at each profile."""
    lines = ["**Cost**, in minutes of one experiment:", "", "| profile | minutes | with |"]
    lines += ["|---|---|---|"]
    for profile in PROFILES.values():
        lines.append(f"| `{profile.name}` | {profile.minutes:g} | {profile.machine} |")
    return "\n".join(lines)


def stamp(notebook: NotebookNode, path: str) -> NotebookNode:
    """Return ``notebook`` with its generated cells, told by their tags, as they belong to ``path``.

    ``badge`` opens it on Colab, ``colab`` installs the package there, ``rows`` fetches what is
    recorded, and ``cost`` tells the minutes of each profile.
    """
    made = {"badge": badge(path), "colab": colab_cell(), "rows": rows_cell(), "cost": cost_cell()}
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        for tag in set(made) & set(cell.metadata.get("tags", [])):
            cell.source = made[tag]
    return notebook


def grid_notebooks() -> dict[str, NotebookNode]:
    """Return the generated notebooks, by file name in notebooks/grid/."""
    template = nbformat.read(FOLDER / TEMPLATE, as_version=4)
    made = {}
    for experiment in grid(PROFILES[GRID_PROFILE]):
        name = grid_name(experiment)
        notebook = stamp(template, f"grid/{name}")
        values = {
            "dataset": experiment.dataset,
            "network": experiment.network,
            "sampler": experiment.sampler,
            "profile": GRID_PROFILE,
        }
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = set_parameters(cell.source, values)
            if "title" in cell.metadata.get("tags", []):
                title = f"# {experiment.dataset}, {experiment.network}, {experiment.sampler}"
                cell.source = re.sub(r"^# .*", title, cell.source, count=1)
        made[name] = notebook
    return made


def grid_name(experiment: Experiment) -> str:
    """Return the file name of an experiment's notebook in notebooks/grid/."""
    return f"{experiment.pair}-{experiment.sampler}.ipynb"


def set_parameters(source: str, values: Mapping[str, object]) -> str:
    """Return a parameters cell with these values in place of its own."""
    for name, value in values.items():
        line = rf'^{name} = ("[^"]*"|[^#\n]*?)(?=  #|$)'
        quoted = f'"{value}"' if isinstance(value, str) else repr(value)
        source, count = re.subn(line, f"{name} = {quoted}", source, count=1, flags=re.MULTILINE)
        if not count:
            raise InputError(f"the parameters cell has no {name!r}")
    return source


def generate() -> list[Path]:
    """Write badges, Colab cells and notebooks/grid/ anew; return the files that changed."""
    wanted = {
        FOLDER / name.name: stamp(nbformat.read(name, as_version=4), name.name)
        for name in sorted(FOLDER.glob("*.ipynb"))
    }
    changed = _write_all(wanted)
    wanted = {FOLDER / "grid" / name: notebook for name, notebook in grid_notebooks().items()}
    for stale in set((FOLDER / "grid").glob("*.ipynb")) - set(wanted):
        stale.unlink()
        changed.append(stale)
    return changed + _write_all(wanted)


def text(notebook: NotebookNode) -> str:
    """Return a notebook as the text of its file."""
    return nbformat.writes(notebook, version=4) + "\n"


def source_of(experiment: Experiment) -> Path:
    """Return the notebook that runs ``experiment``: the grid's where it has one."""
    generated = FOLDER / "grid" / grid_name(experiment)
    return generated if generated.exists() else FOLDER / TEMPLATE


def execute(source: Path, target: Path, parameters: dict[str, object]) -> None:
    """Run notebook ``source`` with ``parameters``; its executed copy is ``target``.

    What the notebook prints goes to this module's logger as it comes. A run that fails or is
    interrupted leaves ``target`` as it was, and its copy beside it as ``*.failed.ipynb``.

    Raises:
        InputError: a parameter that the notebook doesn't have; papermill itself would only warn.
        papermill.PapermillExecutionError: a cell failed.
    """
    known = papermill.inspect_notebook(str(source))
    if unknown := sorted(set(parameters) - set(known)):
        raise InputError(
            f"{source.name} has no parameter {unknown[0]!r}: choose from {', '.join(known)}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".failed.ipynb")
    papermill.execute_notebook(
        str(source),
        str(draft),
        parameters=parameters,
        kernel_name="python3",
        progress_bar=False,
        log_output=True,
        execution_timeout=CELL_SECONDS,
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # its words would read as ours
    )
    os.replace(draft, target)  # noqa: PTH105


def tell_output(prefixed: bool) -> None:
    """Show on standard output what executed notebooks print, with the experiment's name if asked.

    The name is that of the thread which runs the notebook.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: _tidy(record, prefixed))
    logger = logging.getLogger("papermill")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


def _tidy(record: logging.LogRecord, prefixed: bool) -> bool:
    """Keep what the notebook printed, drop papermill's own words and pictures' stand-in texts."""
    message = record.getMessage().strip()
    if record.funcName != "log_output_message" or not message or message.startswith("<"):
        return False
    indent = f"  {threading.current_thread().name}: " if prefixed else "  "
    record.msg, record.args = "\n".join(indent + line for line in message.splitlines()), ()
    return True


def _write_all(notebooks: dict[Path, NotebookNode]) -> list[Path]:
    changed = []
    for path, notebook in notebooks.items():
        wanted = text(notebook)
        if not path.exists() or path.read_text(encoding="utf-8") != wanted:
            write_whole(path, wanted.encode())
            changed.append(path)
    return changed
