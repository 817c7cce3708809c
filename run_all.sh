#!/usr/bin/env bash
# The front door: finds a Python environment that has what is needed, or makes one in .venv, and
# hands every argument to `python -m proxyhpo`, where verbs, flags and values are checked.
set -euo pipefail

root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
venv=$root/.venv

main() {
  for argument in "$@"; do
    if [[ $argument == -h || $argument == --help ]]; then show_help && exit; fi
  done
  if [[ ${1-} == help ]]; then show_help && exit; fi
  extra=lab
  if [[ ${1-} == test ]]; then extra='test'; fi
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
  python=$(find_python)
  # -P: what lies in the caller's current folder must not pass for a module.
  status=0
  lacks=$("$python" -P -c 'import sys
from proxyhpo.cli import ready
sys.exit(ready(sys.argv[1:]))' "$@") || status=$?
  if ((status == 2)); then exit 2; fi # wrong arguments, told before anything is installed
  if ((status != 0)); then
    checksum=$(cksum <"$root/pyproject.toml")
    stamps=$venv/.ready-${checksum// /-}
    if ! is_ready; then set_up; fi
    python=$venv/bin/python
  fi
  if [[ $extra == test ]]; then
    shift
    cd "$root"
    # by file: what a file's tests share is made once
    exec "$python" -P -m pytest -n 2 --dist loadfile "$@"
  fi
  exec "$python" -P -m proxyhpo --out "$root" "$@" # a second --out overrides the first
}

show_help() {
  cat <<'END'
Usage: ./run_all.sh [VERB] [FLAG ...]

Verbs
  run        run what is unfinished of a profile's experiments, then draw every figure (the default)
  record     record the learning-curve table of a --dataset and a --model, at low priority, or go on
             with it; without them, list the tables and what is recorded of each
  replay     replay every way of tuning on the recorded tables, or on those of a --dataset or --model;
             always anew
  figures    draw every figure from the recorded tables; nothing is trained
  generate   for contributors: write the grid's notebooks and the generated parts of the pages anew
  test       install what the tests need and run them, without the slow ones unless --slow is given;
             what follows goes to pytest
  help       this text

Flags (of run, record and replay, unless they say otherwise)
  --profile NAME    run: scale: smoke (the default: a small study of three small networks on digits),
                    table (the paper's 27 experiments, looked up in recorded tables, always anew), gpu
                    or paper; record: gpu, for larger tables
  --dataset NAME    only this data set: digits, cifar10, cifar100, tinyimagenet, or imagefolder:PATH
  --model NAME      only this base network, for example resnet56, vgg16_bn or mobilenetv2
  --sampler NAME    run: only this HPO method: tpe, cmaes, gp, random or hyperband
                    (--dataset, --model and --sampler may be given several times)
  --jobs N          processes (default: the profile's): experiments side by side, and where there are
                    more processes than experiments, workers that share each study; compare
                    seconds of 1 only
  --storage WHERE   run: a file or URL that keeps the studies, any storage of Optuna's, which machines
                    may share (default: a file each); a URL with a password goes into PROXYHPO_STORAGE
  --scheduler ADDRESS  record: a dask scheduler whose workers train, such as tcp://HOST:8786
                    (docs/cluster.md), instead of processes of this machine
  --until STAGE     record: the stage to stop after: gate, seed 0, N_B, truth, seed 1,
                    precision, plans, extras or "extras, seed 1" (the default: all of them)
  --entrant NAME    record: the only stand-in to train, before its turn, or base
  --out DIR         any verb: where results/, figures/ and runs/ go, instead of this checkout; without
                    tables of its own, figures are drawn from the checkout's
  --data-dir DIR    run, record: where the data sets are; also PROXYHPO_DATA, else the user's cache
                    folder
  -h, --help        this text

The active environment is used if it has what pyproject.toml asks for. If not, the first call makes
.venv beside this script: a minute or two and 6 GB, of which 5 are CUDA libraries. Without a GPU,
UV_TORCH_BACKEND=cpu ./run_all.sh brings the small build of torch instead. For an unknown name the
valid ones are listed. Experiments that train are skipped when finished; they and recordings go on
after an interruption.
END
}

tell() { printf 'run_all.sh: %s\n' "$*" >&2; }

fail() {
  tell "error: $*"
  exit 1
}

# Print the path of the first Python that is new enough: the active environment's, then the PATH's.
find_python() {
  local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} candidate
  for candidate in ${active:+"$active/bin/python3"} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys
if sys.version_info < (3, 11): sys.exit(1)
print(sys.executable)' 2>/dev/null; then return; fi
  done
  fail "Python 3.11 or later is needed, and neither python3 nor python3.11 to 3.13 on the PATH is one"
}

is_ready() { [[ -x $venv/bin/python && -e $stamps-$extra ]]; }

# Make or complete .venv. A subshell, so that the lock ends with it, whichever way it ends.
set_up() (
  exec 9>>"$venv.lock"
  # The lock belongs to the open file, which outlives the Python that takes it (macOS has no flock).
  base=$("$python" -c 'import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("run_all.sh: another call is setting up .venv; waiting for it", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
print(sys._base_executable)')
  if is_ready; then exit; fi
  if [[ ! -x $venv/bin/python || -s $venv.lock ]]; then
    tell "$python lacks ${lacks:-what is needed}"
    tell "setting up $venv once (about 2 minutes; 6 GB, of which 5 are CUDA libraries:"
    tell "UV_TORCH_BACKEND=cpu ./run_all.sh has the small build of torch instead)"
    rm -rf "$venv" # a lock file that isn't empty was left by a set-up that was cut short
  else
    tell "completing $venv (extra '$extra')"
  fi
  echo unfinished >&9
  rm -f "$venv"/.ready-*
  if [[ ! -x $venv/bin/python ]]; then
    "$base" -m venv "$venv" >&2 ||
      fail "$base can't make a virtual environment (on Debian and Ubuntu: install python3-venv)"
  fi
  extras=lab
  if [[ $extra == test ]]; then extras=lab,test; fi
  cd "$root"
  install='pip install -qq'
  if "$venv/bin/python" -I -m pip install -qq uv 2>/dev/null; then
    install='uv pip install -q' # several times as fast; -qq would swallow its errors
    export VIRTUAL_ENV=$venv
  fi
  if [[ -t 2 ]]; then install=${install% -q*}; fi
  "$venv/bin/python" -I -m $install --editable ".[$extras]" >&2 ||
    fail "the installation failed, see above; the next call tries again"
  touch "$stamps-lab" "$stamps-$extra"
  : >"$venv.lock"
  tell "set up in $SECONDS s"
)

main "$@"
