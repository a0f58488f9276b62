"""Attempts at the mirrors of a state: what one works with, and what went wrong with each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlstate import settings
from mlstate.digests import Digest
from mlstate.errors import (
    FetchError,
    FormatError,
    IntegrityError,
    MlstateError,
    OfflineError,
    TransportError,
)
from mlstate.fetch.outages import Outages, server_of
from mlstate.fetch.plan import DamagedPartialError
from mlstate.fetch.progress import Meter
from mlstate.fetch.reader import Reader
from mlstate.locations import Mirror, UnusableMirror
from mlstate.log import info
from mlstate.manifests import StateEntry
from mlstate.objects.receiving import Receiver
from mlstate.phrases import Phrase
from mlstate.shown import without_queries
from mlstate.transport import Patience, Resource, Retries, Transports
from mlstate.transport.hub import HubListing
from mlstate.transport.reach import OWN, Reach
from mlstate.transport.whole import WholeResource
from mlstate.warn import warn

__all__ = ["Attempts", "Context", "Options", "name_of", "read_at_most", "shown"]

_BRIEFLY = 1.0
"""The seconds for a connection to be made, as long as another mirror can be asked: enough for a
round trip to anywhere, and little beside a fetch."""
_REFUSALS = frozenset({401, 403, 407, 451})
"""The statuses of a place that gives nothing to this user: it is asked last by what follows."""
_ROOM = 1 << 30
"""What a file may have beside the state, where all of it must be read: bytes."""


@dataclass(frozen=True)
class Options:
    """How a run reads: its retries, and how many requests are under way at once."""

    retries: Retries
    connections: int
    max_size: int  # bytes of tensor data, of a state whose size nobody gives
    folder: Path | None  # where relative paths of manifests begin; None: at the working folder
    outages: Outages  # what was found out about servers, by earlier runs, too


@dataclass(frozen=True)
class Context:
    """What every part of one attempt at one mirror shares."""

    transports: Transports
    reader: Reader
    receiver: Receiver
    base: Path | None  # relative addresses are relative to it
    max_bytes: int  # of a file that is read from front to back
    reach: Reach = OWN  # the places that may be opened
    whole: bool = False  # whether nothing is read in parts
    sums: dict[Mirror, str] = field(default_factory=dict)  # the SHA-256 of files that were compared

    def claim(self, digest: Digest, size: int | None, *, travels: int | None = None) -> bool:
        """Begin to bring an object, unless another process does, or did by now.

        Args:
            digest: Which.
            size: Its size in bytes, if that is known.
            travels: How many bytes come for it; by default so many.
        """
        if self.receiver.claim(digest, size):
            return True
        self.reader.meter.spare((size or 0) if travels is None else travels)
        return False

    def open(self, address: str) -> Resource:
        """The resource at an address; reading it is tried again after passing failures."""
        try:
            opened = self.transports.open(address, base=self.base, reach=self.reach)
        except FormatError as error:  # of the address or a setting: no bytes were wrong
            raise TransportError(**_fields(error)) from None
        return self.reader.patient(WholeResource(opened) if self.whole else opened)

    def open_part(self, part: Mirror, address: str) -> Resource:
        """As `open`, of the one file of a mirror: from the hub's cache if that has its SHA-256."""
        far = "://" in address and not address.startswith("file://")
        if far and part.sha256 is not None and part.urls == (address,):
            copy = self.transports.hub_copy(part.sha256)
            if copy is not None:
                return copy
        return self.open(address)

    def hub_files(self, address: str) -> HubListing:
        """The commit and the files of a repository on the hub; also tried again."""
        return self.reader.patiently(lambda: self.transports.hub_files(address))


