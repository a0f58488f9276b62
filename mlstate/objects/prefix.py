"""The prefix of a bucket that is a store: its paths, its settings, and tests of the server."""

from __future__ import annotations

import uuid
from contextlib import suppress

from mlstate.buckets.client import BucketClient
from mlstate.buckets.upload import BucketUploads
from mlstate.errors import BucketError, FormatError
from mlstate.format import layout
from mlstate.objects.durable import SMALL
from mlstate.parallel import ProcessLock
from mlstate.phrases import Phrase
from mlstate.warn import warn

__all__ = ["BucketPlace"]


class BucketPlace:
    """A prefix of a bucket that is a store or may become one; the empty one is the whole bucket."""

    def __init__(self, client: BucketClient, base: str = "") -> None:
        self.client = client
        self.base = base
        self._lock = ProcessLock()
        self._settings: bytes | None = None
        self._requires: frozenset[str] = frozenset()
        self._looked = False
        self._honours: bool | None = None
        self._verifying = ProcessLock(again=True)
        self._verifies: bool | None = None
        self.uploads = BucketUploads(client, self.verifies_uploads)

    @property
    def address(self) -> str:
        """The address of the store, ``s3://bucket/base``, as in an object mirror of a manifest."""
        return self.client.locate(self.base).rstrip("/")

    def path(self, name: str) -> str:
        """The path in the bucket of an item with this name in the store."""
        return f"{self.base}/{name}" if self.base else name

    def name(self, path: str) -> str:
        """The inverse of `path`."""
        return path.removeprefix(f"{self.base}/") if self.base else path

    def locate(self, name: str) -> str:
        """The address of an item with this name in the store."""
        return self.client.locate(self.path(name))

    def read(
        self, name: str, error: type[FormatError] = FormatError
    ) -> tuple[bytes, str | None] | None:
        """A small text of the store and its ETag, or None; raises `error` if it is too large."""
        found = self.client.read_small(self.path(name), SMALL)
        if found is not None and len(found[0]) > SMALL:
            raise error(
                "this is no text of a store",
                path=self.locate(name),
                expected=f"at most {SMALL} bytes",
                found="more",
            )
        return found

    def check(self, *, again: bool = False) -> bool:
        """Whether the prefix is a store already; once it is, no request is made.

        With ``again`` one is: settings may have changed to what this version must not touch.

        Raises:
            FormatError: The prefix has other contents, or is a store of a newer version.
            BucketError: The bucket cannot be asked.
        """
        if (self._settings is not None and not again) or self._read_settings():
            return True
        folders, _ = self.client.children(self.base)
        having = [name for name in (layout.STATES, layout.OBJECTS) if name in folders]
        # Another process may just have begun it, with the settings first.
        if having and not self._read_settings():
            raise FormatError(
                f"this prefix is not a store: it has {having[0]}/ but no {layout.SETTINGS}",
                path=self.address,
                remedy=Phrase("give the store's own base_path=", "give the store's own prefix")
                + ", or an empty or new one",
            )
        return self._settings is not None

    def prepare(self) -> None:
        """Make the prefix a store before anything else is written; raises what `check` does."""
        if not self.check():
            self.uploads.create(self.path(layout.SETTINGS), layout.NEW_SETTINGS)
            self._read_settings()

    def says_encoded(self, *, again: bool = False) -> bool:
        """Whether the store says that it has encoded objects, when its settings were last read.

        With ``again`` they are read now.
        """
        if again or not self._looked:
            self._read_settings()
        return layout.ENCODED_OBJECTS in self._requires

    def compacts(self) -> bool:
        """Whether the settings say that what is saved is encoded at once."""
        if not self._looked:
            self._read_settings()
        place = self.locate(layout.SETTINGS)
        return self._settings is not None and layout.compacts(self._settings, place)

    def require(self, word: str, *, wanted: bool) -> None:
        """Let the settings require something of readers, or not; all else in them stays."""
        path = self.path(layout.SETTINGS)
        while True:
            self.prepare()
            found = self.read(layout.SETTINGS)
            if found is None:
                continue
            old, etag = found
            layout.check_settings(old, self.locate(layout.SETTINGS))
            new = layout.with_requirement(old, word, wanted=wanted)
            if new == old:
                break
            if etag is None:
                self.uploads.put(path, new)
            elif not self.uploads.replace(path, new, etag):
                continue
            break
        self._read_settings()

    def honours_conditions(self) -> bool:
        """Whether the server honours conditional writes; tested once, with a warning if not.

        For the test, the settings are written again, unchanged, on the condition that they are not
        there. They are read just before: another process may have changed what was read once, and
        a server that ignores the condition writes what it is given.
        """
        with self._lock:
            if self._honours is None:
                self.prepare()
                self._read_settings()
                assert self._settings is not None
                written = self.uploads.create(self.path(layout.SETTINGS), self._settings)
                self._honours = not written
                if written:
                    warn(
                        f"the server of {self.client.address} ignores conditional writes: if two "
                        "save different states under one key at the same moment, either may "
                        "replace the other's"
                    )
            return self._honours

    def verifies_uploads(self) -> bool:
        """Whether the server refuses data that was damaged on its way; tested once.

        For the test, a file in tmp/ is written in a request that is signed over other bytes. A
        server that compares the two refuses it; what another one has written is deleted.
        """
        with self._verifying:
            if self._verifies is None:
                self._verifies = False  # for writes during the test
                self.prepare()
                self._verifies = self._refuses_damage()
            return self._verifies

    def _refuses_damage(self) -> bool:
        try:
            control = self.client.control
        except BucketError:
            return False  # no boto3, or not S3
        path = self.path(f"{layout.TEMPORARIES}/{uuid.uuid4().hex}")
        if control.refuses_damage(path, layout.NEW_SETTINGS):
            return True
        with suppress(BucketError):  # without the right to write there, none has been written
            self.client.delete(path)
        return False

    def _read_settings(self) -> bool:
        found = self.read(layout.SETTINGS)
        self._looked = True
        if found is None:
            return False
        self._requires = layout.check_settings(found[0], self.locate(layout.SETTINGS))
        self._settings = found[0]
        return True
