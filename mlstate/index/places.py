"""What the state files of one store say, by folder, name and version."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.index.database import Database, Writer
from mlstate.index.said import sealed, unsealed

__all__ = ["EntryRow", "Place", "asked", "forget_unused", "today"]

_AT_ONCE = 500
_Row = tuple[str, bytes]


class EntryRow(NamedTuple):
    """What a state file says, as far as the index keeps it.

    Attributes:
        digest: The state digest.
        size: The size that it gives, or None.
        files: The digests of its files, by name.
    """

    digest: Digest
    size: int | None
    files: Mapping[str, Digest]

    def encode(self, name: str) -> bytes:
        """The bytes that the index keeps for a state file of a name, at a version."""
        return sealed(name, json.dumps([self.digest, self.size, dict(self.files)]).encode())

    @classmethod
    def decode(cls, name: str, data: object) -> EntryRow | None:
        """The inverse of `encode`; None for bytes that it did not make."""
        said = unsealed(name, data)
        if said is None:
            return None
        try:
            digest, size, files = json.loads(said)
            named = {str(file): Digest(text) for file, text in files.items()}
            return cls(Digest(digest), None if size is None else int(size), named)
        except (ValueError, TypeError, AttributeError, FormatError, RecursionError):
            return None


class Place:
    """A store's folders of state files, as an index knows them.

    Args:
        database: The tables.
        name: The name of the store, the same whatever way leads there.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._kept: dict[str, dict[str, _Row]] = {}
        rows = database.rows(
            "SELECT folder.id, path, version, used FROM folder JOIN place ON place.id = folder.place"
            " WHERE place.name = ?",
            [name],
        )
        self._folders: dict[int, str] = {id_: path for id_, path, *_ in rows}
        self._ids: dict[str, int] = {path: id_ for id_, path in self._folders.items()}
        self.versions: dict[str, str | None] = {path: version for _, path, version, _ in rows}
        self.used = min((used for *_, used in rows if isinstance(used, int)), default=None)

    def entries(self, folder: str) -> dict[str, tuple[str, EntryRow]]:
        """The state files of a folder that are known: name -> version, and what it says."""
        id_ = self._ids.get(folder)
        if id_ is None:
            return {}
        found = self._database.rows("SELECT name, version, said FROM entry WHERE folder = ?", [id_])
        self._kept[folder] = {name: (version, said) for name, version, said in found}
        rows = ((n, v, EntryRow.decode(_sealed_name(n, v), said)) for n, v, said in found)
        return {name: (version, row) for name, version, row in rows if row is not None}

    def holders(self, objects: Iterable[int]) -> Iterator[tuple[int, str]]:
        """The folders of this store with a state that names one of some objects."""
        for some in asked(objects):
            marks = ",".join("?" * len(some))
            question = f"SELECT object, folder FROM holder WHERE object IN ({marks})"
            for number, folder in self._database.rows(question, some):
                if path := self._folders.get(folder):
                    yield number, path

    def write(
        self,
        writer: Writer,
        folder: str,
        version: str | None,
        entries: Mapping[str, tuple[str, EntryRow]],
        objects: Iterable[int],
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
            [place, folder],
        )
        writer.change("UPDATE folder SET version = ? WHERE id = ?", [(version, id_)])
        kept = self._kept.get(folder, {})
        new = {n: (v, row.encode(_sealed_name(n, v))) for n, (v, row) in entries.items()}
        gone = [(id_, name) for name in kept if name not in new]
        writer.change("DELETE FROM entry WHERE folder = ? AND name = ?", gone)
        writer.change(
            "INSERT OR REPLACE INTO entry (folder, name, version, said) VALUES (?, ?, ?, ?)",
            ((id_, name, *row) for name, row in new.items() if kept.get(name) != row),
        )
        writer.change("DELETE FROM holder WHERE folder = ?", [(id_,)])
        writer.change("INSERT INTO holder (object, folder) VALUES (?, ?)", ((n, id_) for n in objects))

    def note_use(self, writer: Writer) -> None:
        """Note that the store is asked about."""
        writer.change("UPDATE place SET used = ? WHERE name = ?", [(today(), self._name)])

    def forget(self, writer: Writer, folder: str) -> None:
        """Forget a folder that is there no more."""
        id_ = self._ids.get(folder)
        if id_ is not None:
            for table, column in (("entry", "folder"), ("holder", "folder"), ("folder", "id")):
                writer.change(f"DELETE FROM {table} WHERE {column} = ?", [(id_,)])


def forget_unused(writer: Writer, day: int) -> None:
    """Forget the stores that were not asked about since a day."""
    old = "folder IN (SELECT id FROM folder WHERE place IN (SELECT id FROM place WHERE used < ?))"
    writer.change(f"DELETE FROM entry WHERE {old}", [(day,)])
    writer.change(f"DELETE FROM holder WHERE {old}", [(day,)])
    writer.change(
        "DELETE FROM folder WHERE place IN (SELECT id FROM place WHERE used < ?)", [(day,)]
    )
    writer.change("DELETE FROM place WHERE used < ?", [(day,)])


def asked(values: Iterable[int | bytes]) -> Iterator[list[int | bytes]]:
    """Values in groups that one question takes."""
    rest = list(values)
    for begin in range(0, len(rest), _AT_ONCE):
        yield rest[begin : begin + _AT_ONCE]


def today() -> int:
    """The day, counted from the epoch."""
    return int(time.time() // 86400)


def _sealed_name(name: str, version: str) -> str:
    return f"{name}\0{version}"
