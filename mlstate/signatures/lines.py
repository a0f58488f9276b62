"""The lines of the text files in which SSH keeps keys."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlstate.errors import FormatError

__all__ = ["MAX_FILE", "lines_of"]

MAX_FILE = 1 << 20
"""The most bytes of an allowed-signers file, or one of revoked keys."""
_LONGEST = 16 << 10
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def lines_of(data: bytes, origin: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, each with its number; not comments and blank ones.

    Raises:
        FormatError: The file is too large, a line is too long, or it is no plain text.
    """
    if len(data) > MAX_FILE:
        raise FormatError(
            "a file of keys is too large", path=origin, expected=f"at most {MAX_FILE} bytes"
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError("a file of keys is not UTF-8", path=origin, found=error) from None
    if text.startswith("\ufeff"):
        raise FormatError(
            "a file of keys begins with a byte order mark, which ssh-keygen takes for a name",
            path=origin,
            remedy="save it as UTF-8 without one",
        )
    for number, full in enumerate(text.split("\n"), 1):
        line = full.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        if len(line) > _LONGEST or _CONTROL.search(line):
            raise FormatError(
                "a line in a file of keys is too long, or has control characters",
                path=origin,
                line=number,
                expected=f"at most {_LONGEST} characters, all of them printable",
            )
        yield number, line
