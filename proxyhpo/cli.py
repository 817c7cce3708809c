"""The command line: experiments through papermill, learning-curve tables, replays and figures.

``python -m proxyhpo [run|record|replay|figures|generate|help] [flags]``; ``run_all.sh`` is its
front door.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import NoReturn

from proxyhpo.config import (
    DATASETS,
    DISK_FULL,
    NETWORKS,
    PROFILES,
    SAMPLERS,
    BusyError,
    Experiment,
    InputError,
    check_processes,
    choose,
    cores,
    grid,
    home,
    installed,
    load,
    make_folder,
    whole_path,
)
from proxyhpo.experiment.progress import duration

CHECKOUT = Path(__file__).resolve().parent.parent
STORAGE = "PROXYHPO_STORAGE"
VERBS = {
    "run": "run what is unfinished of a profile's experiments, then draw every figure "
    "(the default)",
    "record": "record the learning-curve table of a --dataset and a --model, at low priority; "
    "without them, list the tables and what is recorded of each",
    "replay": "replay every way of tuning on the recorded tables, or on those of a --dataset or "
    "--model; always anew",
    "figures": "draw every figure from the recorded tables; nothing is trained",
    "generate": "write the grid's notebooks and the generated parts of the pages anew",
    "help": "show this text",
}
NARROW = {"dataset": (*DATASETS, "imagefolder:PATH"), "model": NETWORKS, "sampler": SAMPLERS}
"""The flags that may be given several times, and the names that they take."""
_TABLES = ("run", "record", "replay")
FLAGS = {
    "dataset": (_TABLES, "narrow the grid to this; repeatable"),
    "model": (_TABLES, "narrow the grid to this; repeatable"),
    "sampler": (("run",), "narrow the grid to this; repeatable"),
    "profile": (
        ("run", "record"),
        f"scale: {', '.join(PROFILES)} (default: smoke; table: always anew); record: gpu alone",
    ),
    "jobs": (
        _TABLES,
        "processes: experiments side by side; those left over share the studies as workers "
        "(default: the profile's)",
    ),
    "storage": (("run",), f"file of the studies, or URL; one with a password goes into {STORAGE}"),
    "out": ((*VERBS,), "folder of results, figures and runs (default: here)"),
    "data-dir": (("run", "record"), "folder of the data sets"),
    "scheduler": (("record",), "a dask scheduler, whose workers train"),
    "until": (("record",), "the stage to stop after"),
    "entrant": (("record",), "the only one to train, before its turn"),
}
"""The verbs that each flag goes with, and what it says."""

_SECRET = re.compile(
    r"^[a-z][\w+]+:/{0,2}([^@]*:|.*@).*@|[?#;].*(pass|pw|secret|token|auth|key|credential)",
    re.IGNORECASE | re.DOTALL,
)
"""A URL with a password, or one in which part of a password could pass for something else."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 (failed), 2 (bad input), 130 (Ctrl-C) or 143 (SIGTERM)."""
    signal.signal(signal.SIGTERM, _terminate)
    out: Path | None = None
    next_time = "begins anew"
    try:
        options = parse(sys.argv[1:] if arguments is None else list(arguments))
        out = options.out
        if options.verb in ("run", "record") and options.profile.name != "table":
            next_time = "goes on where this one stopped"
        return int(bool(ACTIONS[options.verb](options)))
    except (InputError, ConnectionError) as error:
        status, message = (1 if isinstance(error, BusyError | ConnectionError) else 2), str(error)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        full, status = Path(error.filename).parent if error.filename else out, 1
        message = f"no space left on the disk of {full}; free some, and give the command again"
    except KeyboardInterrupt as stop:
        terminated = signal.SIGTERM in stop.args
        status, word = (143, "terminated") if terminated else (130, "interrupted")
        message = f"{word}; the same command {next_time}"
        print(file=sys.stderr)
    print(f"proxyhpo: {message}", file=sys.stderr)
    return status


def _terminate(number: int, _: object) -> NoReturn:
    """End everything as Ctrl-C does."""
    raise KeyboardInterrupt(number)


