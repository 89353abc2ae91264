"""Installs nothing if it finds a word of its command in the file `refused`; waits for `go`."""

import sys
import sysconfig
from pathlib import Path

if "-e" not in sys.argv:
    Path("torch").write_text(" ".join(sys.argv[-2:]))
    sys.exit("no such versions")
refused = Path("refused")
if refused.exists() and refused.read_text() in sys.argv:
    sys.exit("no such package")
if Path("go").exists():
    Path("pip-runs").touch()
    Path("go").read_text()
with Path("installed").open("a") as log:
    log.write("installed\n")
package = Path(sysconfig.get_path("purelib"), "needed-1.0.dist-info")
package.mkdir()
package.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: needed\nVersion: 1.0\n")
