"""The SQLite file of an index: private to its user, and gone without a word where it fails.

The file lies in the user's cache folder, in a folder that nobody else may write to: of a cache that
a group shares, each member has an index of their own, and none of another is ever opened. It has a
rollback journal and no WAL, which needs memory that machines of a network do not share. Nothing is
flushed to the disk: what a power cut damages is made anew.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlstate import settings
from mlstate.errors import MlstateError
from mlstate.locations import anchored
from mlstate.system import may_be_written_by_others, user

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Database", "index_folder"]

_SCHEMA = """
CREATE TABLE state (digest BLOB PRIMARY KEY, used INTEGER NOT NULL, said BLOB NOT NULL);
CREATE TABLE place (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, used INTEGER NOT NULL);
CREATE TABLE folder (
    id INTEGER PRIMARY KEY, place INTEGER NOT NULL, path TEXT NOT NULL, version TEXT,
    entries BLOB, space BLOB, UNIQUE (place, path)
);
CREATE TABLE holder (
    object INTEGER NOT NULL, folder INTEGER NOT NULL, PRIMARY KEY (object, folder)
) WITHOUT ROWID;
"""
_PRAGMAS = (
    "mmap_size = 0",  # of a map, a file that becomes shorter meanwhile kills the process
    "synchronous = OFF",
    "trusted_schema = OFF",
    "cache_size = -65536",
)
_VERSION = 1
"""Of the tables and of what they hold; it is a part of the file's name, too, so that versions of
mlstate beside each other have a file each."""
_PATIENCE = 0.25
"""The seconds that another process is waited for, which writes for a few milliseconds."""
_MOST = 1 << 30
"""The bytes at which an index is begun anew; 100,000 states of 100 tensors take 0.25 GB."""
_LARGEST = 1 << 28
_FOLDER = re.compile(r"index-\d+")
_HARMLESS = frozenset({3, 5, 6, 7, 8, 9, 13, 14, 15})
"""SQLite's codes for a file that is locked, or may not be written, or has no room: it is whole."""


def index_folder() -> Path:
    """The folder of this user's index, whether it is there or not.

    Raises:
        FormatError: The settings name no cache folder.
    """
    return anchored(settings.cache_folder()) / f"index-{user()}"


def is_index_folder(name: str) -> bool:
    """Whether a folder of a cache has the name of an index, of this user or of another."""
    return _FOLDER.fullmatch(name) is not None


class Database:
    """The tables of an index: those of the file while they can be used, and else none.

    No method raises because of the file: what fails is logged once, questions have no answers from
    then on, and what is written is lost.
    """

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        self._path: Path | None = None
        try:
            self._path = index_folder() / f"states-{_VERSION}.sqlite"
            _prepare(self._path)
        except (OSError, MlstateError) as error:
            _log("no index of states is kept", error)
            return
        for _ in range(2):  # once more where a damaged file was removed
            self._open()
            if self._connection is not None or _is_there(self._path):
                break

    def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # whatever it is, nothing depends on it any more
                connection.close()

    def rows(self, question: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that answer a question; none where the file cannot be used."""
        if self._connection is None:
            return []
        with self._guarded():
            return self._connection.execute(question, values).fetchall()
        return []

    def write(self, work: Callable[[Writer], None]) -> None:
        """Change rows: all that `work` writes becomes true at once, or nothing does."""
        connection = self._connection
        if connection is None:
            return
        with self._guarded():
            connection.execute("BEGIN IMMEDIATE")
            try:
                work(Writer(connection))
                connection.execute("COMMIT")
            except BaseException:
                with suppress(Exception):
                    connection.execute("ROLLBACK")
                raise

    def trim(self) -> None:
        """Begin anew if the file has become too large."""
        with suppress(OSError):
            if self._path is not None and self._path.stat().st_size > _MOST:
                self._remove()

    def _open(self) -> None:
        import sqlite3  # most commands need none

        with self._guarded():
            self._connection = sqlite3.connect(
                str(self._path), timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
            self._connection.text_factory = lambda data: data.decode("utf-8", "replace")
            for pragma in _PRAGMAS:
                self._connection.execute(f"PRAGMA {pragma}")
            if self._version() == 0:
                self._connection.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;"
                )
            elif self._version() != _VERSION:
                self._remove()

    def _version(self) -> int:
        assert self._connection is not None
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Go on without the file after any error of SQLite; one that is damaged is removed."""
        import sqlite3

        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            damaged = code is not None and code & 0xFF not in _HARMLESS
            _log(f"the index of states is {'damaged' if damaged else 'not used'}", error)
            if damaged:
                self._remove()
            self.close()

    def _remove(self) -> None:
        """Remove the file; whoever has it open goes on with what is nobody's any more."""
        self.close()
        assert self._path is not None
        for path in (self._path, Path(f"{self._path}-journal")):
            with suppress(OSError):
                path.unlink()


class Writer:
    """Changes rows within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def change(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each row of values."""
        self._connection.executemany(statement, rows)

    def id_of(self, find: str, make: str, values: Sequence[Any]) -> int:
        """The id of a row, which is made if it is missing."""
        self._connection.execute(make, values)
        return int(self._connection.execute(find, values).fetchone()[0])


def _prepare(path: Path) -> None:
    """Make the folder of an index, and refuse one that others could have written to.

    Raises:
        OSError: It cannot be made, is not this user's alone, or something else bears its name.
    """
    folder = path.parent
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
    own = found.st_uid == user() and not may_be_written_by_others(found)
    if not own or not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{folder} is not a folder that only its user may write to")
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(f"{path} is not a file")


def _log(what: str, error: Exception) -> None:
    import logging  # few processes come here

    logging.getLogger("mlstate.index").info("%s: %s", what, error)


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)
