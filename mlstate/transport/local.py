"""Files of this machine as resources."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from mlstate.errors import TransportError
from mlstate.files import ABSENT, UnfitFileError, open_regular
from mlstate.system import WINDOWS, readinto_at
from mlstate.transport.interface import Stream

__all__ = ["LocalResource", "check_range", "file_path"]

_DRIVE = re.compile(r"/[A-Za-z]:(?:/|$)")


def file_path(address: str, base: Path | None) -> Path:
    """The path of an address without a scheme, or of a ``file://`` URL.

    A path is taken as it is; a URL is percent-decoded, as `pathlib.Path.as_uri` encodes.

    Raises:
        TransportError: A file URL of another machine.
    """
    if address[:7].lower() != "file://":
        return (base or Path()) / address
    host, slash, rest = address[7:].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise TransportError(
            "a file URL names no file of this machine",
            path=address,
            expected="file:///absolute/path",
            remedy="write a relative path without file://",
        )
    return Path(_path_of("/" + rest))


def _path_of(rest: str, *, drives: bool = WINDOWS) -> str:
    """The path of a file URL; where there are drives, ``/C:/x`` is ``C:/x``."""
    path = unquote(rest)
    return path[1:] if drives and _DRIVE.match(path) else path


def check_range(start: int, stop: int | None) -> None:
    """Refuse a range that no file has.

    Raises:
        ValueError: It begins before 0, or ends before it begins.
    """
    if start < 0 or (stop is not None and stop < start):
        raise ValueError(f"not a range: {start} to {stop}")


class LocalResource:
    """A regular file. A fifo, a device or a folder is refused, and never waited for."""

    def __init__(self, path: Path, address: str | None = None) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self.address = str(path) if address is None else address

    def __repr__(self) -> str:
        return f"LocalResource({self.address!r})"

    def size(self) -> int:
        """See `Resource.size`."""
        with self._open() as (_, size):
            return size

    @contextmanager
    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Stream]:
        """See `Resource.read`."""
        check_range(start, stop)
        with self._open() as (descriptor, size):
            end = size if stop is None else stop
            if max(start, end) > size:
                raise TransportError(
                    "the file is shorter than what is asked of it",
                    path=self.address,
                    expected=f"{max(start, end)} bytes or more",
                    found=f"{size} bytes",
                )
            yield _LocalStream(self.address, descriptor, start, end - start, size)

    @contextmanager
    def _open(self) -> Iterator[tuple[int, int]]:
        """Open the file; gives its descriptor and its size."""
        try:
            descriptor = open_regular(self._path)
        except UnfitFileError as unfit:
            raise TransportError(
                "not a regular file", path=self.address, found=unfit.found
            ) from None
        except (OSError, ValueError) as error:  # ValueError: a null character
            reason = getattr(error, "strerror", None) or "not a possible path"
            raise TransportError(
                "a file cannot be read",
                path=self.address,
                found=reason,
                status=404 if getattr(error, "errno", None) in ABSENT else None,
            ) from None
        try:
            status = os.fstat(descriptor)
            seen = (status.st_size, status.st_mtime_ns)
            if self._seen not in (None, seen):
                raise TransportError("the file changed while it was read", path=self.address)
            self._seen = seen
            yield descriptor, status.st_size
        finally:
            os.close(descriptor)


class _LocalStream(Stream):
    def __init__(self, address: str, descriptor: int, start: int, length: int, total: int) -> None:
        self.length = length
        self.total = total
        self._address = address
        self._descriptor = descriptor
        self._position = start
        self._end = start + length

    def readinto(self, buffer: memoryview) -> int:
        buffer = buffer[: self._end - self._position]
        if not len(buffer):
            return 0
        try:
            count = readinto_at(self._descriptor, buffer, self._position)
        except OSError as error:
            raise TransportError(
                "a file cannot be read on", path=self._address, found=error.strerror
            ) from None
        if not count:
            raise TransportError(
                "the file became shorter while it was read",
                path=self._address,
                expected=f"{self._end} bytes or more",
                found=f"{self._position} bytes",
            )
        self._position += count
        return count
