"""A certificate for this machine's own address, for servers of https."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

from tests.servers.ports import program

__all__ = ["certificate"]


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Make one, good for a day: the file that a client is to trust, and a server's context.

    Raises:
        MissingProgramError: openssl is not installed.
    """
    public, private = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(program("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-nodes"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", private, "-out", public),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context
