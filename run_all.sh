#!/usr/bin/env bash
# Sets up the environment if need be, then makes the report, trains, runs the tests or opens JupyterLab.
#
#   ./run_all.sh [smoke|quick|full|original|report] [options of `python -m dlcvlib report`]
#   ./run_all.sh sweep [options of `python -m dlcvlib sweep`]
#   ./run_all.sh train|params CHAPTER [options of `python -m dlcvlib train`]
#   ./run_all.sh compare REPORT OTHER_REPORT
#   ./run_all.sh test [options of pytest]
#   ./run_all.sh lab [options of jupyter lab]
#
# DLCV_ENV names another environment: a venv's folder, a folder for a new one, or the name of a conda environment.
# A venv that this script began is recreated if an installation into it was interrupted.
# Where there is no NVIDIA driver, torch is installed in its CPU build, if an index of pip's has it.
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi # as after `sh run_all.sh`
if [ "${BASH_SOURCE[0]}" != "$0" ]; then bash "${BASH_SOURCE[0]}" "$@"; return; fi # as after `source run_all.sh`
set -euo pipefail
unset CDPATH
here=$PWD
case $(uname -s) in
    MINGW* | MSYS* | CYGWIN*) echo "run_all.sh: on Windows, use it in WSL, or see README.md, Windows." >&2 && exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")"

task=report words="smoke quick full original report sweep train params compare test lab"
case "${1:-}" in
    report | sweep | train | params | compare | test | lab) task=$1 && shift ;;
    smoke | quick | full | original) set -- --profile "$@" ;;
    -h | --help | help) sed -n '2,13s/^# \{0,1\}//p' run_all.sh && exit ;;
    [!-]*)
        closest='import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1))'
        # shellcheck disable=SC2086 # several words
        near=$(python3 -c "$closest" "$1" $words 2>/dev/null || true)
        echo "run_all.sh: unknown command '$1'${near:+; did you mean '$near'?} (commands: $words)" >&2 && exit 2
        ;;
esac
extra=""
if [ "$task" = test ]; then extra=test; fi

# Does this Python have everything that pyproject.toml asks for?
satisfies() { "$1" dlcvlib/utils/environment.py $extra >/dev/null 2>&1; }

# First the exact versions last tested; if those are not available, the ranges of pyproject.toml.
install() {
    echo "Installing the project into $("$1" -c 'import sys; print(sys.prefix)') …" >&2
    # shellcheck disable=SC2046 # several words
    if ! has_nvidia && ! "$1" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
        "$1" -m pip install --quiet --no-user --no-deps $(sed -nE 's/^(torch|torchvision)==.*/&+cpu/p' constraints.txt) >/dev/null 2>&1 || true
    fi
    "$1" -m pip install --quiet --no-user -c constraints.txt -e ".${extra:+[$extra]}" >&2 || {
        echo "Not all versions of constraints.txt are available here; installing what pyproject.toml allows." >&2
        "$1" -m pip install --quiet --no-user -e ".${extra:+[$extra]}" >&2
    }
}

# WSL has its driver at /dev/dxg; elsewhere than on Linux, torch has no CUDA anyway.
has_nvidia() {
    [ "$(uname -s)" != Linux ] || [ -e /proc/driver/nvidia ] || [ -e /dev/nvidiactl ] || [ -e /dev/dxg ] ||
        command -v nvidia-smi >/dev/null
}

# Makes a venv that has everything, one process at a time; an interrupted one is recreated.
# Runs in a command substitution, where a failure does not end the script by itself.
set_up() {
    local folder=$1 python lock="import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print('Another run_all.sh is installing into $1; waiting for it.', file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)"
    for python in python3.13 python3.12 python3.11 python3 python; do
        "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break
    done || { echo "Python 3.11, 3.12 or 3.13, or conda, is required but was not found: install one." >&2 && exit 1; }
    if [ -e "$folder" ] && [ ! -e "$folder.installing" ] && [ ! -f "$folder/pyvenv.cfg" ] &&
        [ -n "$(ls -A "$folder")" ]; then
        echo "$folder is not a venv: set DLCV_ENV to one, or to a folder that does not exist yet." >&2 && exit 1
    fi
    # The lock belongs to this subshell and its children, and ends with them.
    exec 9>"$folder.lock"
    "$python" -c "$lock" || exit 1
    if [ -e "$folder.installing" ]; then
        echo "An installation into $folder was interrupted; recreating it." >&2
        rm -rf "$folder"
    elif satisfies "$folder/bin/python"; then
        return
    fi
    # A venv that this script did not create is never removed.
    if [ -z "${DLCV_ENV:-}" ] || [ ! -e "$folder" ]; then touch "$folder.installing"; fi
    [ -x "$folder/bin/python" ] || "$python" -m venv "$folder" >&2 || exit 1
    install "$folder/bin/python" || exit 1
    rm -f "$folder.installing"
}

# Prints the path of the Python to use.
environment() {
    if [ -z "${DLCV_ENV:-}" ] && [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && satisfies python; then
        command -v python
        return
    fi
    local conda python
    conda=$(command -v mamba || command -v conda || true)
    if [ -n "$conda" ]; then
        local name=${DLCV_ENV:-dlcv-report}
        # The rest of environment.yml is `install`, which takes torch's CPU build where that is enough.
        "$conda" run -n "$name" python -c "" 2>/dev/null ||
            "$conda" create -y -n "$name" -c conda-forge python=3.12 pip >&2 || exit 1
        python=$("$conda" run -n "$name" python -c 'import sys; print(sys.executable)')
        satisfies "$python" || install "$python" || exit 1
        echo "$python"
        return
    fi
    local folder=${DLCV_ENV:-.venv}
    case $folder in /* | .venv) ;; *) folder=$here/$folder ;; esac
    if [ -e "$folder.installing" ] || ! satisfies "$folder/bin/python"; then set_up "$folder"; fi
    echo "$folder/bin/python"
}

python=$(environment)
case $python in /*) ;; *) python=$PWD/$python ;; esac
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# glibc then keeps what one training step frees for the next; `report` and `sweep` set this for their processes.
if [ "$task" != report ] && [ "$task" != sweep ] && [ -z "${MALLOC_MMAP_MAX_-}${MALLOC_MMAP_THRESHOLD_-}${MALLOC_TRIM_THRESHOLD_-}${GLIBC_TUNABLES-}" ]; then
    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647
fi

case $task in
    report | sweep | train | params | compare) cd "$here" && exec "$python" -P -m dlcvlib "$task" "$@" ;; # paths are relative to where they were typed
    test) exec "$python" -m pytest "$@" ;;
    lab) exec "$python" -m jupyterlab --notebook-dir=. "$@" ;;
esac