class Attempts:
    """Attempts at the mirrors of one state: what went wrong with each is noted, for the error.

    A mirror that refused or lied is not asked again. As long as another server may have the same,
    one that cannot be reached is put off at once; see `be_patient`.
    """

    def __init__(
        self,
        entry: StateEntry,
        options: Options,
        transports: Transports,
        receiver: Receiver,
        meter: Meter,
    ) -> None:
        self.entry = entry
        self.options = options
        self._transports = transports
        self.receiver = receiver
        self.meter = meter
        own = settings.peers() if entry.objects else None
        self._peers = None if own in entry.objects else own
        self._noted: list[tuple[str, str]] = []
        self._failed: set[str] = set()
        self._patience: dict[str, Patience] = {}
        self._offline = False
        self._wrong_bytes = False
        self._damaged: list[str] = []
        self._differs = False
        self.sums: dict[Mirror, str] = {}
        """The whole SHA-256 of each file that was compared with digits of one."""
        self._patient = len(_servers(entry)) < 2 and self._peers is None
        self.put_off = False  # whether a mirror was, which may have what is missing yet
        transports.connect_within(None if self._patient else _BRIEFLY)

    @property
    def objects(self) -> tuple[str, ...]:
        """The addresses of stores that have its objects, the cache that nodes share before all."""
        return self.entry.objects if self._peers is None else (self._peers, *self.entry.objects)

    def be_patient(self) -> None:
        """Ask what was put off from now on, and be as patient as the settings say."""
        self._patient, self.put_off = True, False
        self._transports.connect_within(None)

    def context(
        self, place: str = "", max_bytes: int | None = None, *, whole: bool = False
    ) -> Context:
        """The context of one attempt at a place; ``max_bytes`` and ``whole`` as in `Context`."""
        most = read_at_most(self.entry.size or 0) if max_bytes is None else max_bytes
        base = Path(self.entry.origin).parent if self.entry.origin else None
        if base is not None and self.options.folder is not None:
            base = self.options.folder / base
        patience = self._patience.setdefault(place, self._transports.patience())
        options = self.options
        reader = Reader(self._retries(place), self.meter, options.connections, patience)
        # The user's own setting names the peers, whatever may be opened for the manifest.
        reach = OWN if place == self._peers else Reach(self.entry.source)
        return Context(self._transports, reader, self.receiver, base, most, reach, whole, self.sums)

    def attempt(
        self, place: str, work: Callable[[Context], None], max_bytes: int | None = None
    ) -> bool:
        """Work with one mirror, unless it failed before; says whether that worked.

        ``place`` is the mirror for the error, and ``max_bytes`` as in `Context`.
        """
        server, outages = server_of(place), self.options.outages
        if place in self._failed:
            return False
        if server is not None and not self._patient and outages.comes_last(server, place):
            self.put_off = True
            return False
        try:
            self._work(place, work, max_bytes)
        except DamagedPartialError:
            self._note_failure(place, "what came of it is damaged, again and again")
        except OfflineError as error:
            self._offline = True
            self._note_failure(place, error.message)
        except (TransportError, FormatError, IntegrityError) as error:
            reason = _reason(error, place)
            if self._is_put_off(server, error):
                return False
            self._differs |= isinstance(error, IntegrityError)
            self._wrong_bytes |= not isinstance(error, TransportError)
            self._note_refusal(server, place, error)
            if is_local(place) and getattr(error, "status", None) != 404:
                self._damaged.append(f"{place}: {reason}")
            self._note_failure(place, reason)
        else:
            if server is not None:
                outages.remove(server, place)
            return True
        return False

    def _is_put_off(self, server: str | None, error: MlstateError) -> bool:
        """Remember a server that could not be reached; says whether it is asked once more later."""
        if server is None or not isinstance(error, TransportError) or not error.unreachable:
            return False
        self.options.outages.add(server, _briefly(error), waited_for=self._patient)
        self.put_off |= not self._patient
        return not self._patient

    def _note_refusal(self, server: str | None, place: str, error: MlstateError) -> None:
        """Remember a place that gives nothing to this user."""
        if server is not None and getattr(error, "status", None) in _REFUSALS:
            self.options.outages.refuse(place)

    def _retries(self, place: str) -> Retries:
        """How often a place is tried: once if all attempts at its server were in vain lately."""
        retries, server = self.options.retries, server_of(place)
        if not self._patient:
            return replace(retries, elsewhere=True)
        down = server is not None and self.options.outages.was_waited_for(server)
        return replace(retries, attempts=1) if down else retries

    def _work(self, place: str, work: Callable[[Context], None], max_bytes: int | None) -> None:
        """Work with a mirror, and once more each where the second time may do.

        Without what earlier runs have left here; without copies in the cache of the hub's client.
        Servers that share an address may disagree about the version of a file, though it is the
        same: then it is read whole, and its digest decides.
        """
        whole = again = False
        damaged: str | None = None
        while True:
            try:
                work(self.context(place, max_bytes, whole=whole))
            except DamagedPartialError:
                if again:
                    raise
                again = True
            except (TransportError, FormatError, IntegrityError) as error:
                if isinstance(error, TransportError) and error.relabelled and not whole:
                    whole = True
                elif damaged is None:
                    damaged = self._passed_over(error)
                else:
                    error.add_note(f"before: {damaged}")
                    raise
            else:
                if damaged is not None:
                    self._damaged.append(damaged)
                return

    def _passed_over(self, error: TransportError | FormatError | IntegrityError) -> str:
        """What was wrong with copies, now passed over; raises the error if there are none."""
        copies, may_ask = self._transports.pass_over_copies()
        if not copies:
            raise error
        read = f"read from the cache of the hub's client: {', '.join(map(str, copies))}"
        if not may_ask:
            error.add_note(read)
            self._damaged.append(f"{error.message}; {read}")
            raise error
        return f"{error.message}; {read}"

    def warn_of_damage(self) -> None:
        """Warn of what is damaged on this machine, now that its bytes came from elsewhere."""
        if self._damaged:
            warn(
                f"{self.entry.key} came from elsewhere, since what is on this machine is damaged: "
                + "; and ".join(self._damaged)
            )
            self._damaged.clear()

    def check_copies(self) -> None:
        """Nobody knows the digest: see `Transports.check_copies`."""
        self._transports.check_copies()

    def note(self, place: str, reason: str) -> None:
        """Note what was wrong with a mirror, which may be asked again."""
        self._noted.append((shown(place), reason))

    def note_damage(self, place: str, reason: str) -> None:
        """Note that something on this machine is damaged; `warn_of_damage` says so later."""
        self._damaged.append(f"{place}: {reason}")
        self.note(place, reason)

    def pass_over(self, mirror: UnusableMirror) -> None:
        """Note that a mirror cannot be used by this version."""
        toml = mirror.toml
        place = toml if isinstance(toml, str) else toml.get("url", toml.get("urls", "a mirror"))
        self.note(str(place), mirror.reason)

    def failure(self, message: str, missing: str | None) -> MlstateError:
        """The error that no mirror could help; it lists all attempts."""
        found = None if missing is None else f"missing: {missing}"
        if self._offline and self._damaged:
            found = "; ".join(filter(None, [found, *self._damaged]))
        if self._offline:
            return OfflineError(
                "something is not in the cache, and the network may not be used",
                path=self.entry.origin,
                found=found,
                remedy=Phrase(
                    "unset MLSTATE_OFFLINE, or leave out offline=True, once: store.fetch(key)",
                    f"unset MLSTATE_OFFLINE once: mlstate fetch {self.entry.key}",
                ),
            )
        error = FetchError(
            message,
            path=self.entry.origin,
            found=found,
            attempts=tuple(self._noted),
            wrong_bytes=self._wrong_bytes,
        )
        pin = self.entry.pin
        if self._differs and pin is not None:
            error.expected = f"{pin.digest}, which you have pinned: {pin.where}"
            error.remedy = pin.remedy
        return error

    def _note_failure(self, place: str, reason: str) -> None:
        self._failed.add(place)
        info("%s: %s did not do: %s", self.entry.key, place, reason)
        self.note(place, reason)


