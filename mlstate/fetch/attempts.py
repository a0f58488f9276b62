"""Attempts at the mirrors of a state, one after the other: what went wrong is noted, and told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlstate.errors import (
    FetchError,
    FormatError,
    IntegrityError,
    MlstateError,
    OfflineError,
    TransportError,
)
from mlstate.fetch.context import Ground
from mlstate.fetch.file_mirror import USUAL_HEADER, FileMirror
from mlstate.fetch.gather import Gathering
from mlstate.fetch.progress import Meter
from mlstate.fetch.reader import Reader
from mlstate.fetch.segments import DamagedPartialError
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests import StateEntry
from mlstate.objects.receiving import Receiver
from mlstate.transport import Transports

if TYPE_CHECKING:
    from mlstate.fetch.fetcher import Fetcher

__all__ = ["Attempts", "name_of", "read_at_most", "shown"]

_ROOM = 1 << 30
"""What a file may have beside the state, where all of it must be read: bytes."""


class Attempts:
    """What a run over the mirrors of one state keeps, and how it works with each.

    A mirror that refused or lied is not asked again in the same run.

    Args:
        fetcher: Its settings.
        transports: Opens addresses.
        entry: What a manifest says of the state.
        receiver: Takes what arrives.
        meter: Counts it.

    Attributes:
        mirrors: The mirrors of files that this version can use.
        beside: Bytes of a state object that came, of which little may be new.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        transports: Transports,
        entry: StateEntry,
        receiver: Receiver,
        meter: Meter,
    ) -> None:
        self.fetcher = fetcher
        self._transports = transports
        self.entry = entry
        self.receiver = receiver
        self.meter = meter
        self.beside = 0
        self.attempts: list[tuple[str, str]] = []
        self._failed: set[str] = set()
        self._offline = False
        self.mirrors: list[Mirror] = []
        for mirror in entry.mirrors:
            if isinstance(mirror, Mirror):
                self.mirrors.append(mirror)
            else:
                self.pass_over(mirror)

    def gather(
        self,
        mirror: Mirror,
        gathering: Gathering,
        *,
        max_bytes: int,
        check_sums: bool,
        header: int = USUAL_HEADER,
    ) -> None:
        """Gather from a mirror of files; see `FileMirror`."""

        def gather(ground: Ground) -> None:
            files = FileMirror(
                mirror, ground, header=header, beside=self.beside, check_sums=check_sums
            )
            try:
                files.gather(gathering)
            finally:
                gathering.close()

        self.attempt(name_of(mirror), gather, max_bytes)

    def attempt(
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
        fetcher, entry = self.fetcher, self.entry
        most = read_at_most(entry.size or 0) if max_bytes is None else max_bytes
        base = Path(entry.origin).parent if entry.origin else None
        reader = Reader(fetcher.retries, self.meter, fetcher.connections)
        return Ground(self._transports, reader, self.receiver, base, most)

    def pass_over(self, mirror: UnusableMirror) -> None:
        """Note that a mirror cannot be used."""
        toml = mirror.toml
        place = toml if isinstance(toml, str) else toml.get("url", toml.get("urls", "a mirror"))
        self.attempts.append((shown(str(place)), mirror.reason))

    def _note_failure(self, place: str, reason: str) -> None:
        self._failed.add(place)
        self.attempts.append((shown(place), reason))

    def failure(self, message: str, missing: str | None) -> MlstateError:
        """The error that no mirror could help, with what each of them said."""
        found = None if missing is None else f"missing: {missing}"
        if self._offline:
            return OfflineError(
                "something is not in the cache, and the network may not be used",
                path=self.entry.origin,
                found=found,
                remedy="unset MLSTATE_OFFLINE (or offline=True) once, and fetch this state",
            )
        return FetchError(
            message, path=self.entry.origin, found=found, attempts=tuple(self.attempts)
        )


def read_at_most(size: int) -> int:
    """The most bytes of a file that are read for a state of so many, if all of it must be."""
    return 4 * size + _ROOM


def name_of(mirror: Mirror) -> str:
    """A mirror, for people: its first address."""
    first = mirror
    while first.parts:
        first = first.parts[0]
    more = len(first.urls) - 1 + len(mirror.parts[1:])
    return first.urls[0] + (f" and {more} more" if more else "")


def shown(address: str) -> str:
    """An address without its query, which may be a signature."""
    return address.partition("?")[0] if "://" in address else address


def _reason(error: MlstateError) -> str:
    said = [error.message]
    for label in ("tensor", "expected", "found", "remedy"):
        if value := getattr(error, label):
            said.append(f"{label}: {value}")
    return "; ".join(map(str, said))
