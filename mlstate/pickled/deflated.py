"""Zip archives with compressed entries, which no torch.save writes: unpacked up to a limit.

`torch.load` takes an archive that was packed again with compression, and `numpy.savez_compressed`
writes such ones. They become archives with the same entries as they are, in a file without a name,
which the one reader of archives reads.
"""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mlstate.errors import FormatError
from mlstate.pickled.gzipped import check_unpacked, unpacks_to
from mlstate.pickled.source import FileSource, Source
from mlstate.pickled.zip_directory import Entry, read_directory

__all__ = ["stored_archive"]

_CHUNK = 1 << 20
_MAGIC = b"PK\3\4"


@contextmanager
def stored_archive(
    file: BinaryIO, folder: Path, origin: str | None, max_bytes: int | None
) -> Iterator[BinaryIO]:
    """The archive itself, or a temporary one with its entries unpacked; any other file as it is.

    Args:
        file: An open file.
        folder: Where the temporary file is made; it has no name.
        origin: Where the file is from, for errors; or None.
        max_bytes: The most bytes that the entries may become together; None is as `unpacks_to`
            says.

    Raises:
        FormatError: A damaged archive, one that is compressed in another way, or that becomes
            larger.
    """
    source = FileSource(file)
    is_archive = source.size >= len(_MAGIC) and source.read(0, len(_MAGIC)) == _MAGIC
    entries = [*read_directory(source, deflated=True).values()] if is_archive else []
    if all(entry.inflated is None for entry in entries):
        yield file
        return
    if max_bytes is None:
        max_bytes = unpacks_to(source.size)
    size = sum(entry.size if entry.inflated is None else entry.inflated for entry in entries)
    check_unpacked(size, max_bytes, origin)
    with tempfile.TemporaryFile(dir=folder) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive:
            for entry in entries:
                info = zipfile.ZipInfo(entry.name)
                info.file_size = entry.size if entry.inflated is None else entry.inflated
                with archive.open(info, "w") as target:
                    for piece in _content(source, entry):
                        target.write(piece)
        temporary.flush()
        temporary.seek(0)
        yield temporary


def _content(source: Source, entry: Entry) -> Iterator[bytes]:
    """What an entry becomes, piece by piece; refused if it is not what the directory says."""
    size = crc = 0
    for piece in _unpacked(source, entry):
        size += len(piece)
        if entry.inflated is not None and size > entry.inflated:
            break
        crc = zlib.crc32(piece, crc)
        yield piece
    expected = entry.size if entry.inflated is None else entry.inflated
    # Torch can be told to write no sums; who packs an archive again makes them.
    if size != expected or (crc != entry.crc and (entry.crc or entry.inflated is not None)):
        raise FormatError(
            "an entry of this archive is damaged",
            expected=f"{entry.name}: {expected} bytes, CRC-32 {entry.crc:08x}",
            found=f"{size if size <= expected else 'more'} bytes, {crc:08x}",
        )


def _unpacked(source: Source, entry: Entry) -> Iterator[bytes]:
    start = entry.start(source)
    inflater = None if entry.inflated is None else zlib.decompressobj(-zlib.MAX_WBITS)
    for at in range(start, start + entry.size, _CHUNK):
        piece = source.read(at, min(_CHUNK, start + entry.size - at))
        if inflater is None:
            yield piece
            continue
        try:
            while piece and not inflater.eof:
                yield inflater.decompress(piece, _CHUNK)
                piece = inflater.unconsumed_tail
        except zlib.error as error:
            raise FormatError(
                "an entry of this archive is damaged", expected=entry.name, found=error
            ) from None
    if inflater is not None:
        yield inflater.flush()  # what a last match still had