def read_at_most(size: int) -> int:
    """The most bytes of a file that are read for a state of this size, if all of it must be."""
    return 4 * size + _ROOM


def name_of(mirror: Mirror) -> str:
    """A mirror, for people: its first address."""
    first = mirror
    while first.parts:
        first = first.parts[0]
    more = len(first.urls) - 1 + len(mirror.parts[1:])
    return first.urls[0] + (f" and {more} more" if more else "")


def shown(address: str) -> str:
    """An address without its query, which may be a signature; a path stays as it is."""
    if "://" not in address:
        return address
    return without_queries(address.partition("?")[0])


def is_local(address: str) -> bool:
    """Whether an address is one of this machine."""
    return "://" not in address or address[:7].lower() == "file://"


def _servers(entry: StateEntry) -> set[str]:
    """The servers that the mirrors of an entry name; of this machine one, whatever it has."""
    named = [*entry.mirrors, *(m for file in entry.files.values() for m in file.mirrors)]
    usable = [mirror for mirror in named if isinstance(mirror, Mirror)]
    places = [*entry.objects, *map(name_of, usable), *(m.state for m in usable if m.state)]
    return {server_of(place) or "" for place in places}


def _briefly(error: TransportError) -> str:
    return error.message + (f" ({error.found})" if error.found else "")


def _fields(error: MlstateError) -> dict[str, Any]:
    names = ("message", "path", "expected", "found", "remedy")
    return {name: getattr(error, name) for name in names}


def _reason(error: MlstateError, place: str) -> str:
    said = error.message
    where = str(error.path or "")
    if where and is_local(where) and not where.endswith(place):  # which is said already
        said += f"; where: {where}"
    for note in getattr(error, "__notes__", ()):
        said += f"; {note}"
    for label in ("tensor", "expected", "found", "remedy"):
        if value := getattr(error, label):
            said += f"; {label}: "
            said += value if isinstance(value, Phrase) else str(value)
    return said
