"""Checkpoints as torch.save writes them since 1.6: a zip archive with a pickle and storages."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlstate.errors import FormatError
from mlstate.pickled.caps import MAX_PICKLE, capped
from mlstate.pickled.checkpoint import Checkpoint, Place
from mlstate.pickled.claims import Claims
from mlstate.pickled.constructors import understand
from mlstate.pickled.interpreter import read_pickle
from mlstate.pickled.source import BytesSource, Cursor, Source
from mlstate.pickled.values import Value
from mlstate.pickled.zip_directory import Entry, read_directory, torchscript

__all__ = ["Archive", "read_archive", "read_zipped"]

_MOST_SMALL = 64


@dataclass(frozen=True)
class Archive:
    """A zip archive: its structure was read, nothing of its storages.

    Attributes:
        root: What was saved, as inert values: see `mlstate.pickled.values`.
        storages: The entry of each storage that the pickle refers to, by its key.
        with_crc: Whether entries have sums; torch can be told to write none.
    """

    root: Value = field(repr=False)
    storages: Mapping[str, Entry] = field(repr=False)
    with_crc: bool


def read_archive(source: Source) -> Archive:
    """Read the structure of a zip archive: its directory, its pickle, and its byte order.

    Raises:
        FormatError: It is damaged, of a big-endian machine, a program (TorchScript), or its
            storages are not all there.
    """
    entries = read_directory(source)
    folder = next(iter(entries), "").partition("/")[0]
    if any(name.endswith("/constants.pkl") for name in entries):
        raise torchscript()
    pickle = entries.get(f"{folder}/data.pkl")
    if pickle is None:
        raise _without_pickle(entries)
    with_crc = any(entry.crc for entry in entries.values())
    if pickle.size > MAX_PICKLE:
        raise capped("a pickle that is too long", MAX_PICKLE, f"{pickle.size} bytes")
    content = _content(source, pickle, with_crc)
    _check_byte_order(source, entries.get(f"{folder}/byteorder"), with_crc)
    claims = Claims()
    root = read_pickle(Cursor(BytesSource(content)), understand, claims.persistent_load)
    return Archive(root, _storages(entries, f"{folder}/data/", claims), with_crc)


def _without_pickle(entries: Mapping[str, Entry]) -> FormatError:
    if any(name.rpartition("/")[2] in _EXPORTED for name in entries):
        return FormatError(
            "this file is a program of torch.export (.pt2) and not a checkpoint",
            remedy="if you trust it, torch.export.load it and save its state_dict",
        )
    return FormatError(
        "this archive has no data.pkl, which torch.save writes",
        found=", ".join([*entries][:8]) or "an empty archive",
        remedy="unpack it, and give the file of weights in it",
    )


_EXPORTED = ("archive_format", "serialized_exported_program.json")


def read_zipped(source: Source) -> Checkpoint:
    """Read the structure of a zip archive, and where its storages begin; see `read_archive`."""
    archive = read_archive(source)
    places = {
        key: Place(entry.start(source), entry.size, entry.crc if archive.with_crc else None)
        for key, entry in archive.storages.items()
    }
    return Checkpoint(archive.root, places)


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
    data = entry.content(source)
    if with_crc and zlib.crc32(data) != entry.crc:
        raise FormatError(
            "this file is a damaged or incomplete checkpoint",
            expected=f"CRC-32 {entry.crc:08x} of {entry.name}",
            found=f"{zlib.crc32(data):08x}",
        )
    return data


def _storages(entries: Mapping[str, Entry], prefix: str, claims: Claims) -> dict[str, Entry]:
    storages = {}
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
        storages[key] = entry
    return storages
