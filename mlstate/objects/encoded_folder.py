"""Encoded objects in a folder: ``encoded/ab/cdef...``, and the settings that say so."""

from __future__ import annotations

import abc
import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, ObjectNotFoundError
from mlstate.files import ABSENT, LACKING
from mlstate.format import layout
from mlstate.objects.durable import (
    Publish,
    make_folders,
    read_small,
    sync_path,
    write_in_store,
    write_over,
)
from mlstate.objects.encoded_forms import RangeFile, no_encoded_form, no_plain_form, says_no_encoded
from mlstate.system import set_time

__all__ = ["EncodedFolder"]

_LOOKS = 3
"""So often an encoded object is looked for that prunings move to trash/ and back meanwhile."""


class EncodedFolder(abc.ABC):
    """What a folder of objects can do with encoded ones; see `EncodingObjectStore`."""

    root: Path

    @abc.abstractmethod
    def path(self, digest: Digest) -> Path:
        """Where the plain object lies, or would lie."""

    @abc.abstractmethod
    def plain_size(self, digest: Digest) -> int | None:
        """See `EncodedObjectStore.plain_size`."""

    @abc.abstractmethod
    def found(self, path: str | Path, in_trash: Callable[[], list[Path]]) -> BinaryIO | None:
        """Open a file that prunings may have moved to trash/; None if it is nowhere."""

    @abc.abstractmethod
    def in_trash(self, digest: Digest, *, encoded: bool = False) -> list[Path]:
        """The files of an object in trash/, or of its encoded form."""

    def encoded_path(self, digest: Digest) -> Path:
        """Where the encoded form of an object lies, or would lie."""
        return self.root / layout.encoded_path(digest)

    @abc.abstractmethod
    def encoded_size(self, digest: Digest) -> int | None:
        """See `EncodedObjectStore.encoded_size`."""

    def open_encoded(self, digest: Digest) -> RangeFile:
        """See `EncodedObjectStore.open_encoded`."""
        path = self.encoded_path(digest)
        found = self.found(path, lambda: self.in_trash(digest, encoded=True))
        if found is None:
            raise ObjectNotFoundError("an encoded object is missing", path=path, expected=digest)
        return RangeFile(found, str(path))

    def put_encoded(self, digest: Digest, parts: Iterable[Bytes], *, replace: bool = True) -> bool:
        """See `EncodingObjectStore.put_encoded`."""
        how = Publish.REPLACE if replace else Publish.CREATE
        return write_in_store(self.root, layout.encoded_path(digest), parts, publish=how)

    def put_encoded_index(self, state: Digest, data: bytes | None) -> None:
        """See `EncodingObjectStore.put_encoded_index`."""
        path = layout.encoded_index_path(state)
        if data is not None:
            write_in_store(self.root, path, [data])
        else:
            (self.root / path).unlink(missing_ok=True)

    def encoded_index(self, state: Digest) -> bytes | None:
        """See `EncodingObjectStore.encoded_index`."""
        try:
            return read_small(self.root / layout.encoded_index_path(state))
        except (FileNotFoundError, NotADirectoryError, FormatError):
            return None

    def retire_plain(self, digest: Digest) -> bool:
        """See `EncodingObjectStore.retire_plain`."""
        if not self._says_encoded():
            raise says_no_encoded(self.root / layout.SETTINGS, digest)
        if self.encoded_size(digest) is None:
            raise no_encoded_form(self.encoded_path(digest), digest)
        moved = self._move_to_trash(self.path(digest), layout.trashed_name(digest))
        if moved and not self._says_encoded():  # somebody has undone it at this moment
            self.say_encoded()
        return moved

    def drop_encoded(self, digest: Digest) -> bool:
        """See `EncodingObjectStore.drop_encoded`."""
        if self.plain_size(digest) is None:
            raise no_plain_form(self.path(digest), digest)
        name = layout.trashed_name(digest, encoded=True)
        return self._move_to_trash(self.encoded_path(digest), name)

    def say_encoded(self) -> None:
        """See `EncodingObjectStore.say_encoded`."""
        self._require(wanted=True)

    def say_plain(self) -> None:
        """See `EncodingObjectStore.say_plain`."""
        self._require(wanted=False)

    def _require(self, *, wanted: bool) -> None:
        """Let the settings require readers of encoded objects, or not; all else in them stays."""
        path, temporaries = self.root / layout.SETTINGS, self.root / layout.TEMPORARIES
        make_folders(self.root, temporaries)
        while True:
            old = read_small(path)
            layout.check_settings(old, str(path))
            new = layout.with_requirement(old, layout.ENCODED_OBJECTS, wanted=wanted)
            if new == old:
                sync_path(self.root)  # another process may have written it just now
                return
            if write_over(path, old, [new], temporary=temporaries / uuid.uuid4().hex):
                return

    def _says_encoded(self) -> bool:
        path = self.root / layout.SETTINGS
        return layout.ENCODED_OBJECTS in layout.check_settings(read_small(path), str(path))

    def _move_to_trash(self, path: Path, name: str) -> bool:
        """Move a file to trash/, where its grace period begins; False if it is gone."""
        target = self.root / layout.TRASH / name
        make_folders(self.root, target.parent)
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return False
        try:
            set_time(target)
        except OSError as error:  # another member's: its grace period began when it was written
            if error.errno not in {*LACKING, *ABSENT}:
                raise
        return True