class _Parser(argparse.ArgumentParser):
    """argparse with its errors in one line, as all our errors are."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options, checked against the valid choices; needs the standard library alone."""
    parser = _Parser(prog="proxyhpo", description=__doc__.splitlines()[0])
    verbs = "; ".join(f"{verb}: {does}" for verb, does in VERBS.items())
    parser.add_argument("verb", nargs="?", default="run", help=verbs)
    for name, (goes_with, does) in FLAGS.items():
        text = f"{', '.join(goes_with)}: {does}"
        parser.add_argument(f"--{name}", help=text, action="append" if name in NARROW else "store")
    parser.set_defaults(**{name: [] for name in NARROW})
    options = parser.parse_args(arguments)
    choose("verb", options.verb, VERBS)
    if options.verb == "help":
        parser.print_help()
        return options
    for name, (goes_with, _) in FLAGS.items():
        if options.verb not in goes_with and getattr(options, name.replace("-", "_")):
            raise InputError(f"--{name}: goes with the verb {' or '.join(goes_with)}")
    options.profile = choose("profile", options.profile or "smoke", PROFILES)
    if options.profile.name == "table" and (options.storage or options.data_dir):
        raise InputError("--profile table: trains nothing; leave out --storage and --data-dir")
    for kind, known in NARROW.items():
        for name in getattr(options, kind):
            if not name.startswith("imagefolder:"):
                choose(kind, name, dict.fromkeys(known))
    if options.jobs is not None:
        options.jobs = int(options.jobs) if options.jobs.isdecimal() else options.jobs
        check_processes("--jobs", options.jobs)
    if options.storage and _SECRET.search(options.storage):
        raise InputError(
            f"--storage: a password on a command line is seen by all users; set {STORAGE} instead"
        )
    options.out = whole_path("--out", options.out) if options.out else home()
    if options.verb == "generate" and not (CHECKOUT / "run_all.sh").is_file():
        raise InputError(f"verb generate: needs a checkout of the repository; {CHECKOUT} is none")
    if options.verb == "generate" and options.out not in (home(), CHECKOUT):
        raise InputError(f"--out {options.out}: generate writes into its own checkout, {CHECKOUT}")
    if options.data_dir is not None:
        options.data_dir = whole_path("--data-dir", options.data_dir)
        if not options.data_dir.is_dir():
            raise InputError(f"--data-dir {options.data_dir}: no such folder")
    return options


def _run(options: argparse.Namespace) -> bool:
    """Return whether an experiment failed."""
    profile, out = options.profile, options.out
    options.jobs = options.jobs or min(profile.jobs, cores())
    experiments = grid(profile, options.dataset, options.model, options.sampler)
    choice = _looked_up if profile.name == "table" else _unfinished
    waiting = choice(experiments, options)
    failed = _execute(waiting, options) if waiting else {}
    _figures(options)
    for what, folder in {
        "rows of the studies:  ": out / "results" / profile.name,
        "executed notebooks:   ": out / "runs" / profile.name / "notebooks",
        "figures:              ": out / "figures",
    }.items():
        if folder.is_dir():
            print(f"{what}{folder}")
    print("where to look next:   RESULTS.md says what they show, notebooks/00_start_here.ipynb why")
    return bool(failed)


def _generate(_: argparse.Namespace) -> None:
    from proxyhpo.report import pages

    say = partial(print, flush=True)
    for path in (*load("proxyhpo.notebook.grid").generate(say), *pages.generate(CHECKOUT, say)):
        print(f"wrote {path}")


def _record(options: argparse.Namespace) -> None:
    from proxyhpo.hpo.tables import STAGES, TABLES, missing, table_rows

    last = options.until or STAGES[-1]
    choose("stage", last, dict.fromkeys(STAGES))
    if options.entrant:
        every = (one for table in TABLES.values() for one in (*table.entrants, *table.extras))
        choose("entrant", options.entrant, dict.fromkeys(every))
    folder = options.out / "results" / "curves"

    def standing(name: str) -> str:
        rows = table_rows(folder / f"{name}.csv")
        stage, left, total = missing(TABLES[name], rows, last, options.entrant)
        todo = f"next {stage}, {len(left)} of {total} to train" if stage else "nothing missing"
        return f"{name}: {len(rows)} trainings recorded, {todo}"

    names = _table_names(options)
    if not (options.dataset and options.model):
        for name in TABLES:
            if name in names:
                print(standing(name))
        scale = " --profile gpu" if options.profile.name == "gpu" else ""
        print(f"record one: ./run_all.sh record{scale} --dataset NAME --model NAME")
        return
    for name in names:
        choose("table", name, TABLES)
    if hasattr(os, "nice"):  # Windows has none
        os.nice(19)
    asked = {name: getattr(options, name) for name in ("data_dir", "scheduler", "entrant")}
    asked |= {"jobs": options.jobs or cores(), "until": last}
    for name in names:
        print(standing(name), flush=True)
        load("proxyhpo.experiment.curves").record(name, folder, **asked)
        print(standing(name))


