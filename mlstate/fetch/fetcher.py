"""The fetcher: it brings states that a manifest lists into a cache, verified."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from mlstate.digests import Digest
from mlstate.errors import IntegrityError, ObjectNotFoundError, ReadOnlyStoreError, concerning
from mlstate.fetch.addresses import any_on_hub, settled_on_hub
from mlstate.fetch.attempts import Attempts, Options
from mlstate.fetch.download import MAX_SIZE
from mlstate.fetch.names import Naming, translate_all
from mlstate.fetch.outages import Outages
from mlstate.fetch.progress import Meter, OnProgress
from mlstate.fetch.run import Run
from mlstate.fetch.said import Said
from mlstate.format import layout
from mlstate.format.tensor_object import TensorSpec
from mlstate.locations import Mirror
from mlstate.log import info
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.objects.cache import Cache, forget_root, last_use, note_use, one_at_a_time
from mlstate.objects.receiving import Receiver
from mlstate.objects.verified import check_digest, digest_of, is_disk_error
from mlstate.parallel import for_each
from mlstate.phrases import Phrase
from mlstate.reading import Names, Needs, Only, needs_of, read_state
from mlstate.transport import Retries, Transports
from mlstate.transport.reach import Reach
from mlstate.warn import warn

__all__ = ["MAX_SIZE", "FetchReport", "Fetcher", "damaged_objects", "has_mirrors"]

_CANNOT_BE_MADE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
"""Errors of a folder that is not there, where the one above it takes none."""


def has_mirrors(entry: StateEntry) -> bool:
    """Whether an entry says of any place where its bytes can be had."""
    of_files = any(file.mirrors for file in entry.files.values())
    return bool(entry.mirrors or entry.objects or of_files)


def damaged_objects(
    entry: StateEntry, objects: ObjectStore, names: Names, *, files: bool
) -> dict[Digest, TensorSpec | None]:
    """The objects of a state whose bytes are not those that their digests name, sorted.

    Those of tensors are given with type and shape. What is missing is not
    damaged. If the state object is damaged no tensors are named: it would say what they are.
    Arguments as of `needs_of`.
    """
    damaged: list[Digest] = []
    specs: dict[Digest, TensorSpec | None] = {}
    lock = Lock()

    def look(digest: Digest) -> None:
        try:
            right = digest_of(objects, digest, specs.get(digest)) == digest
        except ObjectNotFoundError:
            return
        except IntegrityError:  # of one in encoded form
            right = False
        except OSError as error:
            if not is_disk_error(error):
                raise
            right = False
        if not right:
            with lock:
                damaged.append(digest)

    named = {file.digest for file in entry.files.values()} if files else set()
    if names is not Only.FILES:
        look(entry.pinned_digest)
        if not damaged and objects.size(entry.pinned_digest) is not None:
            refs = read_state(entry, objects).refs
            wanted = refs if names is None else () if isinstance(names, Only) else names
            specs |= {refs[name].digest: refs[name].spec for name in wanted if name in refs}
    for_each(look, sorted(named | specs.keys()))
    return {digest: specs.get(digest) for digest in sorted(damaged)}


CONNECTIONS = 16
"""Requests at once, which hide most of the network's latency (docs/performance.md)."""


@dataclass(frozen=True)
class FetchReport:
    """What a fetch did.

    Attributes:
        digest: The state digest.
        fetched: Bytes that came: of tensors, of objects, of files.
        spared: Bytes of the state's tensors that were in the cache already (of those of 16 KiB and
            more; smaller ones are inside the state object).
        pinned_now: Whether this was the first use of a state without a digest, which has pinned it.
    """

    digest: Digest
    fetched: int
    spared: int
    pinned_now: bool = False


class Pinned(NamedTuple):
    """A state whose digest was found out by fetching it.

    Attributes:
        entry: Its entry, with digest and size.
        mirror: Where it came from, with the whole SHA-256 of files that were compared with digits
            of one.
        fetched: The bytes that came.
    """

    entry: StateEntry
    mirror: Mirror
    fetched: int


