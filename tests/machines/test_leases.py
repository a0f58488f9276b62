"""Files that a file server has leased for its clients, as Samba does, are waited for."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from mlstate.files import read_file

HOLD = """
import fcntl, os, signal, sys
file = open(sys.argv[1], "r+")
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
signal.sigwait([signal.SIGIO])
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
"""


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="no leases on this system")
def test_a_leased_file_is_read_once_its_holder_lets_go(tmp_path: Path):
    path = tmp_path / "leased"
    path.write_bytes(b"content")
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        if holder.stdout.readline() != "held\n":
            pytest.skip("no leases on this file system")
        assert read_file(path, 100) == b"content"
        assert holder.wait(60) == 0
