"""The SSHSIG format: the file that ``ssh-keygen -Y sign`` writes (PROTOCOL.sshsig of OpenSSH)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from mlstate.errors import SignatureError
from mlstate.signatures.keys import PublicKey, decode_base64
from mlstate.signatures.wire import WireError, WireReader, wire_string

__all__ = ["MAX_SIGNATURE", "NAMESPACE", "SshSignature", "parse_signature"]

NAMESPACE = "mlstate"
"""The namespace of signatures of manifests: one made for git, or for mail, is none of these."""

MAX_SIGNATURE = 64 << 10
"""The most bytes of a signature file. That of the largest RSA key has a tenth."""

_MAGIC = b"SSHSIG"
_BEGIN = "-----BEGIN SSH SIGNATURE-----\n"
_END = "\n-----END SSH SIGNATURE-----"


@dataclass(frozen=True)
class SshSignature:
    """A signature, read but not verified.

    Attributes:
        key: The public key that it claims to be of.
        namespace: What it was made for.
        hash_name: The hash that the message went through: ``"sha256"`` or ``"sha512"``.
        signature: The signature itself, in SSH's encoding.
    """

    key: PublicKey
    namespace: str
    hash_name: str
    signature: bytes

    def signed_bytes(self, message: bytes) -> bytes:
        """The bytes that the key signs for a message."""
        digest = hashlib.new(self.hash_name, message).digest()
        parts = (self.namespace.encode(), b"", self.hash_name.encode(), digest)
        return _MAGIC + b"".join(map(wire_string, parts))


def parse_signature(data: bytes, origin: str) -> SshSignature:
    """Read a signature file.

    Args:
        data: Its content.
        origin: Where it is from, for errors.

    Raises:
        SignatureError: It is no signature file, or not one that OpenSSH writes today.
    """
    try:
        return _parse(WireReader(_armoured(data)))
    except WireError as error:
        raise SignatureError(
            "a signature file is damaged, or is none",
            path=origin,
            expected="the file that ssh-keygen -Y sign writes",
            found=error,
            remedy="get it again, or have the manifest signed again",
        ) from None


def _armoured(data: bytes) -> bytes:
    if len(data) > MAX_SIGNATURE:
        raise WireError(f"it is larger than {MAX_SIGNATURE} bytes")
    try:
        text = data.decode("ascii").rstrip("\n")
    except UnicodeDecodeError:
        raise WireError("it is not ASCII") from None
    if not text.startswith(_BEGIN):
        raise WireError(f"it does not begin with the line {_BEGIN.strip()}")
    if not text.endswith(_END):
        raise WireError(f"it does not end with the line {_END.strip()}")
    return decode_base64(text[len(_BEGIN) : -len(_END)].replace("\n", ""))


def _parse(reader: WireReader) -> SshSignature:
    if reader.take(len(_MAGIC)) != _MAGIC:
        raise WireError("it is no SSH signature")
    version = reader.uint32()
    if version != 1:
        raise WireError(f"it is of version {version}, where 1 is known")
    key = PublicKey.from_blob(reader.string())
    namespace = reader.text()
    if reader.string():
        raise WireError("a field that is reserved is not empty")
    hash_name = reader.text()
    if hash_name not in ("sha256", "sha512"):
        raise WireError("its hash is neither sha256 nor sha512")
    signature = reader.string()
    reader.end()
    return SshSignature(key, namespace, hash_name, signature)
