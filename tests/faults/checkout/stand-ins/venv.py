"""Creates a venv without installing the real pip, which would take seconds."""

import sys
from pathlib import Path

sys.path = [path for path in sys.path if path != str(Path(__file__).parent)]
import venv  # noqa: E402

venv.EnvBuilder(symlinks=True, with_pip=False).create(sys.argv[1])
