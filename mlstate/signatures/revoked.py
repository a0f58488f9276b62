"""Keys that must not be trusted any more: a plain list of public keys, as git and ssh take it."""

from __future__ import annotations

import re

from mlstate.errors import FormatError
from mlstate.signatures.keys import PublicKey, parse_public_key
from mlstate.signatures.lines import lines_of

__all__ = ["parse_revoked_keys"]

_KRL = b"SSHKRL\n\0"
_BLANK = re.compile(r"[ \t]+")


def parse_revoked_keys(data: bytes, origin: str) -> frozenset[PublicKey]:
    """Read a file of revoked keys: a public key a line, comments and blank lines.

    Args:
        data: Its content.
        origin: Where it is from, for errors.

    Raises:
        FormatError: It cannot be read, or is a KRL, the binary form that OpenSSH has besides.
    """
    if data.startswith(_KRL):
        raise FormatError(
            "this list of revoked keys is a KRL, which is not supported",
            path=origin,
            expected="a text file with a public key on each line",
            remedy="list the .pub files of the revoked keys: cat *.pub > revoked_keys",
        )
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
    return frozenset(revoked)
