"""A bundle on its way into a store: objects first, each verified, then the state files.

No name of the tar becomes a path: a member is the settings, a state file or an object that a state
names, or the bundle is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from mlstate.digests import Digest, Hasher
from mlstate.errors import (
    FormatError,
    IntegrityError,
    ManifestError,
    ObjectNotFoundError,
    StateExistsError,
    concerning,
)
from mlstate.fetch.progress import Meter
from mlstate.format import layout, tensor_object
from mlstate.format.state_object import MAX_HEADER
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectWriter
from mlstate.objects.files import SMALL
from mlstate.operations.tars import Member, TarReader
from mlstate.phrases import OVERWRITE, Phrase
from mlstate.reading import read_state
from mlstate.states import StateKey
from mlstate.stores.save import SavingStore
from mlstate.stores.statefiles import parse_state_file

__all__ = ["Unbundling"]

_FOLDERS = {".", layout.STATES, layout.OBJECTS, layout.TEMPORARIES, layout.TRASH, layout.ROOTS}
_MAKE = (
    "make bundles by "
    + Phrase("bundle()", "mlstate bundle")
    + "; or extract this one with tar, which makes a store of it"
)


class Unbundling:
    """A bundle, being read into a store.

    Args:
        tar: The bundle.
        store: Where to.
        meter: Counts the bytes that were read.
        overwrite: Replace other states that have the same keys.
    """

    def __init__(
        self, tar: TarReader, store: SavingStore, meter: Meter, *, overwrite: bool
    ) -> None:
        self._tar = tar
        self._store = store
        self._meter = meter
        self._overwrite = overwrite
        self._names: set[str] = set()
        self._states: dict[StateKey, tuple[StateEntry, bytes]] = {}
        self._heads: dict[Digest, list[StateEntry]] = {}
        self._wanted: dict[Digest, int | None] = {}
        self._taken: set[Digest] = set()
        self._reused: dict[Digest, int] = {}
        self._writer: ObjectWriter | None = None

    def run(self) -> list[StateKey]:
        """Read all of it, and publish its states.

        Returns:
            Their keys, sorted.

        Raises:
            MlstateError: See `mlstate.operations.bundle.unbundle`; no state was published.
        """
        for member in self._sorted() if self._tar.seekable else self._tar.members():
            self._take(member)
        self._check_complete()
        self._objects().flush()
        for key in sorted(self._states):
            self._publish(*self._states[key])
        self._look_again()
        return sorted(self._states)

    def _sorted(self) -> Iterator[Member]:
        """The members in the order of a bundle, whatever the order of the tar."""
        members = list(self._tar.members())
        objects = [member for member in members if _object_digest(member.name)]
        texts = [member for member in members if not _object_digest(member.name)]
        yield from sorted(texts, key=lambda member: member.name != layout.SETTINGS)
        # By now all state files have been read, and it is known which objects are state objects.
        yield from sorted(objects, key=lambda m: _object_digest(m.name) not in self._heads)

    def _take(self, member: Member) -> None:
        if member.is_folder:
            top, *below = member.name.split("/")
            if top not in _FOLDERS or ".." in below:
                self._refuse(member, "a folder that does not belong there is in this bundle")
            return
        if member.name in self._names:
            self._refuse(member, "a member is in this bundle twice")
        if not self._names and member.name != layout.SETTINGS:
            self._refuse(
                member,
                "this is no bundle: it does not begin as one",
                expected=layout.SETTINGS,
                remedy=_MAKE,
            )
        self._names.add(member.name)
        if digest := _object_digest(member.name):
            self._take_object(member, digest)
        elif member.name == layout.SETTINGS:
            layout.check_settings(self._text(member), self._place(member))
        elif key := layout.key_of_state_path(member.name):
            self._take_state(member, key)
        else:
            self._refuse(
                member, "something that does not belong there is in this bundle", remedy=_MAKE
            )

    # State files.

    def _take_state(self, member: Member, key: StateKey) -> None:
        data = self._text(member)
        entry = parse_state_file(data, key, self._place(member))
        digest = entry.pinned_digest
        same = [other for other in self._states if str(other).lower() == str(key).lower()]
        if variant := next(iter(same), self._store.states.case_variant(key)):
            raise StateExistsError(
                "a state whose key differs only in case is there; many file systems cannot tell "
                "them apart",
                key=key,
                found=variant,
            )
        self._existing(entry)
        self._states[key] = (entry, data)
        self._heads.setdefault(digest, []).append(entry)
        for wanted in (digest, *(file.digest for file in entry.files.values())):
            self._wanted.setdefault(wanted, None)

    def _text(self, member: Member) -> bytes:
        if member.size > SMALL:
            self._damaged(member, "is too long", f"at most {SMALL} bytes", f"{member.size} bytes")
        return b"".join(self._pieces(member))

    def _existing(self, entry: StateEntry) -> StateEntry | None:
        """What the store has under the key of a state: none, the same, or one to replace."""
        try:
            found = self._store.find(entry.key)
        except ManifestError:
            if not self._overwrite:
                raise
            return None
        if found is None:
            return None
        if not self._overwrite and _content(found.entry) != _content(entry):
            raise StateExistsError(
                "this key has another state already; nothing was stored under it",
                key=entry.key,
                path=found.entry.origin,
                expected=f"{entry.digest}, in the bundle",
                found=f"{found.entry.digest}, stored",
                remedy="delete the stored one, or " + OVERWRITE,
            )
        return found.entry

    def _publish(self, entry: StateEntry, data: bytes) -> None:
        states = self._store.states
        if self._overwrite:
            if self._existing(entry) != entry:
                states.replace(entry.key, data)
            return
        while self._existing(entry) is None and not states.create(entry.key, data):
            pass  # another process was first: is it the same?

    # Objects.

    def _take_object(self, member: Member, digest: Digest) -> None:
        if digest not in self._wanted:
            if self._tar.seekable:  # then all state objects come before it
                self._check_taken(self._heads)
            self._refuse(
                member, "an object that no state before it names is in this bundle", remedy=_MAKE
            )
        size = self._wanted[digest]
        if size is not None and member.size != size:
            self._damaged(member, "has the wrong length", f"{size} bytes", f"{member.size} bytes")
        self._wanted[digest] = member.size
        heads = self._heads.get(digest, [])
        for entry in heads:
            if entry.size is not None and member.size > (most := 8 + MAX_HEADER + entry.size):
                self._damaged(member, "is too large", f"at most {most} bytes", member.size)
        # A state object is small, and what is here under its name may be damaged: it is put anew.
        if not heads and self._objects().reuse(digest, member.size):
            self._verify(member, digest)
            self._reused[digest] = member.size
        else:
            self._put(member, digest)
        self._taken.add(digest)
        for entry in heads:
            with concerning(entry.key):
                for name, ref in read_state(entry, self._store.target).refs.items():
                    self._want(name, ref.digest, tensor_object.object_size(ref.spec))

    def _want(self, name: str, digest: Digest, size: int) -> None:
        known = self._wanted.get(digest)
        if known is not None and known != size:
            raise FormatError(
                "a tensor of a bundle has another size elsewhere in it",
                tensor=name,
                path=self._tar.origin,
                expected=f"{known} bytes",
                found=f"{size} bytes",
            )
        self._wanted[digest] = size

    def _verify(self, member: Member, digest: Digest) -> None:
        hasher = Hasher()
        for piece in self._pieces(member):
            hasher.update(piece)
        if (found := hasher.digest()) != digest:
            self._damaged(member, "is damaged", digest, found)

    def _put(self, member: Member, digest: Digest) -> None:
        try:
            self._objects().put(digest, self._pieces(member))
        except IntegrityError as error:
            if error.path == self._tar.origin:
                raise  # the tar itself is cut short
            self._damaged(member, "is damaged", digest, error.found)

    def _objects(self) -> ObjectWriter:
        # Not before there is something to write: a refused bundle makes no store.
        if self._writer is None:
            self._writer = self._store.target.writer()
        return self._writer

    def _pieces(self, member: Member) -> Iterator[bytes]:
        for piece in self._tar.pieces(member):
            self._meter.add(len(piece))
            yield piece

    # In the end.

    def _check_complete(self) -> None:
        if not self._states:
            raise FormatError("a bundle without states", path=self._tar.origin, remedy=_MAKE)
        self._check_taken(self._wanted)

    def _check_taken(self, digests: Iterable[Digest]) -> None:
        for digest in digests:
            if digest not in self._taken:
                raise ObjectNotFoundError(
                    "an object is missing in this bundle; none of its states was stored",
                    path=self._tar.origin,
                    expected=digest,
                    remedy="make it, or copy it, again",
                )

    def _look_again(self) -> None:
        """Pruning may have taken a reused object before a state file named it."""
        for digest, size in self._reused.items():
            if self._store.target.size(digest) != size:
                raise ObjectNotFoundError(
                    "an object was pruned while a bundle that has it was read",
                    path=self._store.target.locate(digest),
                    expected=digest,
                    remedy="read the bundle again: that brings what is missing",
                )

    def _place(self, member: Member) -> str:
        return f"{self._tar.origin}: {member.name}"

    def _refuse(self, member: Member, message: str, **fields: Any) -> NoReturn:
        raise FormatError(
            f"{message}; none of its states was stored", path=self._place(member), **fields
        )

    def _damaged(self, member: Member, how: str, expected: object, found: object) -> NoReturn:
        raise IntegrityError(
            f"a member of this bundle {how}; none of its states was stored",
            path=self._place(member),
            expected=expected,
            found=found,
            remedy="make it, or copy it, again",
        ) from None


def _object_digest(name: str) -> Digest | None:
    """The object of a path in the store layout; the inverse of `layout.object_path`."""
    parts = name.split("/")
    try:
        digest = Digest("".join(parts[1:]))
    except FormatError:
        return None
    return digest if layout.object_path(digest) == name else None


def _content(entry: StateEntry) -> tuple[object, dict[str, Digest]]:
    return entry.digest, {name: file.digest for name, file in entry.files.items()}
