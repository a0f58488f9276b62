"""Checkpoints compressed with gzip: unpacked into a file without a name, up to a limit."""

from __future__ import annotations

import gzip as gzips
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mlstate.errors import FormatError
from mlstate.foreign import FRONT, check_same_container
from mlstate.locations import TORCH_GZIP
from mlstate.units import LARGER

__all__ = ["check_unpacked", "plain_file", "unpacks_to"]

_CHUNK = 1 << 20
_MOST_TIMES = 100
_SMALL = 256 << 20


def unpacks_to(size: int) -> int:
    """The most bytes that so many compressed bytes become: 100 times as many, or 256 MiB.

    Weights are not compressed like zeros.
    """
    return max(_SMALL, _MOST_TIMES * size)


@contextmanager
def plain_file(
    path: Path, gzip: bool, origin: str | None, max_bytes: int | None
) -> Iterator[BinaryIO]:
    """Open a file, at its start; if it is compressed, a temporary file with what is in it.

    Args:
        path: The file.
        gzip: Whether it is compressed.
        origin: Where it is from, for errors; or None.
        max_bytes: The most bytes that a compressed file may become; None is as `unpacks_to` says.

    Raises:
        FormatError: It is damaged, or becomes larger.
    """
    if not gzip:
        with path.open("rb") as file:
            yield file
        return
    if max_bytes is None:
        max_bytes = unpacks_to(os.stat(path).st_size)
    with path.open("rb") as file:
        check_same_container(file.read(FRONT), TORCH_GZIP, origin)
    with tempfile.TemporaryFile(dir=path.parent) as temporary:
        try:
            with gzips.open(path) as compressed:
                _copy(compressed, temporary, origin, max_bytes)
        except (gzips.BadGzipFile, EOFError, zlib.error) as error:
            raise FormatError(
                "this file is damaged, or is not compressed with gzip", path=origin, found=error
            ) from None
        temporary.flush()
        temporary.seek(0)
        yield temporary


def _copy(source: Any, target: Any, origin: str | None, max_bytes: int) -> None:
    size = 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        check_unpacked(size, max_bytes, origin)
        target.write(chunk)


def check_unpacked(size: int, max_bytes: int, origin: str | None) -> None:
    """Refuse, by a FormatError, more bytes than a compressed file may become."""
    if size > max_bytes:
        raise FormatError(
            "this file is larger than it may be when decompressed",
            path=origin,
            expected=f"at most {max_bytes} bytes",
            found="more",
            remedy="if that is right, " + LARGER + ", or decompress it first",
        )
