"""`python -m dlcvlib`: the command line of `dlcvlib.report.cli`.

Any Python 3 can run this far, to say what it lacks.
"""

import sys


def lacking():
    """What this Python lacks of what pyproject.toml requires."""
    if sys.version_info < (3, 11):  # noqa: UP036 - it is the reader's Python
        return [f"Python 3.11 or newer (it is {sys.version.split()[0]})"]
    try:
        from dlcvlib.utils.environment import missing

        return missing()
    except ImportError as error:
        return [error.name]
    except FileNotFoundError as error:  # of an installation that is not editable
        return [error.filename]


def main():
    """Run the command line, or say how to get an environment for it; returns the exit status."""
    found = lacking()
    if found:
        what = ", ".join(found[:3]) + (", …" if found[3:] else "")
        advice = (
            "use ./run_all.sh, which sets up an environment (later: source .venv/bin/activate), or "
            "install this into one of yours: python -m pip install -c constraints.txt -e ."
        )
        print(f"error: {sys.executable} lacks {what}: {advice}", file=sys.stderr)
        return 2
    from dlcvlib.report import cli
    from dlcvlib.utils import process

    process.outlive_readers()
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