class Fetcher:
    """Brings states into a cache.

    Relative paths in manifests mean what they meant when it was made, whatever the working folder
    is by then. A server that cannot be reached is asked last by all that one fetcher brings, for
    five minutes; see `Outages`.

    Args:
        cache: What is there already, and where the rest goes.
        transports: Makes what opens addresses, for one fetch.
        retries: How often and how patiently to try again what may pass.
        connections: How many requests are under way at once.
        durable: Flush every object to the disk.
        max_size: The most bytes of tensor data to take of a state whose size nobody gives.
        on_progress: Whom to tell how far it is.
    """

    def __init__(
        self,
        cache: Cache,
        transports: Callable[[], Transports],
        *,
        retries: Retries | None = None,
        connections: int = CONNECTIONS,
        durable: bool = True,
        max_size: int = MAX_SIZE,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.cache = cache
        self.transports = transports
        self.retries = Retries() if retries is None else retries
        self.connections = connections
        self.durable = durable
        self.max_size = max_size
        self.on_progress = on_progress
        self.outages = Outages()
        self._folder: Path | None = None
        with suppress(FileNotFoundError):  # it was removed: absolute paths work all the same
            self._folder = Path.cwd()

    def fetch(self, entry: StateEntry, names: Names = None, *, files: bool = True) -> FetchReport:
        """Bring what is missing of a state. What is there costs a look at names and sizes.

        Args:
            entry: What a manifest says of it.
            names: The tensors that are needed; all by default.
            files: Whether the state's files are needed, too.

        Raises:
            UnpinnedStateError: The entry gives no digest.
            ObjectNotFoundError: Something is missing, and no mirror is listed.
            OfflineError: Something is missing, and the network may not be used.
            FetchError: Something is missing, and no mirror could give it.
            ReadOnlyStoreError: Something is missing, and the cache takes nothing.
            OSError: The disk is full, the cache cannot be written, and the like.
        """
        digest = entry.pinned_digest
        with concerning(entry.key):
            needs = needs_of(entry, self.cache, names, files=files)
            if unfit := self.cache.pass_over_unfit(needs.objects):
                needs = needs_of(entry, self.cache, names, files=files)
            # Of a state object in trash/ all can be read, but not for long.
            while needs or self.cache.size(digest) is None:
                if not self._restored(entry, needs):
                    break
                needs = needs_of(entry, self.cache, names, files=files)
            if not needs and self._note_use(entry):
                # A pruning that had chosen this state may have taken something before the note.
                needs = needs_of(entry, self.cache, names, files=files)
            if not needs:
                if unfit:
                    warn(f"{entry.key} is damaged in a cache that is only read: {', '.join(unfit)}")
                return FetchReport(digest, 0, needs.present)
            if not has_mirrors(entry):
                raise _no_mirrors(entry, needs, self.cache, unfit)
            with self._run(entry, digest, needs.in_words()) as run:
                for place in unfit:
                    run.attempts.note_damage(place, "it has the wrong length, and is only read")
                try:
                    run.fetch(names, files=files)
                except Exception:
                    self._forget_use(entry)
                    raise
                run.attempts.warn_of_damage()
            info("%s: %d bytes fetched, %d spared", entry.key, run.meter.done, run.spared)
            return FetchReport(digest, run.meter.done, run.spared)

    def estimated_bytes(self, entry: StateEntry) -> int | None:
        """The bytes that a fetch would bring of tensors, encoded ones as such; nothing is written.

        None if no mirror says, or little is missing; see `encoded_run.estimated_bytes`.
        """
        from mlstate.fetch.encoded_run import estimated_bytes

        base = Path(entry.origin).parent if entry.origin else None
        if base is not None and self._folder is not None:
            base = self._folder / base
        with self.transports() as transports:
            reach = Reach(entry.source)
            opened = partial(transports.open, base=base, reach=reach)
            return estimated_bytes(entry, self.cache, opened)

    def pin(
        self,
        entry: StateEntry,
        said: dict[str, Said] | None = None,
        naming: Naming = translate_all,
    ) -> StateEntry:
        """Bring a state that has no digest or no size yet; returns the entry with both.

        Args:
            entry: What a manifest says of it.
            said: Takes what the files of one without a digest say, by their addresses.
            naming: Gives the names in such a state of what its files have.

        Raises:
            MlstateError: As `fetch`.
        """
        with concerning(entry.key):
            if entry.digest is not None:
                self.fetch(entry, files=False)
                state = needs_of(entry, self.cache, None, files=False).state
                return entry if state is None else replace(entry, size=state.nbytes)
            if not entry.mirrors:
                raise ObjectNotFoundError(
                    "an unpinned state has no mirrors to be pinned from",
                    path=entry.origin,
                    remedy="give it a mirror, or its digest",
                )
            with self._run(entry, _identity(entry)) as run:
                return _pinned(entry, run, said, naming).entry

    def first_use(
        self,
        entry: StateEntry,
        known: Callable[[], StateEntry | None],
        keep: Callable[[Pinned], StateEntry],
    ) -> StateEntry:
        """Bring a state that has no digest, and of which every mirror gives sums of its files.

        Args:
            entry: What a manifest says of it.
            known: Looks whether its digest is kept by now: others may have brought the state, for
                which this call waited.
            keep: Keeps the digest, while others wait who bring the same state.

        Returns:
            What `known` or `keep` has.

        Raises:
            MlstateError: As `fetch`.
        """
        with concerning(entry.key), self._run(entry, _identity(entry)) as run:
            return known() or keep(_pinned(entry, run))

    def settle(self, entry: StateEntry) -> StateEntry:
        """Say exactly where on the hub a state is from: by commit, with its config and tokenizer.

        A branch moves on; the digest of a state does not. An entry whose mirrors are not on the hub
        is returned as it is.

        Returns:
            The entry with the commit in its mirrors; with the files of the repository, if a mirror
            names a whole repository and the entry has no files.

        Raises:
            MlstateError: As `fetch`.
        """
        if not any_on_hub(entry):
            return entry
        with concerning(entry.key), self._run(entry, _identity(entry)) as run:
            run.attempts.check_copies()
            settled, files = settled_on_hub(entry, run.attempts.context())
            pinned = {name: run.pin_file(name, mirror) for name, mirror in files.items()}
        return replace(settled, files=settled.files or pinned)

    def pin_files(self, entry: StateEntry, files: Mapping[str, Mirror]) -> StateEntry:
        """Bring files of which nobody knows the digest; returns the entry with them.

        Raises:
            MlstateError: As `fetch`.
        """
        if not files:
            return entry
        with concerning(entry.key), self._run(entry, _identity(entry)) as run:
            run.attempts.check_copies()
            pinned = {name: run.pin_file(name, mirror) for name, mirror in files.items()}
        return replace(entry, files={**entry.files, **pinned})

    def repair(self, entry: StateEntry, names: Names = None, *, files: bool = True) -> list[str]:
        """Set aside what is damaged of a state in the cache, and bring it again.

        Arguments are as of `fetch`: only the tensors and files that are asked for are looked at.

        Returns:
            Where the damaged objects are now; none if nothing is damaged.

        Raises:
            IntegrityError: Something is damaged and no mirror is listed; it stays where it is.
            MlstateError: As `fetch`.
        """
        aside: list[str] = []
        with concerning(entry.key):
            again = True
            while again and (damaged := damaged_objects(entry, self.cache, names, files=files)):
                for digest, spec in () if has_mirrors(entry) else damaged.items():
                    if self.cache.copies(digest) == 1:
                        found = digest_of(self.cache, digest, spec)
                        check_digest(self.cache, digest, found, what="an object of the cache")
                aside += [self.cache.set_aside(digest) for digest in damaged]
                # The state object hid what else is damaged; and a second copy may be, too.
                again = entry.digest in damaged or any(map(self.cache.copies, damaged))
                self.fetch(entry, names, files=files)
        return aside

    def _note_use(self, entry: StateEntry) -> bool:
        own, files = self.cache.own, [file.digest for file in entry.files.values()]
        return own is not None and note_use(own.root, entry.pinned_digest, str(entry.key), files)

    def _forget_use(self, entry: StateEntry) -> None:
        """Take back the note of a fetch that failed, if nothing of the state is here."""
        own, digest = self.cache.own, entry.pinned_digest
        if own is None or any(
            own.size(one) is not None
            for one in (digest, *(file.digest for file in entry.files.values()))
        ):
            return
        with suppress(OSError):
            if (used := last_use(own.root, digest)) is not None:
                forget_root(own.root, digest, used=used)

    def _restored(self, entry: StateEntry, needs: Needs) -> bool:
        """Put back what a pruning, killed perhaps, has moved to trash/; says whether it helped.

        What is damaged there is set aside: its digest says so, and it is fetched.
        """
        own, restored = self.cache.own, False
        wanted = {*needs.objects, *(file.digest for file in needs.files.values())}
        wanted.add(entry.pinned_digest)
        with suppress(OSError):  # a cache that is only read
            for digest in wanted & own.trashed() if own is not None else ():
                if own is not None and own.size(digest) is None and own.restore(digest):
                    if digest_of(own, digest) == digest:
                        restored = True
                    else:
                        self.cache.set_aside(digest)
        return restored

    @contextmanager
    def _run(
        self, entry: StateEntry, identity: Digest, missing: str | None = None
    ) -> Iterator[Run]:
        """A run of this process alone, where locks work: others find what it has brought."""
        own = self.cache.own
        if own is None or (own.root.exists() and not os.access(own.root, os.W_OK)):
            place = self.cache.stores[-1].locate(identity) if own is None else own.root
            raise _takes_nothing(place, missing)
        try:
            receiver = Receiver(own, durable=self.durable, job=str(identity))
        except OSError as error:
            if error.errno not in _CANNOT_BE_MADE:
                raise
            raise _takes_nothing(own.root, missing) from error
        lock = own.root / layout.TEMPORARIES / f"{identity}{layout.LOCK_SUFFIX}"
        meter = Meter(str(entry.key), self.on_progress)

        def wait() -> None:
            meter.wait("another process brings it")
            receiver.claims.watch()

        with receiver.claims, one_at_a_time(lock, waiting=wait) as alive:

            def at_work() -> None:
                alive()
                receiver.claims.alive()

            meter.begin(at_work)
            try:
                with self.transports() as transports:
                    options = Options(
                        self.retries, self.connections, self.max_size, self._folder, self.outages
                    )
                    attempts = Attempts(entry, options, transports, receiver, meter)
                    yield Run(attempts, self.cache)
            finally:
                meter.end()


def _identity(entry: StateEntry) -> Digest:
    """What an entry without a digest is known by, while its state is brought."""
    return Digest.of(f"{entry.origin}\n{entry.key}".encode())


def _pinned(
    entry: StateEntry,
    run: Run,
    said: dict[str, Said] | None = None,
    naming: Naming = translate_all,
) -> Pinned:
    run.attempts.check_copies()
    digest, state, mirror = run.pin(said, naming)
    run.attempts.warn_of_damage()
    return Pinned(replace(entry, digest=digest, size=state.nbytes), mirror, run.meter.done)


def _takes_nothing(place: object, missing: str | None) -> ReadOnlyStoreError:
    return ReadOnlyStoreError(
        "something is missing, and this cache does not take what is fetched",
        path=place,
        found=None if missing is None else f"missing: {missing}",
        remedy=Phrase(
            "give a folder that can be written as cache= (or MLSTATE_CACHE)",
            "set MLSTATE_CACHE to a folder that can be written",
        ),
    )


def _no_mirrors(
    entry: StateEntry, needs: Needs, cache: Cache, unfit: list[str]
) -> ObjectNotFoundError:
    assert entry.digest is not None
    damaged = f"; of the wrong length, and only read: {', '.join(unfit)}" if unfit else ""
    return ObjectNotFoundError(
        "a state is not in the cache, and its manifest lists no mirrors",
        path=cache.locate(entry.digest),
        expected=entry.digest,
        found=f"missing: {needs.in_words()}{damaged}",
        remedy="add mirrors to the manifest, or "
        + Phrase(
            "give cache= (or MLSTATE_CACHE, MLSTATE_READONLY_CACHES) a folder that has it",
            "set MLSTATE_CACHE or MLSTATE_READONLY_CACHES to a folder that has it",
        ),
    )
