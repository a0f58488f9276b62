"""Plain tar files, as streams: written the same for the same content, read with bounded memory.

Only what a bundle needs: files and folders, and long names as GNU tar and POSIX write them. What a
header claims is not trusted: nothing is held in memory for it, and no name becomes a path here.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn, Protocol, cast

from mlstate.errors import FormatError, IntegrityError

__all__ = ["Member", "Readable", "TarReader", "TarWriter"]

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 1 << 20
_LONGEST_HEADER = 1 << 16
_LARGEST = 1 << 60


class Readable(Protocol):
    """Something to read bytes from."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""


class TarWriter:
    """Writes files into a tar: no times, no owners, read-only, so that equal content is equal.

    Args:
        file: Where to write.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0

    def add(self, name: str, size: int, content: Readable) -> None:
        """Add a file.

        Args:
            name: Its name.
            size: The bytes of its content.
            content: Its content, which is read up to that size.

        Raises:
            IntegrityError: The content is shorter.
            OSError: It cannot be written.
        """
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o444
        self._write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
        left = size
        while left:
            piece = content.read(min(_PIECE, left))
            if not piece:
                raise IntegrityError("a file became shorter while it was read", path=name)
            self._write(piece)
            left -= len(piece)
        self._write(bytes(-size % _BLOCK))

    def close(self) -> None:
        """Write the end."""
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self._size % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._size += len(data)


@dataclass(frozen=True)
class Member:
    """A file or folder of a tar.

    Attributes:
        name: Its name, without ``./`` before it; as it stands there otherwise, and not checked.
        size: The bytes of its content.
        is_folder: Whether it is a folder.
        start: Where its content begins.
    """

    name: str
    size: int
    is_folder: bool
    start: int


class TarReader:
    """Reads a tar from front to back, or in any order where the file can do that.

    Args:
        file: The tar.
        origin: Where it is from, for errors.
        seekable: Jump over what is not read; else it is read and dropped.
    """

    def __init__(self, file: Readable, origin: str, *, seekable: bool) -> None:
        self.origin = origin
        self.seekable = seekable
        self._file = file
        self._position = 0
        self._jumping = cast("BinaryIO", file) if seekable else None
        self._end = 0 if self._jumping is None else self._jumping.seek(0, 2)

    def members(self) -> Iterator[Member]:
        """Every member in order. Without seeking, read each before the next is asked for.

        Raises:
            FormatError: This is no tar, or a member is neither a file nor a folder.
            IntegrityError: The tar is cut short.
        """
        position = 0
        long_name: dict[str, str] = {}
        while True:
            self._go(position)
            info = self._header()
            if info is None:
                return
            start = position + _BLOCK
            position = start + -(-info.size // _BLOCK) * _BLOCK
            if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
                long_name |= self._long_name(info)
                continue
            if info.type == tarfile.XGLTYPE:
                continue
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
                raise FormatError(
                    "a bundle holds files alone, no links, devices or other things",
                    path=f"{self.origin}: {info.name}",
                    found=f"a member of type {info.type!r}",
                )
            size = long_name.get("size", str(info.size))
            if size != str(info.size):
                info.size = self._size(size)
                position = start + -(-info.size // _BLOCK) * _BLOCK
            name = long_name.get("path", info.name)
            while name.startswith("./"):
                name = name[2:]
            yield Member(name, info.size, info.type == tarfile.DIRTYPE, start)
            long_name = {}

    def pieces(self, member: Member) -> Iterator[bytes]:
        """The content of a member, all but the last piece of 1 MiB.

        Raises:
            IntegrityError: The tar is cut short.
        """
        self._go(member.start)
        left = member.size
        while left:
            piece = self._read(min(_PIECE, left))
            left -= len(piece)
            yield piece

    def _header(self) -> tarfile.TarInfo | None:
        block = self._read(_BLOCK)
        if not any(block):
            return None  # the end is a block of zeros
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise FormatError(
                "this is no plain tar file",
                path=self.origin,
                found=str(error),
                remedy="decompress it first, if it is compressed",
            ) from None
        info.size = self._size(str(info.size))
        return info

    def _long_name(self, info: tarfile.TarInfo) -> dict[str, str]:
        """What a header before a header says of the next member: its path, its size."""
        if info.size > _LONGEST_HEADER:
            raise FormatError("a name in a tar is too long", path=self.origin, found=info.size)
        data = self._read(info.size)
        if info.type == tarfile.GNUTYPE_LONGNAME:
            return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
        said = {}
        while data:
            length, _, rest = data.partition(b" ")
            end = int(length) if length.isdigit() and len(length) < 8 else 0
            record = data[len(length) + 1 : end]
            key, equals, value = record.partition(b"=")
            if not rest or not equals or not record.endswith(b"\n") or end > len(data):
                raise FormatError("a header of a tar is damaged", path=self.origin)
            said[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
            data = data[end:]
        if any(key.startswith("GNU.sparse") for key in said):
            raise FormatError("a bundle holds no sparse files", path=self.origin)
        return said

    def _size(self, text: str) -> int:
        size = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else _LARGEST + 1
        if size > _LARGEST:
            raise FormatError("a size in a tar is no size", path=self.origin, found=text)
        return size

    def _go(self, position: int) -> None:
        if self._jumping is not None:
            if position > self._end:
                self._cut_short(self._end)
            self._jumping.seek(position)
            self._position = position
        while self._position < position:
            self._read(min(_PIECE, position - self._position))

    def _read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        parts: list[bytes] = []
        left = size
        while left and (piece := self._file.read(left)):
            parts.append(piece)
            left -= len(piece)
        self._position += size - left
        if left:
            self._cut_short(self._position)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _cut_short(self, size: int) -> NoReturn:
        raise IntegrityError(
            "a bundle is cut short",
            path=self.origin,
            found=f"{size} bytes",
            remedy="make it, or copy it, again",
        )
