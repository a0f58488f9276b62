"""Signatures of manifests: SSH's format for signed files, and who may sign.

Values and pure checks: nothing here opens a file. What is signed with ``ssh-keygen -Y sign`` is
checked in this process, by the library `cryptography`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlstate.lazy import exports

if TYPE_CHECKING:
    from mlstate.signatures.allowed import AllowedSigner
    from mlstate.signatures.check import Signers
    from mlstate.signatures.keys import PublicKey
    from mlstate.signatures.policy import SignaturePolicy

__all__ = ["AllowedSigner", "PublicKey", "SignaturePolicy", "Signers"]

_HOMES = {
    "AllowedSigner": "mlstate.signatures.allowed",
    "PublicKey": "mlstate.signatures.keys",
    "SignaturePolicy": "mlstate.signatures.policy",
    "Signers": "mlstate.signatures.check",
}

__getattr__, __dir__ = exports(__name__, _HOMES)
