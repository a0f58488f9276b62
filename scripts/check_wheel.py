"""Check a built wheel as a user would have it: ``python scripts/check_wheel.py DIST``.

Installs it into a folder of its own and reads the manifests that it ships, from somewhere else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import sys
import mlstate
from mlstate import StateKey, Store

assert "site" in mlstate.__file__, mlstate.__file__
print(Store().digest(StateKey.parse("pytorch.bert-l6-h384.all-MiniLM-L6-v2")))
mlstate.report(Store(), values=False).write("report.html")
assert "torch" not in sys.modules
"""


def main(folder: Path) -> None:
    """Install the newest wheel of a folder and use it."""
    wheel = max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    with tempfile.TemporaryDirectory() as temporary:
        site = Path(temporary) / "site"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*install, "--target", str(site), str(wheel)], check=True)
        assert (site / "mlstate" / "py.typed").exists(), "the wheel lacks py.typed"
        for name in ("report.html", "report.css", "d3-hierarchy.min.js", "d3-hierarchy.LICENSE"):
            asset = site / "mlstate" / "operations" / "report" / "assets" / name
            assert asset.exists(), f"the wheel lacks {name}"
        environment = {**os.environ, "PYTHONPATH": str(site)}
        subprocess.run([sys.executable, "-c", PROGRAM], check=True, cwd=temporary, env=environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
