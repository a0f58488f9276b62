"""One run over the mirrors of a state, in order, until nothing is missing."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from mlstate.digests import Digest
from mlstate.errors import TransportError
from mlstate.fetch.attempts import Attempts, name_of, read_at_most, shown
from mlstate.fetch.context import Ground
from mlstate.fetch.download import bring_whole, read_object
from mlstate.fetch.file_mirror import USUAL_HEADER
from mlstate.fetch.gather import Gathering, KnownGathering
from mlstate.fetch.needs import Needs, needs_of
from mlstate.fetch.object_mirror import ObjectMirror
from mlstate.fetch.unsized import UnknownGathering
from mlstate.format.state_object import StateObject
from mlstate.locations import Mirror, UnusableMirror
from mlstate.objects.cache import write_root
from mlstate.reading import state_object_limit

__all__ = ["Run"]

_EMPTY = Digest.of(b"")


class Run(Attempts):
    """Brings what is missing of one state, from one mirror after the other.

    Attributes:
        spared: Bytes of tensor data that were there already.
    """

    spared = 0
    _state: StateObject | None = None

    def fetch(self, names: Collection[str] | None, *, files: bool) -> None:
        """Bring all that is missing.

        Args:
            names: The tensors that are needed; None: all.
            files: Whether the state's files are needed, too.

        Raises:
            MlstateError: As `Fetcher.fetch`.
        """
        # First: whatever a killed run leaves belongs to a state that the cache keeps.
        keys = {file.digest for file in self.entry.files.values()}
        digest = self.entry.pinned_digest
        write_root(self.receiver.store.root, digest, str(self.entry.key), keys)
        if self._needs(names).lacks_state:
            self._bring_state_object()
        needs = self._needs(names)
        self.spared = needs.present
        self._bring_tensors(names, needs)
        if files:
            self._bring_files()
        self.receiver.flush()
        left = self._needs(names, files=files)
        if left:
            raise self.failure("what is missing could not be fetched", left.in_words())

    def _needs(self, names: Collection[str] | None, *, files: bool = False) -> Needs:
        cache = self.fetcher.cache
        needs = needs_of(self.entry, cache, names, files=files, state=self._state)
        self._state = needs.state or self._state
        return needs

    def _bring_state_object(self) -> None:
        digest, limit = self.entry.pinned_digest, state_object_limit(self.entry)

        def from_objects(address: str, ground: Ground) -> None:
            mirror = ObjectMirror(address, ground)
            data = mirror.read(digest, limit)
            if data is None:
                raise TransportError(
                    "it does not have this state",
                    status=404,
                    found=f"nothing at {shown(mirror.address_of(digest))}",
                    remedy="the address is that of the folder that has objects/ in it",
                )
            keep(data)

        def beside(address: str, ground: Ground) -> None:
            keep(read_object(ground.open(address), digest, limit))

        def keep(data: bytes) -> None:
            StateObject.parse(data)
            with self.receiver.arriving() as arriving:
                arriving.write(data)
                arriving.publish(digest)
            self.meter.add(len(data))
            self.beside = len(data)

        places = [(address, from_objects) for address in self.entry.objects]
        places += [(m.state, beside) for m in self.mirrors if m.state is not None]
        for address, bring in places:
            if self.attempt(address, partial(bring, address)):
                return

    def _bring_tensors(self, names: Collection[str] | None, needs: Needs) -> None:
        for address in self.entry.objects:
            if needs and needs.state is not None:
                self._from_objects(address, dict(needs.objects))
                needs = self._needs(names)
        for mirror in self.mirrors:
            if not needs:
                return
            gathering: Gathering
            if needs.state is not None:
                gathering = KnownGathering(self.receiver, needs.refs)
                header = _header_of(needs.state)
                most = read_at_most(needs.state.nbytes)
            else:
                digest, size = self.entry.pinned_digest, self.entry.size
                max_size = self.fetcher.max_size
                gathering = UnknownGathering(self.receiver, digest, digest, size, max_size)
                header = USUAL_HEADER
                most = max_size if size is None else read_at_most(size)
            self.gather(mirror, gathering, header=header, max_bytes=most, check_sums=False)
            needs = self._needs(names)

    def _bring_files(self) -> None:
        for address in self.entry.objects:
            missing = self._needs((), files=True).files
            if missing:
                self._from_objects(address, {file.digest: None for file in missing.values()})
        for file in self._needs((), files=True).files.values():
            if file.digest == _EMPTY:  # nobody needs to send it, and not everybody can
                with self.receiver.arriving() as arriving:
                    arriving.publish(_EMPTY)
                continue
            for mirror in file.mirrors:
                if isinstance(mirror, UnusableMirror):
                    self.pass_over(mirror)
                elif self.attempt(name_of(mirror), partial(_bring, mirror, file.digest)):
                    break

    def _from_objects(self, address: str, wanted: dict[Digest, int | None]) -> None:
        def gather(ground: Ground) -> None:
            mirror = ObjectMirror(address, ground)
            mirror.gather(wanted)
            if mirror.lacking:  # which says nothing of what else it has
                lacks = f"it lacks {len(mirror.lacking)} of {len(wanted)} objects"
                self.attempts.append((shown(address), lacks))

        self.attempt(address, gather)


def _bring(mirror: Mirror, digest: Digest, ground: Ground) -> None:
    """A file of a state from a mirror of its own."""
    bring_whole(ground.open(mirror.urls[0]), digest, None, ground)


def _header_of(state: StateObject) -> int:
    """How long the header of a plain file of this state may well be, in bytes."""
    names = [*state.inline, *state.refs]
    return 256 + sum(len(name.encode()) + 100 for name in names)
