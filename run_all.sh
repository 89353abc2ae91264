#!/usr/bin/env bash
# Sets up the environment if need be, then makes the report, runs the tests or opens JupyterLab.
#
#   ./run_all.sh [smoke|quick|full|original] [options of `python -m dlcvlib report`]
#   ./run_all.sh test [options of pytest]
#   ./run_all.sh lab [options of jupyter lab]
#
# DLCV_ENV names another environment: a folder for the venv, or conda's environment name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

task=report
case "${1:-}" in
    test | lab) task=$1 && shift ;;
    smoke | quick | full | original) set -- --profile "$@" ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit ;;
esac
extra=""
if [ "$task" = test ]; then extra=test; fi

# Does this Python have everything that pyproject.toml asks for?
satisfies() { "$1" dlcvlib/environment.py $extra >/dev/null 2>&1; }

# The exact versions last tested first; the ranges of pyproject.toml where those cannot be had.
install() {
    echo "Installing the project into $("$1" -c 'import sys; print(sys.prefix)') …"
    "$1" -m pip install --quiet -c constraints.txt -e ".${extra:+[$extra]}" || {
        echo "The versions of constraints.txt cannot all be had here; taking what pyproject.toml allows."
        "$1" -m pip install --quiet -e ".${extra:+[$extra]}"
    }
}

# Prints the path of the Python to use.
environment() {
    if [ -z "${DLCV_ENV:-}" ] && [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && satisfies python; then
        command -v python
        return
    fi
    local conda
    conda=$(command -v mamba || command -v conda || true)
    if [ -n "$conda" ]; then
        local name=${DLCV_ENV:-dlcv-report}
        "$conda" env list | grep -q "^$name " || "$conda" env create -y -n "$name" -f environment.yml >&2
        "$conda" run -n "$name" python -c 'import sys; print(sys.executable)'
        return
    fi
    local folder=${DLCV_ENV:-.venv} python
    if [ ! -x "$folder/bin/python" ]; then
        for python in python3.13 python3.12 python3.11 python3 python; do
            "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break
        done || { echo "Python 3.11, 3.12 or 3.13 is needed and was not found." >&2 && exit 1; }
        "$python" -m venv "$folder" >&2
    fi
    echo "$folder/bin/python"
}

python=$(environment)
satisfies "$python" || install "$python"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

case $task in
    report) exec "$python" -m dlcvlib report "$@" ;;
    test) exec "$python" -m pytest "$@" ;;
    lab) exec "$python" -m jupyterlab --notebook-dir=. "$@" ;;
esac
