"""Tar files read as streams, with bounded memory: what a bundle needs, and nothing else.

`tarfile` writes bundles, but is not strict enough to read them: it takes a damaged header for the
end of the archive, reads as much memory as an extended header claims to need, and does not ask for
the block that ends an archive. Here no claim of a header is trusted, and no name becomes a path.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from tarfile import TarInfo
from typing import BinaryIO, NoReturn, Protocol, cast

from mlstate.errors import FormatError, IntegrityError
from mlstate.phrases import Phrase

__all__ = ["PIECE", "TarReader", "read_fully"]

PIECE = 1 << 20
"""How many bytes are copied at a time."""

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_HEADER = 1 << 16
_LARGEST = 1 << 60
_BEFORE_A_MEMBER = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)
_ALLOWED = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes; none at the end."""


def read_fully(file: _Readable, size: int) -> bytes:
    """Return so many bytes; fewer only at the end of the file."""
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class TarReader:
    """Reads a tar from front to back; in any order, by jumps, where the file is seekable."""

    def __init__(self, file: _Readable, origin: str, *, seekable: bool) -> None:
        self.origin = origin  # where the tar is from, for errors
        self._file = file
        self._position = 0
        self._jumping = cast("BinaryIO", file) if seekable else None
        self._end = 0 if self._jumping is None else self._jumping.seek(0, 2)

    @property
    def seekable(self) -> bool:
        """Whether members may be read in any order."""
        return self._jumping is not None

    def members(self) -> Iterator[TarInfo]:
        """The files and folders in order. Without seeking, read each before the next is asked for.

        Names are as they stand in the tar, not checked; only ``./`` before them is left out.
        """
        position = 0
        extended: dict[str, str] = {}
        while (info := self._header(position)) is not None:
            is_member = info.type not in (*_BEFORE_A_MEMBER, tarfile.XGLTYPE)
            if is_member and "size" in extended:
                info.size = self._size(extended["size"])
            info.offset_data = position + _BLOCK
            position = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
            if info.type in _BEFORE_A_MEMBER:
                extended |= self._extended_header(info)
            elif is_member:
                if info.type not in _ALLOWED:
                    raise FormatError(
                        "a bundle holds files alone, no links, devices or other things",
                        path=f"{self.origin}: {info.name}",
                        found=f"a member of type {info.type!r}",
                    )
                info.name = extended.get("path", info.name)
                while info.name.startswith("./"):
                    info.name = info.name[2:]
                yield info
                extended = {}

    def pieces(self, member: TarInfo) -> Iterator[bytes]:
        """The content of a member, piece by piece; an IntegrityError if the tar is cut short."""
        self._go(member.offset_data)
        for start in range(0, member.size, PIECE):
            yield self._read(min(PIECE, member.size - start))

    def _header(self, position: int) -> TarInfo | None:
        self._go(position)
        block = self._read(_BLOCK)
        if not any(block):
            return None  # the end is a block of zeros
        try:
            info = TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise FormatError(
                "this is no plain tar file",
                path=self.origin,
                found=str(error),
                remedy=Phrase(
                    "decompress it first, if it is compressed",
                    "if it is compressed: gunzip -c FILE | mlstate unbundle -",
                ),
            ) from None
        info.size = self._size(str(info.size))
        return info

    def _extended_header(self, info: TarInfo) -> dict[str, str]:
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
            self._read(min(PIECE, position - self._position))

    def _read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        data = read_fully(self._file, size)
        self._position += len(data)
        if len(data) < size:
            self._cut_short(self._position)
        return data

    def _cut_short(self, size: int) -> NoReturn:
        raise IntegrityError(
            "a bundle is cut short",
            path=self.origin,
            found=f"{size} bytes",
            remedy="make it, or copy it, again",
        )