def _replay(options: argparse.Namespace) -> None:
    from proxyhpo.analysis.evidence import Evidence

    # the tables of this folder alone: replays are written beside them
    evidence = Evidence(options.out / "results" / "curves")
    wanted = _table_names(options)
    names = [table.name for table in evidence.timed if table.name in wanted]
    if not names:
        raise InputError(
            f"no table with measured step costs in {evidence.folder}; recorded in part at least: "
            f"{', '.join(evidence.tables)}"
        )
    for name in names:
        evidence.replay(name, jobs=options.jobs or cores())
    print(f"replays: {evidence.folder.parent / 'replays'}")


def _table_names(options: argparse.Namespace) -> list[str]:
    """Return the names of tables that ``--dataset``, ``--model`` and the profile ask for."""
    from proxyhpo.hpo.tables import table_name

    scale = choose("profile of tables", options.profile.name, {"smoke": "", "gpu": "gpu"})
    pairs = product(options.dataset or DATASETS, options.model or NETWORKS)
    return [table_name(*pair, scale) for pair in pairs]


def _figures(options: argparse.Namespace) -> None:
    from proxyhpo.analysis.evidence import Evidence
    from proxyhpo.hpo.curves import curves_under
    from proxyhpo.report.figures import draw_all

    make_folder(options.out / "figures")
    evidence = Evidence(curves_under(options.out))
    files = draw_all(evidence, options.out / "figures", partial(print, flush=True))
    drawn = len({path.stem for path in files})
    tables = ", ".join(evidence.tables)
    print(f"{drawn} figures in {options.out / 'figures'}, of the tables {tables}")


def _looked_up(experiments: list[Experiment], options: argparse.Namespace) -> list[Experiment]:
    """Return the experiments that have a table; say what isn't recorded."""
    from proxyhpo.experiment.replayed import ReplayedRun
    from proxyhpo.hpo.curves import curves_under

    folder = curves_under(options.out)
    runs = [ReplayedRun(experiment, folder=folder) for experiment in experiments]
    for lack in dict.fromkeys(lack for run in runs for lack in run.missing):
        print(f"not recorded: {lack}")
    return [run.experiment for run in runs if run.table is not None]


def _unfinished(experiments: list[Experiment], options: argparse.Namespace) -> list[Experiment]:
    """Return the experiments that aren't recorded yet; all that they need is checked."""
    if options.storage:
        where = options.storage
        # by the environment: a notebook keeps its parameters, and a list of processes shows flags
        os.environ[STORAGE] = where if "://" in where else str(whole_path("--storage", where))
    run = load("proxyhpo.experiment.protocol").Run
    runs = [run(one, out=options.out, data_dir=options.data_dir) for one in experiments]
    waiting = [run.experiment for run in runs if not run.finished]
    for run in runs:
        run.check()
    profile = experiments[0].profile
    print(
        f"profile {profile.name}: {len(experiments)} experiments, "
        f"{len(experiments) - len(waiting)} of them recorded in {options.out / 'results'}"
    )
    if waiting and STORAGE in os.environ:
        load("proxyhpo.hpo.storage").open_storage(os.environ[STORAGE])
    return waiting


