"""Keys that must not be trusted any more: plain public keys, or a KRL, as git and ssh take both."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mlstate.errors import FormatError
from mlstate.signatures.keys import PublicKey, parse_public_key
from mlstate.signatures.lines import MAX_FILE, lines_of
from mlstate.signatures.wire import WireError, WireReader

__all__ = ["RevokedKeys", "parse_revoked_keys"]

_KRL = b"SSHKRL\n\0"
_BLANK = re.compile(r"[ \t]+")
_CERTIFICATES, _KEYS, _SHA1, _SIGNATURE, _SHA256, _EXTENSION = 1, 2, 3, 4, 5, 255


@dataclass(frozen=True)
class RevokedKeys:
    """Revoked keys; ``key in revoked`` says whether one is among them.

    Attributes:
        keys: Those that are listed themselves.
        hashes: The SHA-1 or SHA-256 of the encodings of others.
    """

    keys: frozenset[PublicKey] = frozenset()
    hashes: frozenset[bytes] = frozenset()

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, PublicKey):
            return False
        hashed = hashlib.sha256(key.blob), hashlib.sha1(key.blob, usedforsecurity=False)
        return key in self.keys or any(one.digest() in self.hashes for one in hashed)

    def __iter__(self) -> Iterator[PublicKey]:
        return iter(self.keys)


def parse_revoked_keys(data: bytes, origin: str) -> RevokedKeys:
    """Read a file of revoked keys.

    It is a text with a public key on each line, comments and blank lines, or a KRL, the binary file
    that ``ssh-keygen -k`` writes. Revoked certificates in that are passed over: no certificate is
    accepted anyway.

    Args:
        data: Its content.
        origin: Where it is from, for errors.

    Raises:
        FormatError: It cannot be read, or says what is not understood.
    """
    if data.startswith(_KRL):
        return _krl(data, origin)
    revoked = set()
    for number, line in lines_of(data, origin):
        key = parse_public_key(_BLANK.split(line))
        if key is None:
            raise FormatError(
                "a line in a list of revoked keys is no public key",
                path=origin,
                line=number,
                expected="TYPE KEY, as in id_ed25519.pub",
                found=line[:100],
            )
        revoked.add(key)
    return RevokedKeys(frozenset(revoked))


def _krl(data: bytes, origin: str) -> RevokedKeys:
    """Read a KRL: PROTOCOL.krl of OpenSSH."""
    try:
        if len(data) > MAX_FILE:
            raise WireError(f"it has more than {MAX_FILE} bytes")
        reader = WireReader(data[len(_KRL) :])
        version = reader.uint32()
        if version != 1:
            raise WireError(f"it is of version {version}, where 1 is known")
        reader.take(8 + 8 + 8)  # its number, its date, flags that mean nothing yet
        reader.string()
        reader.string()  # a comment
        return _sections(reader)
    except WireError as error:
        raise FormatError(
            "a list of revoked keys cannot be read",
            path=origin,
            expected="a KRL as ssh-keygen -k writes it, or a public key on each line",
            found=error,
        ) from None


def _sections(reader: WireReader) -> RevokedKeys:
    keys: set[PublicKey] = set()
    hashes: set[bytes] = set()
    while not reader.at_end:
        kind = reader.take(1)[0]
        section = WireReader(reader.string())
        if kind == _KEYS:
            while not section.at_end:
                keys.add(PublicKey.from_blob(section.string()))
        elif kind in (_SHA1, _SHA256):
            size = 20 if kind == _SHA1 else 32
            while not section.at_end:
                found = section.string()
                if len(found) != size:
                    raise WireError(f"a hash in it has {len(found)} bytes, where {size} are to be")
                hashes.add(found)
        elif kind == _EXTENSION:
            section.string()
            if section.take(1) != b"\0":
                raise WireError("it needs an extension that is not known")
        elif kind not in (_CERTIFICATES, _SIGNATURE):
            # A section that is passed over could be one that revokes the key in question.
            raise WireError(f"a part of it is of type {kind}, which is not known")
    return RevokedKeys(frozenset(keys), frozenset(hashes))
