"""The first use of a state without a digest: it is fetched, compared with its sum, and pinned.

That is trust on first use, as SSH has it for hosts. It takes a publisher who gives digits of the
SHA-256 of the files, in the manifest or in their names, and a place to keep the pin in.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from mlstate.fetch import Fetcher
from mlstate.fetch.fetcher import Pinned
from mlstate.locations import Mirror
from mlstate.manifests import StateEntry
from mlstate.manifests.entries import Pin
from mlstate.manifests.pins import Pins
from mlstate.manifests.promised import LEAST_DIGITS, digits_of, is_same_source, promised
from mlstate.states import StateKey
from mlstate.warn import say

__all__ = ["FirstUse"]

_ALL = 64


class FirstUse:
    """Pins states on their first use.

    Args:
        pins: Where the pins are kept.
        fetcher: Brings the states.

    Attributes:
        done: The states that were pinned, in order.
    """

    def __init__(self, pins: Pins, fetcher: Fetcher) -> None:
        self.pins = pins
        self._fetcher = fetcher
        self.done: list[StateKey] = []

    def allows(self, entry: StateEntry) -> bool:
        """Whether the manifest says enough of a state for its first use to pin it."""
        own = entry.source is None and "blake3" not in entry.misspelt.values()
        return own and promised(entry) is not None

    def pinned(self, entry: StateEntry) -> StateEntry:
        """An entry without a digest, with the one that it gets now, or has got meanwhile.

        All bytes of the files are compared with their SHA-256 before anything is pinned.

        Raises:
            UnpinnedStateError: No mirror gives digits of its files' sums, or no pin can be kept.
            PinMismatchError: The manifest led to other files when the state was pinned.
            MlstateError: As `Fetcher.fetch`. Nothing was pinned.
        """
        self.pins.check(entry)
        known = self._known(entry)
        if known is not None:
            return known
        summed = promised(entry) if self.allows(entry) else None
        if summed is None:
            why = f"no mirror with {LEAST_DIGITS} or more digits of its sha256, to be pinned by"
            raise entry.unpinned(None if entry.source else why)
        if why_not := self.pins.why_not():
            raise entry.unpinned(why_not, _otherwise(entry))
        now = self._fetcher.first_use(
            summed, lambda: self._known(entry), lambda done: self._keep(entry, summed, done)
        )
        if now.pin is not None and now.pinned_now:
            self.done.append(entry.key)
            _tell(now.pin)
        return now

    def _keep(self, entry: StateEntry, summed: StateEntry, done: Pinned) -> StateEntry:
        pin = Pin(
            entry.key,
            done.entry.pinned_digest,
            done.entry.size or 0,
            done.mirror,
            _digits(summed, done.mirror),
            datetime.now(UTC).replace(microsecond=0),
            self.pins.manifest_of(entry),
        )
        try:
            kept = self.pins.add(pin)
        except OSError as error:
            why = f"{self.pins.path} cannot be written: {error.strerror or error}"
            raise entry.unpinned(why, _otherwise(entry)) from error
        return replace(
            entry, digest=kept.digest, size=kept.size, pin=replace(kept, came=done.fetched)
        )

    def _known(self, entry: StateEntry) -> StateEntry | None:
        now = self.pins.applied(entry)
        return None if now.digest is None else now


def _digits(summed: StateEntry, pinned: Mirror) -> int:
    """How many digits the publisher gave of the files that a state came from."""
    mirrors = (mirror for mirror in summed.mirrors if isinstance(mirror, Mirror))
    return next(digits_of(m) for m in mirrors if is_same_source(m, pinned, here=True))


def _otherwise(entry: StateEntry) -> str:
    return "pin it in a manifest: " + entry.how_to_lock()


def _tell(pin: Pin) -> None:
    by = "the whole" if pin.digits == _ALL else f"the first {pin.digits} digits of the"
    say(
        f"mlstate: first use of {pin.key}: it has {by} SHA-256 that its publisher gives, and is "
        f"pinned as {pin.digest} in {pin.place[0]}"
    )
