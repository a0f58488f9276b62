"""What the state files of one store say, by folder, name and version."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.index.database import Database, Writer
from mlstate.index.sealed import sealed, unsealed
from mlstate.index.space import FolderSpace

__all__ = ["EntryRow", "Folder", "Place", "asked", "forget_unused", "today"]

_AT_ONCE = 500

_Value = TypeVar("_Value", int, bytes)


class EntryRow(NamedTuple):
    """What a state file says, as far as the index keeps it.

    Attributes:
        version: The version of the file that says it.
        digest: The state digest.
        size: The size that it gives, or None.
        files: The digests of its files, by name.
    """

    version: str
    digest: Digest
    size: int | None
    files: Mapping[str, Digest]


@dataclass(frozen=True)
class Folder:
    """A folder of state files, as the index knows it.

    Attributes:
        entries: What each file says, by name; sorted.
        space: The space that all of them take; None where that is not known.
    """

    entries: dict[str, EntryRow] = field(default_factory=dict)
    space: FolderSpace | None = None


class Place:
    """A store's folders of state files, as an index knows them.

    Args:
        database: The tables.
        name: The name of the store, the same whatever way leads there.

    Attributes:
        versions: The version of each folder that is known whole; None of the others.
        used: The day when it was last noted that the store is asked about; None of a new one.
        is_due: Whether the use of its states is to be noted, too.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        rows = database.rows(
            "SELECT folder.id, path, version, used"
            " FROM folder JOIN place ON place.id = folder.place WHERE place.name = ?",
            [name],
        )
        self._paths: dict[int, str] = {id_: path for id_, path, *_ in rows}
        self._ids: dict[str, int] = {path: id_ for id_, path in self._paths.items()}
        self.versions: dict[str, str | None] = {path: version for _, path, version, _ in rows}
        self.used = min((used for *_, used in rows if isinstance(used, int)), default=None)
        self.is_due = False

    def folder(self, path: str) -> Folder:
        """What is known of a folder; nothing of an unknown one."""
        question = "SELECT entries, space FROM folder WHERE id = ?"
        for entries, space in self._database.rows(question, [self._ids.get(path)]):
            return Folder(_decoded(path, entries), FolderSpace.decode(path, space))
        return Folder()

    def holders(self, objects: Iterable[int]) -> Iterator[tuple[int, str]]:
        """The folders of this store with a state that names one of some objects."""
        for some in asked(objects):
            marks = ",".join("?" * len(some))
            question = f"SELECT object, folder FROM holder WHERE object IN ({marks})"
            for number, folder in self._database.rows(question, some):
                if path := self._paths.get(folder):
                    yield number, path

    def write(
        self, writer: Writer, path: str, version: str | None, folder: Folder, old: Folder
    ) -> None:
        """Keep what all the state files of a folder say, in the place of what was known of them."""
        place = writer.id_of(
            "SELECT id FROM place WHERE name = ?",
            f"INSERT OR IGNORE INTO place (name, used) VALUES (?, {today()})",
            [self._name],
        )
        id_ = writer.id_of(
            "SELECT id FROM folder WHERE place = ? AND path = ?",
            "INSERT OR IGNORE INTO folder (place, path) VALUES (?, ?)",
            [place, path],
        )
        entries = sealed(path, json.dumps(folder.entries).encode())
        space = None if folder.space is None else folder.space.encode(path)
        writer.change(
            "UPDATE folder SET version = ?, entries = ?, space = ? WHERE id = ?",
            [(version, entries, space, id_)],
        )
        new = set[int]() if folder.space is None else folder.space.sizes.keys()
        if old.space is None:
            gone, come = set[int](), set(new)
            if path in self._ids:  # rows of a space that is damaged, say
                writer.change("DELETE FROM holder WHERE folder = ?", [(id_,)])
        else:
            gone, come = old.space.sizes.keys() - new, new - old.space.sizes.keys()
        rows = ((number, id_) for number in gone)
        writer.change("DELETE FROM holder WHERE object = ? AND folder = ?", rows)
        rows = ((number, id_) for number in come)
        writer.change("INSERT OR IGNORE INTO holder (object, folder) VALUES (?, ?)", rows)

    def note_use(self, writer: Writer) -> None:
        """Note that the store is asked about."""
        writer.change("UPDATE place SET used = ? WHERE name = ?", [(today(), self._name)])

    def forget(self, writer: Writer, path: str) -> None:
        """Forget a folder that is there no more."""
        id_ = self._ids.get(path)
        writer.change("DELETE FROM holder WHERE folder = ?", [(id_,)])
        writer.change("DELETE FROM folder WHERE id = ?", [(id_,)])


def _decoded(path: str, data: object) -> dict[str, EntryRow]:
    """The entries that `Place.write` kept for a folder; none where it did not."""
    said = unsealed(path, data)
    if said is None:
        return {}
    try:
        found = json.loads(said).items()
        return {
            name: EntryRow(version, Digest(digest), size, files and _digests(files))
            for name, (version, digest, size, files) in found
        }
    except (ValueError, TypeError, AttributeError, FormatError, RecursionError):
        return {}


def _digests(files: Mapping[str, str]) -> dict[str, Digest]:
    return {name: Digest(digest) for name, digest in files.items()}


def forget_unused(writer: Writer, day: int) -> None:
    """Forget the stores that were not asked about since a day."""
    old = "SELECT folder.id FROM folder JOIN place ON place.id = folder.place WHERE used < ?"
    writer.change(f"DELETE FROM holder WHERE folder IN ({old})", [(day,)])
    writer.change(f"DELETE FROM folder WHERE id IN ({old})", [(day,)])
    writer.change("DELETE FROM place WHERE used < ?", [(day,)])


def asked(values: Iterable[_Value]) -> Iterator[list[_Value]]:
    """Values in groups that one question takes."""
    rest = list(values)
    for begin in range(0, len(rest), _AT_ONCE):
        yield rest[begin : begin + _AT_ONCE]


def today() -> int:
    """The day, counted from the epoch."""
    return int(time.time() // 86400)
