"""The notebooks: one template, the grid that is generated from it, and papermill.

``notebooks/experiment.ipynb`` is the template. ``notebooks/grid/`` holds a copy of it for each data
set, network and HPO method of the paper, with the parameters set; these are generated, never
edited. The repository's address is written once, among the project's URLs, and generated into each
notebook's badge and its cell for Colab. The notebooks that visitors read first (:data:`SHOWN`) are
kept with their outputs, stamped with the cells and recorded rows that these came from.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import os
import re
import sys
import tempfile
import threading
import tomllib
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from pathlib import Path

import nbformat
import papermill
from nbformat import NotebookNode
from PIL import Image

from proxyhpo.config import PROFILES, Experiment, InputError, grid, write_changed
from proxyhpo.report.style import sampler_label, table_label

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
TEMPLATE = "experiment.ipynb"
PACKED = Path(__file__).resolve().parents[1] / "recorded" / TEMPLATE
"""Where a wheel has the template."""
SHOWN = ("00_start_here", "figures", "review", "anatomy", "your_own", "explore")
"""The notebooks in git with their outputs."""
PICTURES_ALONE = ("explore",)
"""Those of :data:`SHOWN` that keep pictures alone: widgets are dead without a kernel."""
READERS = ("Evidence", "explorer")
"""Names in a notebook's code that read recorded rows."""
STAMP = "proxyhpo"
"""The key, in a shown notebook's metadata, of what its outputs came from."""
COLOURS = 256
"""Of a stored picture: figures are flat, and a notebook should stay under 400 KB."""
CELL_SECONDS = 48 * 3600
"""The time limit of a cell; the longest is a study at the paper's scale."""


def project() -> dict:
    """Return the checkout's ``[project]`` table, whether or not the package is installed."""
    return tomllib.loads((FOLDER.parent / "pyproject.toml").read_text("utf-8"))["project"]


def address() -> str:
    """Return the repository's address, from the project's URLs."""
    return project()["urls"]["Repository"]


def badge(path: str) -> str:
    """Return the Markdown of the badge that opens notebook ``path`` (in notebooks/) on Colab."""
    repository, colab = address().removeprefix("https://"), "https://colab.research.google.com"
    target = f"{colab}/{repository.replace('.com', '', 1)}/blob/main/notebooks/{path}"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({target})"


def colab_cell() -> str:
    """Return the source of the cell that installs the package on Colab, and only there."""
    package = f"proxyhpo @ git+{address()}@v{project()['version']}"
    return f"""import sys
from importlib.util import find_spec

if "google.colab" in sys.modules:
    %pip install -q "{package}"
    if not find_spec("proxyhpo"):
        raise SystemExit("{address()} can't be reached, see above")"""


def cost_cell() -> str:
    """Return the Markdown that tells what an experiment costs at each profile."""
    lines = ["**Cost**, in minutes of one experiment:", "", "| profile | minutes | with |"]
    rows = [f"| `{one.name}` | {one.minutes:g} | {one.machine} |" for one in PROFILES.values()]
    return "\n".join([*lines, "|---|---|---|", *rows])


def stamp(notebook: NotebookNode, path: str) -> NotebookNode:
    """Return ``notebook`` with its generated cells, told by their tags, as they belong to ``path``.

    ``badge`` opens it on Colab, ``colab`` installs the package there, and ``cost`` tells the
    minutes of each profile.
    """
    made = {"badge": badge(path), "colab": colab_cell(), "cost": cost_cell()}
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        for tag in set(made) & set(cell.metadata.get("tags", [])):
            cell.source = made[tag]
    return notebook


def grid_notebooks() -> dict[str, NotebookNode]:
    """Return the generated notebooks, by file name in notebooks/grid/."""
    template = nbformat.read(FOLDER / TEMPLATE, as_version=4)
    made = {}
    for experiment in grid(PROFILES["table"]):
        name = grid_name(experiment)
        notebook = stamp(template, f"grid/{name}")
        values = {key: getattr(experiment, key) for key in ("dataset", "network", "sampler")}
        values |= {"profile": "table", "source": "table"}
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = set_parameters(cell.source, values)
            if "title" in cell.metadata.get("tags", []):
                title = f"# {table_label(experiment.pair)}, {sampler_label(experiment.sampler)}"
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


def generate(report: Callable[[str], object] = print) -> list[Path]:
    """Write badges, Colab cells and notebooks/grid/ anew; return the files that changed.

    Those of :data:`SHOWN` whose outputs came from other cells or rows are run, which takes minutes;
    ``report`` gets one line for each.
    """
    paths = sorted(FOLDER.glob("*.ipynb"))
    wanted = {path: text(stamp(nbformat.read(path, as_version=4), path.name)) for path in paths}
    made = {FOLDER / "grid" / name: text(notebook) for name, notebook in grid_notebooks().items()}
    stale = set((FOLDER / "grid").glob("*.ipynb")) - set(made)
    for path in stale:
        path.unlink()
    changed = [*write_changed(wanted | made), *stale]
    for name in outdated():
        path = FOLDER / f"{name}.ipynb"
        report(f"running {path}")
        changed += write_changed({path: text(with_outputs(path))})
    return list(dict.fromkeys(changed))


