"""Checkpoints as torch.save writes them since 1.6: a zip archive with a pickle and storages."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from mlstate.errors import FormatError
from mlstate.pickled.caps import MAX_PICKLE, capped
from mlstate.pickled.checkpoint import Checkpoint, Place
from mlstate.pickled.claims import Claims
from mlstate.pickled.constructors import understand
from mlstate.pickled.interpreter import read_pickle
from mlstate.pickled.source import BytesSource, Cursor, Source
from mlstate.pickled.zip_directory import Entry, read_directory

__all__ = ["read_zipped"]

_MOST_SMALL = 64


def read_zipped(source: Source) -> Checkpoint:
    """Read the structure of a zip archive.

    Raises:
        FormatError: It is damaged, of a big-endian machine, a program (TorchScript), or its
            storages are not all there.
    """
    entries = read_directory(source)
    folder = next(iter(entries), "").partition("/")[0]
    if any(name.endswith("/constants.pkl") for name in entries):
        raise FormatError(
            "this file is a TorchScript archive, which is a program and not a checkpoint",
            remedy="if you trust it, torch.jit.load it and save its state_dict()",
        )
    pickle = entries.get(f"{folder}/data.pkl")
    if pickle is None:
        raise FormatError("this archive has no data.pkl, which torch.save writes")
    with_crc = any(entry.crc for entry in entries.values())  # torch can be told to write none
    _check_byte_order(source, entries.get(f"{folder}/byteorder"), with_crc)
    if pickle.size > MAX_PICKLE:
        raise capped("a pickle that is too long", MAX_PICKLE, f"{pickle.size} bytes")
    claims = Claims()
    content = _content(source, pickle, with_crc)
    root = read_pickle(Cursor(BytesSource(content)), understand, claims.persistent_load)
    return Checkpoint(root, _places(source, entries, f"{folder}/data/", claims, with_crc))


def _check_byte_order(source: Source, entry: Entry | None, with_crc: bool) -> None:
    if entry is None:  # torch before 2.1
        return
    if entry.size > _MOST_SMALL:
        raise capped("a byteorder that is too long", _MOST_SMALL, f"{entry.size} bytes")
    order = _content(source, entry, with_crc)
    if order != b"little":
        raise FormatError(
            "this checkpoint was not saved on a little-endian machine",
            expected="byteorder little",
            found=order.decode("ascii", "replace"),
            remedy="load it with torch, and save it again",
        )


def _content(source: Source, entry: Entry, with_crc: bool) -> bytes:
    data = source.read(entry.start(source), entry.size)
    if with_crc and zlib.crc32(data) != entry.crc:
        raise FormatError(
            "this file is a damaged or incomplete checkpoint",
            expected=f"CRC-32 {entry.crc:08x} of {entry.name}",
            found=f"{zlib.crc32(data):08x}",
        )
    return data


def _places(
    source: Source, entries: Mapping[str, Entry], prefix: str, claims: Claims, with_crc: bool
) -> dict[str, Place]:
    places = {}
    for key, claim in claims.storages.items():
        entry = entries.get(prefix + key)
        if entry is None:
            raise FormatError("this checkpoint lacks a storage", expected=prefix + key)
        if claim.nbytes != entry.size:
            raise FormatError(
                "a storage of this checkpoint has another size than it claims to have",
                expected=f"{claim.nbytes} bytes in {entry.name}",
                found=f"{entry.size} bytes",
            )
        start = entry.start(source)
        places[key] = Place(start, entry.size, entry.crc if with_crc else None)
    _check_room(source, places)
    return places


def _check_room(source: Source, places: Mapping[str, Place]) -> None:
    """The extra fields of headers move contents: once more none overlaps, and all are there."""
    end = 0
    for place in sorted(places.values(), key=lambda place: (place.start, place.size)):
        if place.start < end or place.start + place.size > source.size:
            raise FormatError("this file is a damaged checkpoint: its storages overlap")
        end = place.start + place.size
