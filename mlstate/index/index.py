"""The index of one user: what states say, by state digest, and what state files say, by place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from mlstate.digests import Digest
from mlstate.index.database import Database, Writer
from mlstate.index.places import Place, asked, forget_unused, today
from mlstate.index.said import Said
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.reading import check_state_size, read_state

__all__ = ["Index", "open_index"]

_NOTED = 7
"""The days within which a use is not noted again."""
_KEPT = 90
"""The days that what is not used is kept."""


@contextmanager
def open_index() -> Iterator[Index]:
    """The user's index; what was read meanwhile is kept when the context ends without an error."""
    database = Database()
    try:
        index = Index(database)
        yield index
        index.flush()
    finally:
        database.close()


class Index:
    """What states say: as it was kept, or read from the store and kept from then on.

    For one thread. It answers for statistics; whoever loads or removes reads the store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[Digest, Said | None] = {}
        self._new: dict[Digest, Said] = {}
        self._used: list[Digest] = []
        self._writes: list[Callable[[Writer], None]] = []

    def load(self, digests: Iterable[Digest]) -> None:
        """Look for what is kept of many states at once, which `said` is asked for next."""
        unknown = (digest for digest in digests if digest not in self._known)
        wanted = {bytes.fromhex(digest): digest for digest in unknown}
        noted = today() - _NOTED
        for some in asked(wanted):
            marks = ",".join("?" * len(some))
            question = f"SELECT digest, used, said FROM state WHERE digest IN ({marks})"
            for digest in map(wanted.__getitem__, some):
                self._known[digest] = None
            for raw, used, data in self._database.rows(question, some):
                digest = wanted[raw]
                said = Said.decode(digest, data)
                if said is not None:
                    self._known[digest] = said
                    if not isinstance(used, int) or not noted < used <= today():
                        self._used.append(digest)

    def kept(self, digest: Digest) -> Said | None:
        """What is kept of a state; None of an unknown one."""
        if digest not in self._known:
            self.load([digest])
        return self._known.get(digest)

    def said(self, entry: StateEntry, objects: ObjectStore, *, here: bool = True) -> Said:
        """What the state of an entry says.

        Args:
            entry: The entry.
            objects: Where its state object is read if the index does not know it.
            here: Whether the state object has to be in `objects`, too.

        Raises:
            MlstateError: As of `mlstate.reading.read_state`.
        """
        digest = entry.pinned_digest
        said = self.kept(digest)
        if said is None or (here and objects.size(digest) != said.size):
            state = read_state(entry, objects)
            said = Said.of(state, objects.size(digest) or 0)
            self._known[digest] = said
            if said.nbytes < 1 << 63:  # else it is nothing that is
                self._new[digest] = said
        check_state_size(entry, said.nbytes)
        return said

    def place(self, name: str) -> Place:
        """What state files of the store of a name say."""
        place = Place(self._database, _as_text(name))
        if place.used is not None and not today() - _NOTED < place.used <= today():
            place.is_due = True
            self.later(place.note_use)
        return place

    def touch(self, digests: Iterable[Digest]) -> None:
        """Note that what is kept of states is used, though nobody asked for it."""
        self._used.extend(digests)

    def later(self, write: Callable[[Writer], None]) -> None:
        """Write something with all else, at the end."""
        self._writes.append(write)

    def flush(self) -> None:
        """Keep what was read since the index was opened."""
        if self._new or self._writes or self._used:
            self._database.write(self._write)
            self._database.trim()

    def _write(self, writer: Writer) -> None:
        writer.change(
            "INSERT OR REPLACE INTO state (digest, used, said) VALUES (?, ?, ?)",
            ((bytes.fromhex(d), today(), said.encode(d)) for d, said in self._new.items()),
        )
        writer.change(
            "UPDATE state SET used = ? WHERE digest = ?",
            ((today(), bytes.fromhex(digest)) for digest in self._used),
        )
        for write in self._writes:
            write(writer)
        if self._used:  # not each time: it looks at all rows
            writer.change("DELETE FROM state WHERE used < ?", [(today() - _KEPT,)])
            forget_unused(writer, today() - _KEPT)


def _as_text(name: str) -> str:
    """A name that SQLite takes. A path whose bytes are no text begins as no other name does."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"bytes:{name.encode(errors='surrogatepass').hex()}"
    return name