def _execute(waiting: list[Experiment], options: argparse.Namespace) -> dict[str, str]:
    """Run the notebooks of ``waiting``; return the failed ones, each with its error."""
    profile = waiting[0].profile
    # processes that have no experiment of their own share the studies of the others
    options.workers = 1 if profile.name == "table" else max(1, options.jobs // len(waiting))
    options.jobs = min(options.jobs, len(waiting))
    if profile.name != "table" and (options.workers > 1 or os.environ.get("OMP_NUM_THREADS")):
        engine = load("proxyhpo.experiment.engine")
        os.environ.update(engine.thread_environment(options.jobs * options.workers))
    seconds = 60 * profile.minutes * len(waiting) / options.jobs
    sharing = f", {options.workers} workers each" if options.workers > 1 else ""
    print(
        f"{len(waiting)} to run, {options.jobs} at a time{sharing}: about {duration(seconds)}, "
        f"where each has {profile.machine}",
        flush=True,
    )
    load("proxyhpo.notebook.grid").tell_output(prefixed=options.jobs > 1)
    failed: dict[str, str] = {}
    began = time.perf_counter()
    pool = ThreadPoolExecutor(options.jobs)
    jobs: dict[Future, Experiment] = {}
    try:
        for experiment in waiting:
            jobs[pool.submit(_one, experiment, options)] = experiment
        for done, job in enumerate(as_completed(jobs), start=1):
            name = jobs[job].name
            error = job.exception()
            if error is not None and _disk_is_full(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(options.out / "runs"))
            if error is not None:
                failed[name] = _reason(error)
            spent = time.perf_counter() - began
            # of those under way, half is done on average
            share = done + min(options.jobs - 1, len(jobs) - done) / 2
            left = duration(spent / share * (len(jobs) - share))
            ended = f"FAILED: {failed[name]}" if name in failed else "done"
            print(f"[{done}/{len(jobs)}, {left} left] {name}: {ended}", flush=True)
    except BaseException:
        _end_kernels(pool, jobs)
        raise
    pool.shutdown()
    print(f"{len(jobs) - len(failed)} of {len(jobs)} experiments ran in {duration(spent)}")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return failed


def _one(experiment: Experiment, options: argparse.Namespace) -> None:
    notebooks = load("proxyhpo.notebook.grid")
    threading.current_thread().name = experiment.name
    if options.jobs == 1:
        print(f"{experiment.name}:", flush=True)
    parameters = {name: getattr(experiment, name) for name in ("dataset", "network", "sampler")}
    parameters |= {
        "profile": experiment.profile.name,
        "seed": experiment.seed,
        "out": str(options.out),
        "data_dir": options.data_dir and str(options.data_dir),
        "workers": options.workers,
    }
    if experiment.profile.name == "table":
        parameters["source"] = "table"
    folder = options.out / "runs" / experiment.profile.name / "notebooks"
    source, target = notebooks.source_of(experiment), folder / f"{experiment.name}.ipynb"
    notebooks.execute(source, target, parameters)


def _end_kernels(pool: ThreadPoolExecutor, jobs: Iterable[Future]) -> None:
    """End the notebooks under way: their kernels don't hear an interrupt of this process."""
    import psutil  # only an interrupted run needs it

    pool.shutdown(wait=False, cancel_futures=True)
    while not all(job.done() for job in jobs):  # one may be about to start its kernel
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        time.sleep(0.1)


def _reason(error: BaseException) -> str:
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    return f"{name}: {value}".splitlines()[0]


def _disk_is_full(error: BaseException) -> bool:
    """Return whether a disk is full, here or in a notebook's kernel."""
    told = str(getattr(error, "evalue", ""))
    signs = [*(f"[Errno {number}]" for number in DISK_FULL), "disk is full"]  # the last: SQLite's
    return getattr(error, "errno", None) in DISK_FULL or any(sign in told for sign in signs)


ACTIONS: dict[str, Callable[[argparse.Namespace], object]] = {
    "run": _run,
    "record": _record,
    "replay": _replay,
    "figures": _figures,
    "generate": _generate,
    "help": lambda _: None,
}


def ready(arguments: list[str]) -> int:
    """Check the arguments of ``run_all.sh`` and this Python, before anything runs or is installed.

    Returns 0 if all that ``pyproject.toml`` asks for is installed, 1 if not (what is lacking is
    printed), 2 for wrong arguments. Imports the standard library alone, unless all is there.
    """
    testing = arguments[:1] == ["test"]
    try:
        if arguments and not arguments[0].startswith("-"):
            choose("verb", arguments[0], {**VERBS, "test": "run the tests"})
        if not testing:
            parse(arguments)
    except InputError as error:
        print(f"proxyhpo: {error}", file=sys.stderr)
        return 2
    if lacking := shortfall(requirements(["test"] if testing else [])):
        more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
        print(", ".join(lacking[:4]) + more)
    return int(bool(lacking))


def requirements(extras: Iterable[str] = ()) -> dict[str, str]:
    """Return what ``pyproject.toml`` asks for, with these extras: name -> range of versions."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return dict(re.findall(r"^([\w.-]+)(?:\[.*\])?([<>=!~].*)?$", text)[0] for text in wanted)


def shortfall(wanted: dict[str, str]) -> list[str]:
    """Return which of ``wanted`` aren't installed, or else which are in another version."""
    found = {name: installed(name) for name in wanted}
    if missing := [name for name, version in found.items() if not version]:
        return missing
    from packaging.specifiers import SpecifierSet  # one of those that aren't missing

    return [
        f"{name}{span} (it has {found[name]})"
        for name, span in wanted.items()
        if not SpecifierSet(span).contains(found[name], prereleases=True)
    ]
