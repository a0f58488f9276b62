"""A run over the mirrors of one state: each is tried in turn, until nothing is missing.

Of a state without a digest a run brings everything, and says what it is: that pins the state.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, TransportError
from mlstate.fetch.attempts import Attempts, Context, name_of, read_at_most, shown
from mlstate.fetch.file_mirror import FileMirror
from mlstate.fetch.gather import DirectGathering, Gathering, StagedGathering
from mlstate.fetch.names import Naming, translate_all
from mlstate.fetch.object_mirror import (
    ENCODED_FROM,
    ObjectMirror,
    bring_object,
    read_state_object,
)
from mlstate.fetch.said import Said
from mlstate.format.state_object import StateObject
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests import FileEntry, StateEntry
from mlstate.objects import ObjectStore
from mlstate.objects.cache import write_root
from mlstate.reading import Names, Needs, Only, needs_of, state_object_limit
from mlstate.transport.hub import parse_hub_address
from mlstate.units import format_size

if TYPE_CHECKING:
    from mlstate.fetch.encoded_run import EncodedRun

__all__ = ["Run"]

_EMPTY = Digest.of(b"")
_EVICTIONS = 3
"""So often what a pruning takes from under a fetch is fetched again."""
_UNKNOWN_STATE = 64 << 20
"""The longest state object that is fetched of a state whose size nobody gives: bytes."""


class Run:
    """Brings what a cache lacks of one state, from one mirror after the other."""

    def __init__(self, attempts: Attempts, cache: ObjectStore) -> None:
        self.attempts = attempts
        self.entry = attempts.entry
        self.meter = attempts.meter
        self.spared = 0  # bytes of tensor data that were there already
        self._cache = cache
        self._receiver = attempts.receiver
        self._max_size = attempts.options.max_size
        self._state: StateObject | None = None
        self._beside = 0  # bytes of a state object that came, of which little may be new
        self._encoded: EncodedRun | None = None
        self._mirrors: list[Mirror] = []
        for mirror in self.entry.mirrors:
            if isinstance(mirror, Mirror):
                self._mirrors.append(mirror)
            else:
                attempts.pass_over(mirror)

    def fetch(self, names: Names, *, files: bool) -> None:
        """Bring all that is missing; arguments and errors as of `Fetcher.fetch`.

        A pruning that evicts meanwhile may take what was there, or has just come: that is brought
        again, for the pruning is over some time.
        """
        for again in range(_EVICTIONS + 1):
            # First: whatever a killed run leaves belongs to a state that the cache keeps, and a
            # pruning that has chosen it to go puts back what it has taken.
            self._keep(
                self.entry.pinned_digest, {file.digest for file in self.entry.files.values()}
            )
            there = self._bring(names, files=files, first=again == 0)
            left = self._needs(names, files=files)
            if left and self.attempts.put_off:
                self.attempts.be_patient()
                there |= self._bring(names, files=files, first=False)
                left = self._needs(names, files=files)
            if not left:
                return
            if not _digests(left, self.entry) & (there | self._receiver.published):
                break  # no pruning: it never came
        raise self.attempts.failure("what is missing could not be fetched", left.in_words())

    def _bring(self, names: Names, *, files: bool, first: bool) -> set[Digest]:
        """Go over all mirrors once; the objects that were there before."""
        if self._needs(names).lacks_state:
            self._bring_state_object()
        needs = self._needs(names, files=files)
        there = self._named(needs, names, files=files) - _digests(needs, self.entry)
        if first:
            self.spared = needs.present
        while True:
            self._receiver.deferred.clear()
            self._bring_tensors(names, self._needs(names))
            if files:
                self._bring_files()
            if not self._waited_for_others():
                break
        self._receiver.flush()
        return there

    def _waited_for_others(self) -> bool:
        """Wait for what other processes bring of this state, if they do; says whether they did."""
        deferred = dict(self._receiver.deferred)

        def waiting(left: Collection[Digest]) -> None:
            size = sum(deferred[digest] or 0 for digest in left)
            what = f"{len(left)} object{'s'[: len(left) > 1]} ({format_size(size)})"
            self.meter.wait(f"another process brings {what} of it")

        self._receiver.claims.wait(
            deferred, lambda digest: self._receiver.has(digest, deferred[digest]), waiting
        )
        return bool(deferred)

    def _named(self, needs: Needs, names: Names, *, files: bool) -> set[Digest]:
        """The objects that are needed, as far as that is known."""
        refs = {} if needs.state is None else needs.state.refs
        wanted = refs if names is None else () if isinstance(names, Only) else names
        named = {refs[name].digest for name in wanted if name in refs}
        named |= {file.digest for file in self.entry.files.values()} if files else set()
        return named | {self.entry.pinned_digest}

    def pin(
        self, said: dict[str, Said] | None = None, naming: Naming = translate_all
    ) -> tuple[Digest, StateObject, Mirror]:
        """Bring a state of which nobody knows the digest.

        Args:
            said: Takes what its files say, by their addresses.
            naming: Gives the names in the state of what its files have.

        Returns:
            Its digest, its state object, and the mirror that it came from, with the whole SHA-256
            of each file that was compared with digits of one.
        """
        found = self._pinned(said, naming)
        if found is None and self.attempts.put_off:
            self.attempts.be_patient()
            found = self._pinned(said, naming)
        if found is None:
            raise self.attempts.failure("no mirror of an unpinned state could be read", None)
        return found

    def _pinned(
        self, said: dict[str, Said] | None, naming: Naming
    ) -> tuple[Digest, StateObject, Mirror] | None:
        for mirror in self._mirrors:
            fixed = _fixed(mirror)
            gathering = StagedGathering(
                self._receiver, fixed, None, self.entry.size, self._max_size
            )
            size = self.entry.size
            self._receiver.remove_unsure()  # of a run that was killed
            try:
                self._gather(
                    mirror,
                    gathering,
                    size=size,
                    max_bytes=self._max_size,
                    check_sums=True,
                    said=said,
                    naming=naming,
                )
            finally:
                self._receiver.remove_unsure()
            if gathering.digest is not None and gathering.state is not None:
                self._receiver.flush()
                self._keep(gathering.digest, ())
                return gathering.digest, gathering.state, self._summed(mirror)
        return None

    def _summed(self, mirror: Mirror) -> Mirror:
        parts = tuple(map(self._summed, mirror.parts))
        return replace(mirror, sha256=self.attempts.sums.get(mirror, mirror.sha256), parts=parts)

    def pin_file(self, name: str, mirror: Mirror) -> FileEntry:
        """Bring a file of which nobody knows the digest; returns its entry, with the digest."""
        found: list[Digest] = []
        bring = partial(_bring_file, mirror, None, found)
        self.attempts.be_patient()  # nobody else has it
        if not self.attempts.attempt(name_of(mirror), bring):
            raise self.attempts.failure(f"the file {name!r} of a state could not be fetched", None)
        return FileEntry(found[0], (mirror,))

    def _keep(self, digest: Digest, files: Collection[Digest]) -> None:
        write_root(self._receiver.store.root, digest, str(self.entry.key), files)

    def _needs(self, names: Names, *, files: bool = False) -> Needs:
        needs = needs_of(self.entry, self._cache, names, files=files, state=self._state)
        if needs.state is not None and self._cache.size(self.entry.pinned_digest) is None:
            needs = Needs(None, {}, needs.files)  # it was taken, to trash/ perhaps
        self._state = needs.state
        return needs

    def _bring_state_object(self) -> None:
        digest, limit = self.entry.pinned_digest, state_object_limit(self.entry)
        if self.entry.size is None:
            limit = min(limit, _UNKNOWN_STATE)

        def from_objects(address: str, context: Context) -> None:
            mirror = ObjectMirror(address, context)
            data = mirror.read(digest, limit)
            if data is None:
                raise TransportError(
                    "it does not have this state",
                    status=404,
                    found=f"nothing at {shown(mirror.address_of(digest))}",
                    remedy="the address is that of the folder that has objects/ in it",
                )
            keep(data)

        def beside_a_file(address: str, context: Context) -> None:
            keep(read_state_object(context.open(address), digest, limit))

        def keep(data: bytes) -> None:
            StateObject.parse(data)
            with self._receiver.arriving() as arriving:
                arriving.write(data)
                arriving.publish(digest)
            self.meter.add(len(data))
            self._beside = len(data)

        places = [(address, from_objects) for address in self.attempts.objects]
        places += [(m.state, beside_a_file) for m in self._mirrors if m.state is not None]
        for address, bring in places:
            if self.attempts.attempt(address, partial(bring, address)):
                return

    def _bring_tensors(self, names: Names, needs: Needs) -> None:
        for address in self.attempts.objects:
            if needs and needs.state is not None:
                needs = self._bring_from_objects(address, names, needs)
        for mirror in self._mirrors:
            if not needs:
                return
            gathering: Gathering
            header: int | None
            if needs.state is not None:
                gathering = DirectGathering(self._receiver, needs.refs)
                header = _header_of(needs.state)
                most = read_at_most(needs.state.nbytes)
            else:
                digest, size, most = self.entry.pinned_digest, self.entry.size, self._max_size
                gathering = StagedGathering(self._receiver, digest, digest, size, most)
                header = None
                most = most if size is None else read_at_most(size)
            size = self.entry.size if needs.state is None else needs.state.nbytes
            self._gather(
                mirror, gathering, header=header, size=size, max_bytes=most, check_sums=False
            )
            needs = self._needs(names)

    def _bring_from_objects(self, address: str, names: Names, needs: Needs) -> Needs:
        """Bring tensors from a mirror of objects, encoded or plain; what is missing then."""
        at_once = sum(needs.objects.values()) >= ENCODED_FROM
        if at_once:
            self._encoded_run().bring(address, needs)
            needs = self._needs(names)
        if needs.refs and self._bring_objects(address, dict(needs.objects)):
            self._encoded_run().bring(address, self._needs(names), lacking=at_once)
        return self._needs(names)

    def _encoded_run(self) -> EncodedRun:
        if self._encoded is None:
            from mlstate.fetch.encoded_run import EncodedRun  # a small fetch needs none

            self._encoded = EncodedRun(self.attempts, self._cache)
        return self._encoded

    def _gather(
        self,
        mirror: Mirror,
        gathering: Gathering,
        *,
        max_bytes: int,
        check_sums: bool,
        size: int | None,
        header: int | None = None,
        said: dict[str, Said] | None = None,
        naming: Naming = translate_all,
    ) -> None:
        """Gather tensors from a mirror of files; see `FileMirror`."""

        def gather(context: Context) -> None:
            if context.whole:
                gathering.remove_parts()
                gathering.discard()
            files = FileMirror(
                mirror,
                context,
                header=header,
                size=size,
                beside=self._beside,
                check_sums=check_sums,
                naming=naming,
            )
            try:
                files.gather(gathering)
                if said is not None:
                    said.update(files.said)
            except (FormatError, IntegrityError):
                gathering.discard()  # nobody knows which of it is right
                raise
            finally:
                gathering.close()

        self.attempts.attempt(name_of(mirror), gather, max_bytes)

    def _bring_files(self) -> None:
        for address in self.attempts.objects:
            missing = self._needs((), files=True).files
            if missing:
                self._bring_objects(address, {file.digest: None for file in missing.values()})
        for file in self._needs((), files=True).files.values():
            if file.digest == _EMPTY:  # nobody needs to send it, and not everybody can
                with self._receiver.arriving() as arriving:
                    arriving.publish(_EMPTY)
                continue
            for mirror in file.mirrors:
                if isinstance(mirror, UnusableMirror):
                    self.attempts.pass_over(mirror)
                    continue
                bring = partial(_bring_file, mirror, file.digest, [])
                if self.attempts.attempt(name_of(mirror), bring):
                    break

    def _bring_objects(self, address: str, wanted: dict[Digest, int | None]) -> bool:
        """Bring objects from a mirror of them; says whether it lacks some."""
        lacking: set[Digest] = set()

        def gather(context: Context) -> None:
            mirror = ObjectMirror(address, context)
            mirror.gather(wanted)
            lacking.update(mirror.lacking)
            if mirror.lacking:  # which says nothing of what else it has
                lacks = f"it lacks {len(mirror.lacking)} of {len(wanted)} objects"
                self.attempts.note(address, lacks)

        self.attempts.attempt(address, gather)
        return bool(lacking)


def _digests(needs: Needs, entry: StateEntry) -> set[Digest]:
    """The objects that are missing."""
    state = {entry.pinned_digest} if needs.lacks_state else set()
    return {*needs.objects, *(file.digest for file in needs.files.values()), *state}


def _bring_file(
    mirror: Mirror, digest: Digest | None, found: list[Digest], context: Context
) -> None:
    """Bring a file of a state from a mirror of its own; its digest is added to ``found``."""
    found.append(bring_object(context.open(mirror.urls[0]), digest, None, context))


def _fixed(mirror: Mirror) -> str | None:
    """A text that stands for a mirror whose files can never change; None if they can.

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


def _header_of(state: StateObject) -> int:
    """The bytes that the header of a plain file of this state may well have."""
    names = [*state.inline, *state.refs]
    return 256 + sum(len(name.encode()) + 100 for name in names)
