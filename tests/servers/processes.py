"""Ending the processes that servers are."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

__all__ = ["end"]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours that leads a group, and all of the group if it does not listen."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
