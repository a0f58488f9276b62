"""Public keys of SSH as values: what stands in an allowed-signers file, and in a signature."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from mlstate.signatures.wire import WireError, WireReader

__all__ = ["KEY_TYPES", "PublicKey", "decode_base64", "parse_public_key"]

KEY_TYPES = {
    "ssh-ed25519": "ED25519",
    "ecdsa-sha2-nistp256": "ECDSA",
    "ecdsa-sha2-nistp384": "ECDSA",
    "ecdsa-sha2-nistp521": "ECDSA",
    "ssh-rsa": "RSA",
    "sk-ssh-ed25519@openssh.com": "ED25519-SK",
    "sk-ecdsa-sha2-nistp256@openssh.com": "ECDSA-SK",
}
"""The types of keys whose signatures can be checked, with the names that people know them by."""


@dataclass(frozen=True)
class PublicKey:
    """A public key.

    Attributes:
        blob: The key in SSH's encoding. Two keys are the same if these bytes are.
        type: The name of its type, as it stands in the blob.
    """

    blob: bytes
    type: str

    @classmethod
    def from_blob(cls, blob: bytes) -> PublicKey:
        """A key from its encoding, of which the name of the type is read, and no more.

        Raises:
            WireError: The bytes begin with no name of a type.
        """
        name = WireReader(blob).text()
        if not 0 < len(name) <= 64:
            raise WireError("it does not begin with the type of a key")
        return cls(blob, name)

    @property
    def fingerprint(self) -> str:
        """The fingerprint, as ``ssh-keygen -l`` prints it: ``SHA256:...``."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")
        return f"SHA256:{digest}"

    @property
    def kind(self) -> str:
        """The type in the words of ``ssh-keygen -l``: ``ED25519``."""
        return KEY_TYPES.get(self.type, self.type)


def parse_public_key(words: list[str]) -> PublicKey | None:
    """A key from the words of a line ``TYPE BASE64 [COMMENT]``; None if they are none."""
    if len(words) < 2:
        return None
    try:
        key = PublicKey.from_blob(decode_base64(words[1]))
    except WireError:
        return None
    return key if key.type == words[0] else None


def decode_base64(text: str) -> bytes:
    """The bytes that a text in base64 stands for.

    Raises:
        WireError: It is no base64, or not as an encoder writes it.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise WireError("it is not valid base64") from None
    if base64.b64encode(data).decode() != text:
        raise WireError("it is not valid base64")
    return data
