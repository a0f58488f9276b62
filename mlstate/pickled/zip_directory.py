"""The directory of a zip archive as torch.save writes it: entries stored as they are.

It is read more strictly than by others, so that no two readers see different entries: one archive
from the first byte to the last, entries that do not overlap, names that differ in more than case
(torch looks names up without regard to it).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlstate.digests import Bytes
from mlstate.errors import FormatError
from mlstate.pickled.caps import MAX_DIRECTORY, MAX_ENTRIES, capped
from mlstate.pickled.source import Source

__all__ = ["Entry", "read_directory", "torchscript"]

_END, _END_SIGNATURE = struct.Struct("<4s4H2IH"), b"PK\5\6"
_LOCATOR, _LOCATOR_SIGNATURE = struct.Struct("<4sIQI"), b"PK\6\7"
_END64, _END64_SIGNATURE = struct.Struct("<4sQ2H2I4Q"), b"PK\6\6"
_ENTRY, _ENTRY_SIGNATURE = struct.Struct("<4s6H3I5H2I"), b"PK\1\2"
_LOCAL, _LOCAL_SIGNATURE = struct.Struct("<4s5H3I2H"), b"PK\3\4"
_MOST_COMMENT = 0xFFFF
_USUAL_END = _END.size + _LOCATOR.size + _END64.size
_FULL = 0xFFFFFFFF
_IS_FOLDER = 0x10
_MOST_EXTRA = 0xFFFF
_STORED, _DEFLATED = 0, 8
_DESCRIPTOR = 24
"""What may follow the content of an entry: its sum and its sizes once more, in bytes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the directory.

    Attributes:
        name: Its name.
        header: Where its own header begins in the file.
        size: The size of its content, as it lies in the file.
        crc: The CRC-32 of its content, as the directory says.
        limit: Where the next entry begins, or the directory: it ends before.
        inflated: The size that its content becomes, if it is deflated; else None.
    """

    name: str
    header: int
    size: int
    crc: int
    limit: int = 0
    inflated: int | None = None

    @property
    def header_size(self) -> int:
        """The bytes of its header that tell where its content begins."""
        return _LOCAL.size + len(self.name.encode())

    @property
    def end(self) -> int:
        """Its content ends before, wherever it begins."""
        return min(self.limit, self.header + self.header_size + _MOST_EXTRA + self.size)

    @property
    def is_alone(self) -> bool:
        """Whether nothing but its own parts lies between its header and the next."""
        return self.limit <= self.header + self.header_size + _MOST_EXTRA + self.size + _DESCRIPTOR

    def offset(self, front: Bytes) -> int:
        """How far from its header its content begins.

        Args:
            front: Its first `header_size` bytes, or more.

        Raises:
            FormatError: Its header does not agree with the directory.
        """
        fields = _LOCAL.unpack_from(front)
        name = self.name.encode()
        method = _STORED if self.inflated is None else _DEFLATED
        if fields[0] != _LOCAL_SIGNATURE or fields[3] != method or fields[9] != len(name):
            raise _damaged("an entry whose header is another's", self.name)
        if bytes(front[_LOCAL.size : self.header_size]) != name:
            raise _damaged("an entry whose header has another name", self.name)
        offset = self.header_size + int(fields[10])
        if self.header + offset + self.size > self.limit:
            raise _damaged("an entry overlaps the next", self.name)
        return offset

    def start(self, source: Source) -> int:
        """Where its content begins, by its own header; see `offset`."""
        return self.header + self.offset(source.read(self.header, self.header_size))

    def content(self, source: Source) -> bytes:
        """Its content, read together with its header.

        Raises:
            FormatError: Its header does not agree with the directory.
        """
        data = source.read(self.header, self.end - self.header)
        start = self.offset(data)
        return data[start : start + self.size]


def torchscript() -> FormatError:
    """The error for an archive of torch.jit, whose parts that are code are compressed."""
    return FormatError(
        "this file is a TorchScript archive, which is a program and not a checkpoint",
        remedy="if you trust it, torch.jit.load it and save its state_dict()",
    )


def _damaged(what: str, found: object = None) -> FormatError:
    return FormatError(f"this file is a damaged or incomplete checkpoint: {what}", found=found)


_PACKED = "unpack it, and pack it again without compression"
_ELSEWHERE = "download it, and give the file: on this machine it is unpacked"


def read_directory(source: Source, *, deflated: bool = False) -> Mapping[str, Entry]:
    """Read the directory of an archive.

    Args:
        source: The archive.
        deflated: Whether entries may be deflated. They are read by `mlstate.pickled.deflated`.

    Returns:
        Name -> entry, in the directory's order.

    Raises:
        FormatError: A damaged directory, one with compressed entries, or one that could be read
            in two ways.
    """
    start, size, count = _find(source)
    if count > MAX_ENTRIES:
        raise capped("an archive with too many entries", MAX_ENTRIES, count)
    if size > MAX_DIRECTORY:
        raise capped("an archive whose directory is too long", MAX_DIRECTORY, f"{size} bytes")
    data = source.read(start, size)
    entries: dict[str, Entry] = {}
    names: set[str] = set()
    at = 0
    for _ in range(count):
        entry, at = _entry(data, at, deflated)
        if entry.name.lower() in names:
            raise _damaged("two entries have one name", entry.name)
        names.add(entry.name.lower())
        entries[entry.name] = entry
    if at != size:
        raise _damaged("its directory has another size")
    limits = _check_apart(list(entries.values()), start)
    return {name: replace(entry, limit=limits[name]) for name, entry in entries.items()}


def _find(source: Source) -> tuple[int, int, int]:
    """Start, size and number of entries of the directory."""
    length = min(source.size, _USUAL_END)
    tail = source.read(source.size - length, length)
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) - at != _END.size:  # a comment may follow, which torch does not write
        length = min(source.size, _END.size + _MOST_COMMENT)
        tail = source.read(source.size - length, length)
        at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) - at < _END.size:
        raise _damaged("its directory is missing")
    _, disk, disk2, here, count, size, start, comment = _END.unpack_from(tail, at)
    end = source.size - length + at
    if end + _END.size + comment != source.size:
        raise _damaged("something follows its directory")
    disks = [disk, disk2]
    if end >= _LOCATOR.size:
        locator = _LOCATOR.unpack(source.read(end - _LOCATOR.size, _LOCATOR.size))
        if locator[0] == _LOCATOR_SIGNATURE:
            fields = _END64.unpack(source.read(locator[2], _END64.size))
            if fields[0] != _END64_SIGNATURE or locator[2] + _END64.size != end - _LOCATOR.size:
                raise _damaged("its 64-bit directory is missing")
            disks += [fields[4], fields[5], locator[1]]
            small = (here, count, size, start)
            here, count, size, start = fields[6:10]
            _check_small(small, (here, count, size, start))
            end = locator[2]
    if any(disks) or here != count:
        raise _damaged("it is one of several parts")
    if start + size != end:
        raise _damaged("its directory is elsewhere")
    return start, size, count


def _check_small(small: tuple[int, ...], large: tuple[int, ...]) -> None:
    """The fields of 16 and 32 bits are the same as those of 64, or say that they are too small."""
    for field, value, full in zip(small, large, (0xFFFF, 0xFFFF, _FULL, _FULL), strict=True):
        if field not in (value, full):
            raise _damaged("it has two directories")


def _entry(data: bytes, at: int, deflated: bool) -> tuple[Entry, int]:
    """The entry at a position, and the position of the next."""
    if len(data) - at < _ENTRY.size:
        raise _damaged("its directory ends too early")
    fields = _ENTRY.unpack_from(data, at)
    signature, _, _, flags, method, _, _, crc, packed, size, length, extra, comment = fields[:13]
    attributes, header = fields[15:17]
    at += _ENTRY.size
    end = at + length + extra + comment
    if signature != _ENTRY_SIGNATURE or end > len(data):
        raise _damaged("its directory ends too early")
    try:
        name = data[at : at + length].decode()
    except UnicodeDecodeError:
        raise _damaged("an entry has a name that is no text") from None
    if "\0" in name:
        raise _damaged("an entry has a name that is no text", repr(name[:60]))
    size, packed, header = _large(data[at + length : at + length + extra], size, packed, header)
    if (method or size != packed) and "/code/" in name:
        raise torchscript()
    is_deflated = deflated and method == _DEFLATED
    if not is_deflated and (method or size != packed):
        raise FormatError(
            "this archive has compressed entries, which torch.save does not write",
            found=name,
            remedy=_PACKED if deflated or method != _DEFLATED else _ELSEWHERE,
        )
    if flags & 1:
        raise FormatError("this archive has encrypted entries", found=name)
    if size and (attributes & _IS_FOLDER or name.endswith("/")):
        # Torch reads no byte of one, and gives memory that nobody wrote.
        raise _damaged("it marks an entry with content as a folder", name)
    return Entry(name, header, packed, crc, inflated=size if is_deflated else None), end


def _large(extra: bytes, *fields: int) -> list[int]:
    """Sizes and position, from the extra field of 64 bits where the others are too small."""
    found = list(fields)
    lacking = [index for index, field in enumerate(fields) if field == _FULL]
    at = 0
    while lacking and at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        values = extra[at + 4 : at + 4 + size]
        if kind == 1:
            if len(values) < 8 * len(lacking):
                break
            for position, index in enumerate(lacking):
                (found[index],) = struct.unpack_from("<Q", values, 8 * position)
            lacking = []
        at += 4 + size
    if lacking:
        raise _damaged("an entry's size is missing")
    return found


def _check_apart(entries: list[Entry], end: int) -> dict[str, int]:
    """Refuse entries that overlap, judged by the least that their headers take.

    Returns:
        Name -> where the next entry begins.
    """
    entries.sort(key=lambda entry: entry.header)
    limits = [entry.header for entry in entries[1:]] + [end]
    for entry, limit in zip(entries, limits, strict=True):
        if entry.header + entry.header_size + entry.size > limit:
            if limit == end:
                raise _damaged("an entry is larger than the file", entry.name)
            raise _damaged("two entries overlap", entry.name)
    return {entry.name: limit for entry, limit in zip(entries, limits, strict=True)}
