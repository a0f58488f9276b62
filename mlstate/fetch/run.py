"""One run over the mirrors of a state, in order, until nothing is missing."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlstate.digests import Digest
from mlstate.errors import (
    FetchError,
    FormatError,
    IntegrityError,
    MlstateError,
    OfflineError,
    TransportError,
)
from mlstate.fetch.filemirror import USUAL_HEADER, FileMirror
from mlstate.fetch.gather import Gathering, KnownGathering, UnknownGathering
from mlstate.fetch.ground import Ground
from mlstate.fetch.needs import Needs, needs_of
from mlstate.fetch.objectmirror import ObjectMirror
from mlstate.fetch.progress import Meter
from mlstate.fetch.runs import Reader
from mlstate.fetch.segments import DamagedPartialError
from mlstate.fetch.whole import bring_whole, read_object
from mlstate.format.state_object import StateObject
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests import FileEntry, StateEntry
from mlstate.objects.receiving import Receiver
from mlstate.objects.roots import write_root
from mlstate.reading import state_object_limit
from mlstate.transport import Transports
from mlstate.transport.hub import parse_hub_address

if TYPE_CHECKING:
    from mlstate.fetch.fetcher import Fetcher

__all__ = ["Run"]

_EMPTY = Digest.of(b"")
_ROOM = 1 << 30
"""What a file may have beside the state, where all of it must be read: bytes."""


class Run:
    """Brings what is missing of one state, from one mirror after the other.

    A mirror that refused or lied is not asked again in the same run.

    Args:
        fetcher: Its settings.
        transports: Opens addresses.
        entry: What a manifest says of the state.
        receiver: Takes what arrives.
        meter: Counts it.

    Attributes:
        spared: Bytes of tensor data that were there already.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        transports: Transports,
        entry: StateEntry,
        receiver: Receiver,
        meter: Meter,
    ) -> None:
        self._fetcher = fetcher
        self._transports = transports
        self._entry = entry
        self._receiver = receiver
        self.meter = meter
        self.spared = 0
        self._beside = 0  # bytes of a state object that came, of which little may be new
        self._attempts: list[tuple[str, str]] = []
        self._failed: set[str] = set()
        self._offline = False
        self._state: StateObject | None = None
        self._mirrors: list[Mirror] = []
        for mirror in entry.mirrors:
            if isinstance(mirror, Mirror):
                self._mirrors.append(mirror)
            else:
                self._pass_over(mirror)

    def fetch(self, names: Collection[str] | None, *, files: bool) -> None:
        """Bring all that is missing.

        Args:
            names: The tensors that are needed; None: all.
            files: Whether the state's files are needed, too.

        Raises:
            MlstateError: As `Fetcher.fetch`.
        """
        # First: whatever a killed run leaves belongs to a state that the cache keeps.
        keys = {file.digest for file in self._entry.files.values()}
        digest = self._entry.pinned_digest
        write_root(self._receiver.store.root, digest, str(self._entry.key), keys)
        if self._needs(names).lacks_state:
            self._bring_state_object()
        self.spared = self._needs(names).present
        self._bring_tensors(names)
        if files:
            self._bring_files()
        self._receiver.flush()
        left = self._needs(names, files=files)
        if left:
            raise self._failure("what is missing could not be fetched", left.in_words())

    def pin(self, max_size: int) -> tuple[Digest, StateObject]:
        """Bring a state of which nobody knows the digest, and say what it is.

        Args:
            max_size: The most bytes of tensor data.

        Raises:
            MlstateError: As `Fetcher.fetch`.
        """
        size = self._entry.size
        for mirror in self._mirrors:
            identity = _fixed(mirror) or uuid.uuid4().hex
            gathering = UnknownGathering(self._receiver, identity, None, size, max_size)
            self._gather(mirror, gathering, max_bytes=max_size, check_sums=True)
            if gathering.digest is not None and gathering.state is not None:
                self._receiver.flush()
                write_root(self._receiver.store.root, gathering.digest, str(self._entry.key), ())
                return gathering.digest, gathering.state
            if _fixed(mirror) is None:
                gathering.discard()
        raise self._failure("no mirror of an unpinned state could be read", None)

    def pin_file(self, name: str, mirror: Mirror) -> FileEntry:
        """Bring a file of which nobody knows the digest, and say what it is.

        Raises:
            MlstateError: As `Fetcher.fetch`.
        """
        found: list[Digest] = []

        def bring(ground: Ground) -> None:
            found.append(bring_whole(ground.open(mirror.urls[0]), None, None, ground))

        if not self._try(_name(mirror), bring):
            raise self._failure(f"the file {name!r} of a state could not be fetched", None)
        return FileEntry(found[0], (mirror,))

    def _needs(self, names: Collection[str] | None, *, files: bool = False) -> Needs:
        cache = self._fetcher.cache
        needs = needs_of(self._entry, cache, names, files=files, state=self._state)
        self._state = needs.state or self._state
        return needs

    def _bring_state_object(self) -> None:
        digest, limit = self._entry.pinned_digest, state_object_limit(self._entry)

        def from_objects(address: str, ground: Ground) -> None:
            mirror = ObjectMirror(address, ground)
            data = mirror.read(digest, limit)
            if data is None:
                raise TransportError(
                    "it does not have this state",
                    status=404,
                    found=f"nothing at {_shown(mirror.address_of(digest))}",
                    remedy="the address is that of the folder that has objects/ in it",
                )
            keep(data)

        def beside(address: str, ground: Ground) -> None:
            keep(read_object(ground.open(address), digest, limit))

        def keep(data: bytes) -> None:
            StateObject.parse(data)
            with self._receiver.arriving() as arriving:
                arriving.write(data)
                arriving.publish(digest)
            self.meter.add(len(data))
            self._beside = len(data)

        places = [(address, from_objects) for address in self._entry.objects]
        places += [(m.state, beside) for m in self._mirrors if m.state is not None]
        for address, bring in places:
            if self._try(address, partial(bring, address)):
                return

    def _bring_tensors(self, names: Collection[str] | None) -> None:
        for address in self._entry.objects:
            needs = self._needs(names)
            if needs and needs.state is not None:
                self._from_objects(address, dict(needs.objects))
        for mirror in self._mirrors:
            needs = self._needs(names)
            if not needs:
                return
            gathering: Gathering
            if needs.state is not None:
                gathering = KnownGathering(self._receiver, needs.refs)
                header = _header_of(needs.state)
                most = 4 * needs.state.nbytes + _ROOM
            else:
                digest, size = self._entry.pinned_digest, self._entry.size
                max_size = self._fetcher.max_size
                gathering = UnknownGathering(self._receiver, digest, digest, size, max_size)
                header = USUAL_HEADER
                most = max_size if size is None else 4 * size + _ROOM
            self._gather(mirror, gathering, header=header, max_bytes=most, check_sums=False)

    def _bring_files(self) -> None:
        for address in self._entry.objects:
            missing = self._needs((), files=True).files
            if missing:
                self._from_objects(address, {file.digest: None for file in missing.values()})
        for file in self._needs((), files=True).files.values():
            if file.digest == _EMPTY:  # nobody needs to send it, and not everybody can
                with self._receiver.arriving() as arriving:
                    arriving.publish(_EMPTY)
                continue
            for mirror in file.mirrors:
                if isinstance(mirror, UnusableMirror):
                    self._pass_over(mirror)
                elif self._try(_name(mirror), partial(_bring, mirror, file.digest)):
                    break

    def _from_objects(self, address: str, wanted: dict[Digest, int | None]) -> None:
        def gather(ground: Ground) -> None:
            mirror = ObjectMirror(address, ground)
            mirror.gather(wanted)
            if mirror.lacking:  # which says nothing of what else it has
                lacks = f"it lacks {len(mirror.lacking)} of {len(wanted)} objects"
                self._attempts.append((_shown(address), lacks))

        self._try(address, gather)

    def _gather(
        self,
        mirror: Mirror,
        gathering: Gathering,
        *,
        max_bytes: int,
        check_sums: bool,
        header: int = USUAL_HEADER,
    ) -> None:
        def gather(ground: Ground) -> None:
            files = FileMirror(
                mirror, ground, header=header, beside=self._beside, check_sums=check_sums
            )
            try:
                files.gather(gathering)
            finally:
                gathering.close()

        self._try(_name(mirror), gather, max_bytes)

    def _try(
        self, place: str, work: Callable[[Ground], None], max_bytes: int | None = None
    ) -> bool:
        """Work with one mirror; what goes wrong is noted, and it is not asked again."""
        if place in self._failed:
            return False
        try:
            try:
                work(self.ground(max_bytes))
            except DamagedPartialError:
                work(self.ground(max_bytes))
        except DamagedPartialError:
            self._note_failure(place, "what came of it is damaged, again and again")
        except OfflineError as error:
            self._offline = True
            self._note_failure(place, error.message)
        except (TransportError, FormatError, IntegrityError) as error:
            self._note_failure(place, _reason(error))
        else:
            return True
        return False

    def ground(self, max_bytes: int | None = None) -> Ground:
        """What an attempt at a mirror needs."""
        fetcher, entry = self._fetcher, self._entry
        most = 4 * (entry.size or 0) + _ROOM if max_bytes is None else max_bytes
        base = Path(entry.origin).parent if entry.origin else None
        reader = Reader(fetcher.retries, self.meter, fetcher.connections)
        return Ground(self._transports, reader, self._receiver, base, most)

    def _pass_over(self, mirror: UnusableMirror) -> None:
        toml = mirror.toml
        place = toml if isinstance(toml, str) else toml.get("url", toml.get("urls", "a mirror"))
        self._attempts.append((_shown(str(place)), mirror.reason))

    def _note_failure(self, place: str, reason: str) -> None:
        self._failed.add(place)
        self._attempts.append((_shown(place), reason))

    def _failure(self, message: str, missing: str | None) -> MlstateError:
        found = None if missing is None else f"missing: {missing}"
        if self._offline:
            return OfflineError(
                "something is not in the cache, and the network may not be used",
                path=self._entry.origin,
                found=found,
                remedy="unset MLSTATE_OFFLINE (or offline=True) once, and fetch this state",
            )
        return FetchError(
            message, path=self._entry.origin, found=found, attempts=tuple(self._attempts)
        )


