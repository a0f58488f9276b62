"""moto: an emulator of S3, the reference for conditional writes. It believes any signature."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

from tests.servers.ports import HOST, MissingProgramError, free_port, wait_for
from tests.servers.processes import end
from tests.servers.s3 import S3Server

__all__ = ["Moto"]


class Moto(S3Server):
    """moto's server, in a process of its own."""

    signatures = False
    verifies = False

    def __init__(self) -> None:
        if find_spec("moto") is None or find_spec("flask_cors") is None:
            raise MissingProgramError("moto is not installed (pip install 'moto[s3]' flask-cors)")
        for _ in range(10):
            port = free_port()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            if wait_for(port, 30) and self._process.poll() is None:
                self.url = f"http://{HOST}:{port}"
                return
            end(self._process)
        raise RuntimeError("moto does not start")

    def close(self) -> None:
        """Stop it."""
        super().close()
        end(self._process)
