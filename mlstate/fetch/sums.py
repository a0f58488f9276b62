"""The sum that a publisher gives of a file, compared before anything in the file is used."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlstate.errors import FormatError, IntegrityError

__all__ = ["check_sha256"]


def check_sha256(path: Path, digits: str, origin: str) -> None:
    """Compare a file's SHA-256 with what its publisher says.

    Args:
        path: The file.
        digits: The SHA-256 in lower-case hex digits, whole or the leading ones.
        origin: Where the file is from, for the error.

    Raises:
        IntegrityError: The file has another sum.
        FormatError: No digits, which every file would satisfy.
    """
    if not digits:
        raise FormatError(
            "sha256 is 1 to 64 lower-case hex digits", path=origin, found=repr(digits)
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found[: len(digits)] != digits:
        raise IntegrityError(
            "a file does not have the SHA-256 that its mirror gives",
            path=origin,
            expected=digits if len(digits) == len(found) else f"{digits}...",
            found=found,
        )
