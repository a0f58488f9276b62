"""Signing, which ssh-keygen does: keys of files, of an agent and of hardware."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mlstate.errors import SignatureError
from mlstate.files import UnfitFileError, check_input
from mlstate.phrases import Phrase
from mlstate.signatures.crypto import check_signed
from mlstate.signatures.sshsig import NAMESPACE, SshSignature, parse_signature

__all__ = ["sign_bytes"]

_LARGEST_KEY = 1 << 20


def sign_bytes(content: bytes, key: Path, origin: str) -> tuple[bytes, SshSignature]:
    """Sign some bytes.

    Args:
        content: The bytes.
        key: The private key, or the public key of one that an agent holds.
        origin: What they are, for errors.

    Returns:
        The signature file, as ssh-keygen writes it, and what it says.

    Raises:
        SignatureError: ssh-keygen is missing, does not sign, or what it wrote is not good.
    """
    _check_key(key)
    armoured = _run(content, key, origin)
    parsed = parse_signature(armoured, origin)
    _check_own(parsed, content)
    return armoured, parsed


def _check_key(key: Path) -> None:
    """Refuse what ssh-keygen would wait for, or read without an end; what is missing it tells."""
    try:
        check_input(key, _LARGEST_KEY)
    except UnfitFileError as unfit:
        raise SignatureError(
            "this is no file of a key", path=key, expected="a file", found=unfit.found
        ) from None
    except OSError:
        pass


def _run(content: bytes, key: Path, origin: str) -> bytes:
    # On a terminal it says when a hardware key is to be touched, so it may speak there.
    terminal = sys.stderr is not None and sys.stderr.isatty()
    quiet = [] if terminal else ["-q"]
    command = ["ssh-keygen", *quiet, "-Y", "sign", "-n", NAMESPACE, "-f", str(key)]
    try:
        done = subprocess.run(
            command,
            input=content,
            stdout=subprocess.PIPE,
            stderr=None if terminal else subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        raise SignatureError(
            "ssh-keygen, which signs, cannot be run",
            path=origin,
            found=error,
            remedy="install OpenSSH: apt install openssh-client, say",
        ) from error
    if done.returncode:
        said = (done.stderr or b"").decode(errors="replace").strip()
        raise SignatureError(
            "ssh-keygen did not sign; nothing was changed",
            path=origin,
            found=said or None,
            remedy=Phrase(
                "give the private key, or the public key of one that ssh-agent holds",
                "give --key a private key, or the public key of one that ssh-agent holds",
            ),
        )
    return done.stdout


def _check_own(parsed: SshSignature, content: bytes) -> None:
    """Check what ssh-keygen wrote, where that can be done: it is to be good for others."""
    try:
        import cryptography  # noqa: F401
    except ImportError:  # signing works without it
        return
    check_signed(parsed, content)
