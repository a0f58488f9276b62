"""moto: an emulator of S3, the reference for conditional writes. It believes any signature."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from tests.servers.ports import HOST, MissingProgramError
from tests.servers.processes import end, start
from tests.servers.s3 import S3Server

__all__ = ["Moto"]


class Moto(S3Server):
    """moto's server, in a process of its own."""

    signatures = False
    verifies = False

    def __init__(self) -> None:
        if find_spec("moto") is None or find_spec("flask_cors") is None:
            raise MissingProgramError("moto is not installed (pip install 'moto[s3]' flask-cors)")
        port, self._process = start(
            lambda port: [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
        )
        self.url = f"http://{HOST}:{port}"

    def close(self) -> None:
        """Stop it."""
        super().close()
        end(self._process)