def outdated() -> list[str]:
    """Return which of :data:`SHOWN` have outputs of other cells or rows than the present ones."""
    notebooks = {name: nbformat.read(FOLDER / f"{name}.ipynb", as_version=4) for name in SHOWN}
    return [name for name, one in notebooks.items() if one.metadata.get(STAMP) != sources(one)]


def sources(notebook: NotebookNode) -> dict[str, str]:
    """Return what a notebook's outputs come from: hashes of its code and of the rows that it reads.

    A notebook that names none of :data:`READERS` has the first alone.
    """
    code = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    made_from = {"code": hashlib.sha256(code.encode()).hexdigest()[:16]}
    if any(reader in code for reader in READERS):
        rows = hashlib.sha256()
        for part in ("curves", "live", "replays"):  # not the rows of live runs, which change
            for path in sorted((FOLDER.parent / "results" / part).glob("*.csv")):
                rows.update(path.name.encode() + path.read_bytes())
        made_from["rows"] = rows.hexdigest()[:16]
    return made_from


def with_outputs(path: Path) -> NotebookNode:
    """Run a notebook with its own parameters; return it with outputs and their stamp.

    Raises:
        papermill.PapermillExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    made_from = sources(notebook)  # before it runs: rows may be recorded meanwhile
    with tempfile.TemporaryDirectory() as folder:
        execute(path, Path(folder, path.name), {})
        executed = nbformat.read(Path(folder, path.name), as_version=4)
    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
            for picture in _pictures(cell):
                picture.data["image/png"] = _fewer_colours(picture.data["image/png"])
            if path.stem in PICTURES_ALONE:
                cell.outputs = _pictures(cell)
                for picture in cell.outputs:
                    picture.data = {"image/png": picture.data["image/png"]}
    notebook.metadata[STAMP] = made_from
    return notebook


def _pictures(cell: NotebookNode) -> list[NotebookNode]:
    """Return those outputs of a cell that have a picture."""
    return [output for output in cell.outputs if "image/png" in output.get("data", {})]


def _fewer_colours(png: str) -> str:
    """Return a picture in base64 with :data:`COLOURS` colours: a third of the bytes.

    Chosen to cover all colours there are: by frequency, thin lines would lose theirs to bands.
    """
    written = io.BytesIO()
    picture = Image.open(io.BytesIO(b64decode(png))).convert("RGB")
    few = picture.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
    few.save(written, format="png", optimize=True)
    return b64encode(written.getvalue()).decode()


def text(notebook: NotebookNode) -> str:
    """Return the text of a notebook's file."""
    return nbformat.writes(notebook, version=4) + "\n"


def source_of(experiment: Experiment) -> Path:
    """Return the notebook that runs ``experiment``: the grid's where it has one."""
    checkouts = FOLDER / "grid" / grid_name(experiment), FOLDER / TEMPLATE
    return next(filter(Path.exists, checkouts), PACKED)


def execute(source: Path, target: Path, parameters: dict[str, object]) -> None:
    """Run notebook ``source`` with ``parameters``; its executed copy is ``target``.

    What the notebook prints goes to this module's logger as it comes. A run that fails or is
    interrupted leaves ``target`` as it was, and its copy beside it as ``*.failed.ipynb``, unless
    the disk was too full for it.

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
    try:
        papermill.execute_notebook(
            str(source),
            str(draft),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            log_output=True,
            execution_timeout=CELL_SECONDS,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # would read as ours
        )
    except BaseException:
        if draft.exists() and not _is_whole(draft):
            draft.unlink()
        raise
    os.replace(draft, target)  # noqa: PTH105


def _is_whole(path: Path) -> bool:
    try:
        return bool(nbformat.read(path, as_version=4).cells)
    except (ValueError, AttributeError, KeyError):
        return False


def tell_output(prefixed: bool) -> None:
    """Show on standard output what executed notebooks print, with the experiment's name if asked.

    The name is that of the thread which runs the notebook.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: _tidy(record, prefixed))
    logger = logging.getLogger("papermill")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


def _tidy(record: logging.LogRecord, prefixed: bool) -> bool:
    """Keep what the notebook printed; drop papermill's own messages and the texts of pictures."""
    message = record.getMessage().strip()
    if record.funcName != "log_output_message" or not message or message.startswith("<"):
        return False
    indent = f"  {threading.current_thread().name}: " if prefixed else "  "
    record.msg, record.args = "\n".join(indent + line for line in message.splitlines()), ()
    return True
