"""A bundle is read into a store: objects first, each verified, then the state files.

No name of the tar becomes a path: a member is the settings, a state file or an object that a state
names, or the bundle is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from tarfile import TarInfo
from typing import TYPE_CHECKING, Any, NoReturn

from mlstate.digests import Digest, Hasher
from mlstate.errors import (
    FormatError,
    IntegrityError,
    ManifestError,
    ObjectNotFoundError,
    SignatureError,
    StateExistsError,
    concerning,
)
from mlstate.fetch.progress import Meter
from mlstate.format import layout, tensor_object
from mlstate.format.state_object import MAX_HEADER
from mlstate.manifests import StateEntry
from mlstate.manifests.parse import parse_state_file
from mlstate.objects import ObjectWriter
from mlstate.objects.durable import SMALL
from mlstate.objects.interface import SurveyedObjectStore, TrashingObjectStore
from mlstate.operations.tar_reader import TarReader
from mlstate.phrases import OVERWRITE, Phrase
from mlstate.reading import read_state
from mlstate.signatures.inline import is_signed
from mlstate.states import StateKey
from mlstate.stores.remote_entries import from_elsewhere, has_refused
from mlstate.stores.save_request import is_same
from mlstate.stores.state_saver import StateSaver
from mlstate.stores.statefiles import format_state_file
from mlstate.units import check_size

if TYPE_CHECKING:
    from mlstate.manifests.state_signatures import StateSignatures

__all__ = ["BundleReader"]

_FOLDERS = {".", layout.STATES, layout.OBJECTS, layout.TEMPORARIES, layout.TRASH, layout.ROOTS}
_MAKE = (
    "make bundles by "
    + Phrase("bundle()", "mlstate bundle")
    + "; or extract this one with tar, which makes a store of it"
)


class BundleReader:
    """Reads one bundle into a store, once; see `mlstate.operations.bundle.unbundle`."""

    def __init__(
        self,
        tar: TarReader,
        saver: StateSaver,
        meter: Meter,
        signatures: StateSignatures | None,
        *,
        overwrite: bool,
        max_size: int | None = None,
    ) -> None:
        self._tar = tar
        self._saver = saver
        self._meter = meter
        self._signatures = signatures
        self._overwrite = overwrite
        self._max_size = max_size
        self._size = 0  # of all members so far
        self._names: set[str] = set()
        self._states: dict[StateKey, tuple[StateEntry, bytes]] = {}
        self._state_objects: dict[Digest, list[StateEntry]] = {}
        self._named: dict[Digest, int | None] = {}  # what states name, with the size if it is known
        self._taken: dict[Digest, int] = {}

    def run(self) -> list[StateKey]:
        """Read all of it, publish its states, and return their keys, sorted."""
        for member in self._sorted() if self._tar.seekable else self._tar.members():
            self._add(member)
        if not self._states:
            raise FormatError("a bundle without states", path=self._tar.origin, remedy=_MAKE)
        self._check_complete(self._named)
        self._writer.flush()
        for key in sorted(self._states):
            self._publish(*self._states[key])
        self._check_taken()
        return sorted(self._states)

    def _sorted(self) -> Iterator[TarInfo]:
        """The members in the order of a bundle, whatever the order of the tar."""
        objects: list[TarInfo] = []
        texts: list[TarInfo] = []
        size = 0
        for member in self._tar.members():
            size += member.size
            (objects if _object_digest(member.name) else texts).append(member)
        with concerning(path=self._tar.origin):
            check_size(size, self._max_size)  # before anything is stored
        yield from sorted(texts, key=lambda member: member.name != layout.SETTINGS)
        # By now all state files have been read, and it is known which objects are state objects.
        yield from sorted(objects, key=lambda m: _object_digest(m.name) not in self._state_objects)

    def _add(self, member: TarInfo) -> None:
        if member.isdir():
            top, *below = member.name.split("/")
            if top not in _FOLDERS or ".." in below:
                self._refuse(member, "a folder that does not belong there is in this bundle")
            return
        if member.name in self._names:
            self._refuse(member, "a member is in this bundle twice")
        if not self._names and member.name != layout.SETTINGS:
            message = "this is no bundle: it does not begin as one"
            self._refuse(member, message, expected=layout.SETTINGS, remedy=_MAKE)
        self._names.add(member.name)
        self._size += member.size
        with concerning(path=self._tar.origin):
            check_size(self._size, self._max_size)
        if digest := _object_digest(member.name):
            self._add_object(member, digest)
        elif member.name == layout.SETTINGS:
            # Nothing in a bundle is encoded, and its reader decodes nothing.
            layout.check_settings(self._text(member), self._place(member), frozenset())
        elif key := layout.key_of_state_path(member.name):
            self._add_state(member, key)
        else:
            message = "something that does not belong there is in this bundle"
            self._refuse(member, message, remedy=_MAKE)

    def _add_state(self, member: TarInfo, key: StateKey) -> None:
        data = self._text(member)
        entry, data = self._entry(data, key, self._place(member))
        digest = entry.pinned_digest
        same = [other for other in self._states if str(other).lower() == str(key).lower()]
        if variant := next(iter(same), self._saver.files.case_variant(key)):
            raise StateExistsError(
                "a state whose key differs only in case is there; many file systems cannot tell "
                "them apart",
                key=key,
                found=variant,
            )
        self._existing(entry)
        self._states[key] = (entry, data)
        self._state_objects.setdefault(digest, []).append(entry)
        for named in (digest, *(file.digest for file in entry.files.values())):
            self._named.setdefault(named, None)

    def _entry(self, data: bytes, key: StateKey, path: str) -> tuple[StateEntry, bytes]:
        """The entry of a state file, signed as the bundle's reader and its target require it.

        An older version than one that was seen in the target is refused, if a signature is needed.
        Where none is, the bundle may not name every place, and what is stored must not either.
        """
        needed = [
            signatures
            for signatures in (self._signatures, self._saver.files.signatures)
            if signatures is not None and signatures.signers is not None
        ]
        if needed:
            from mlstate.manifests.state_signatures import StateText

            text = StateText(data, key, path, self._saver.files.identity(key))
            said = [signatures.entry(text) for signatures in needed][-1]
            return from_elsewhere(said, f"bundle {self._tar.origin}"), data
        said = parse_state_file(data, key, path)
        entry = from_elsewhere(said, f"bundle {self._tar.origin}")
        if has_refused(said, entry):
            data = format_state_file(entry)
            entry = parse_state_file(data, key, path)
        return entry, data

    def _text(self, member: TarInfo) -> bytes:
        if member.size > SMALL:
            self._damaged(member, "is too long", f"at most {SMALL} bytes", f"{member.size} bytes")
        return b"".join(self._pieces(member))

    def _existing(self, entry: StateEntry) -> StateEntry | None:
        """The entry that the store has under the key: none, the same, or one to replace."""
        try:
            stored, _ = self._saver.stored(entry.key)
        except (ManifestError, SignatureError):
            if not self._overwrite:
                raise
            return None
        if stored is None:
            return None
        if not self._overwrite and not is_same(stored, entry.pinned_digest, entry):
            raise StateExistsError(
                "this key has another state already; nothing was stored under it",
                key=entry.key,
                path=stored.origin,
                expected=f"{entry.digest}, in the bundle",
                found=f"{stored.digest}, stored",
                remedy="delete the stored one ("
                + Phrase("store.delete(key)", "mlstate rm KEY")
                + "), or "
                + OVERWRITE,
            )
        return stored

    def _publish(self, entry: StateEntry, data: bytes) -> None:
        states = self._saver.files
        if not self._overwrite:
            while self._existing(entry) is None and not states.create(entry.key, data):
                pass  # another process was first: is it the same?
        elif self._existing(entry) != entry:
            states.replace(entry.key, data)
        if self._signatures is None or self._signatures.signers is None:
            return
        # Who asks for signatures gets those of the bundle, beside a state that is there without.
        now = states.read(entry.key)
        if now is not None and now != data and not is_signed(now):
            states.change(entry.key, now, data)

    def _add_object(self, member: TarInfo, digest: Digest) -> None:
        if digest not in self._named:
            if self._tar.seekable:  # then all state objects come before it
                self._check_complete(self._state_objects)
            message = "an object that no state before it names is in this bundle"
            self._refuse(member, message, remedy=_MAKE)
        size = self._named[digest]
        if size is not None and member.size != size:
            self._damaged(member, "has the wrong length", f"{size} bytes", f"{member.size} bytes")
        self._named[digest] = member.size
        states = self._state_objects.get(digest, [])
        for entry in states:
            if entry.size is not None and member.size > (most := 8 + MAX_HEADER + entry.size):
                self._damaged(member, "is too large", f"at most {most} bytes", member.size)
        # A state object is small, and the one that is here may be damaged: it is written anew.
        if not states and self._writer.reuse(digest, member.size):
            self._check(member, digest)
            self._taken[digest] = member.size
        else:
            self._put(member, digest)
            # What is new is young. To look at it again all the same costs a bucket's requests.
            if not isinstance(self._saver.objects, SurveyedObjectStore):
                self._taken[digest] = member.size
        for entry in states:
            with concerning(entry.key):
                for name, ref in read_state(entry, self._saver.objects).refs.items():
                    self._add_tensor(name, ref.digest, tensor_object.object_size(ref.spec))

    def _add_tensor(self, name: str, digest: Digest, size: int) -> None:
        known = self._named.get(digest)
        if known is not None and known != size:
            raise FormatError(
                "a tensor of a bundle has another size elsewhere in it",
                tensor=name,
                path=self._tar.origin,
                expected=f"{known} bytes",
                found=f"{size} bytes",
            )
        self._named[digest] = size

    def _check(self, member: TarInfo, digest: Digest) -> None:
        hasher = Hasher()
        for piece in self._pieces(member):
            hasher.update(piece)
        if (found := hasher.digest()) != digest:
            self._damaged(member, "is damaged", digest, found)

    def _put(self, member: TarInfo, digest: Digest) -> None:
        try:
            self._writer.put(digest, self._pieces(member))
        except IntegrityError as error:
            if error.path == self._tar.origin:
                raise  # the tar itself is cut short
            self._damaged(member, "is damaged", digest, error.found)

    @cached_property
    def _writer(self) -> ObjectWriter:
        # Not before there is something to write: a refused bundle makes no store.
        return self._saver.objects.writer()

    def _pieces(self, member: TarInfo) -> Iterator[bytes]:
        for piece in self._tar.pieces(member):
            self._meter.add(len(piece))
            yield piece

    def _check_complete(self, digests: Iterable[Digest]) -> None:
        for digest in digests:
            if layout.object_path(digest) not in self._names:
                raise ObjectNotFoundError(
                    "an object is missing in this bundle; none of its states was stored",
                    path=self._tar.origin,
                    expected=digest,
                    remedy="make it, or copy it, again",
                )

    def _check_taken(self) -> None:
        """Put back what pruning took before a state file named it, or raise if it is gone."""
        objects = self._saver.objects
        for digest, size in self._taken.items():
            if objects.size(digest) != size and not (
                isinstance(objects, TrashingObjectStore) and objects.restore(digest)
            ):
                raise ObjectNotFoundError(
                    "an object was pruned while a bundle that has it was read",
                    path=self._saver.objects.locate(digest),
                    expected=digest,
                    remedy="read the bundle again: that brings what is missing",
                )

    def _place(self, member: TarInfo) -> str:
        return f"{self._tar.origin}: {member.name}"

    def _refuse(self, member: TarInfo, message: str, **fields: Any) -> NoReturn:
        raise FormatError(
            f"{message}; none of its states was stored", path=self._place(member), **fields
        )

    def _damaged(self, member: TarInfo, how: str, expected: object, found: object) -> NoReturn:
        raise IntegrityError(
            f"a member of this bundle {how}; none of its states was stored",
            path=self._place(member),
            expected=expected,
            found=found,
            remedy="make it, or copy it, again",
        ) from None


def _object_digest(name: str) -> Digest | None:
    """The inverse of `layout.object_path`; None of another path."""
    parts = name.split("/")
    try:
        digest = Digest("".join(parts[1:]))
    except FormatError:
        return None
    return digest if layout.object_path(digest) == name else None
