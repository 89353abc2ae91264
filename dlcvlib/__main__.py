"""`python -m dlcvlib`: the command line of `dlcvlib.report.cli`."""

import sys

from dlcvlib.report.cli import main

if __name__ == "__main__":
    sys.exit(main())