def _bring(mirror: Mirror, digest: Digest, ground: Ground) -> None:
    """A file of a state from a mirror of its own."""
    bring_whole(ground.open(mirror.urls[0]), digest, None, ground)


def _name(mirror: Mirror) -> str:
    """A mirror, for people: its first address."""
    first = mirror
    while first.parts:
        first = first.parts[0]
    more = len(first.urls) - 1 + len(mirror.parts[1:])
    return first.urls[0] + (f" and {more} more" if more else "")


def _shown(address: str) -> str:
    """An address without its query, which may be a signature."""
    return address.partition("?")[0] if "://" in address else address


def _fixed(mirror: Mirror) -> str | None:
    """What a mirror is, if its files can never change; else None.

    Of a state without a digest nobody could tell a mixture from the whole. So what one run left
    is used by a later one only if it must be of the same files.
    """
    parts = mirror.parts or (mirror,)
    fixed = all(
        part.sha256 is None and url.startswith("hf://") and parse_hub_address(url).is_commit
        for part in parts
        for url in part.urls
    )
    return repr(mirror) if fixed else None


def _reason(error: MlstateError) -> str:
    said = [error.message]
    for label in ("tensor", "expected", "found", "remedy"):
        if value := getattr(error, label):
            said.append(f"{label}: {value}")
    return "; ".join(map(str, said))


def _header_of(state: StateObject) -> int:
    """How long the header of a plain file of this state may well be, in bytes."""
    names = [*state.inline, *state.refs]
    return 256 + sum(len(name.encode()) + 100 for name in names)
