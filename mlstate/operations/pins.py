"""`list_pins` and `remove_pins`: what this user has pinned by first use, and forgetting it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlstate.digests import Digest
from mlstate.errors import StateNotFoundError
from mlstate.manifests.entries import Pin
from mlstate.manifests.pins import Pins
from mlstate.states import StateKey, check_keys

__all__ = ["PinnedByUser", "list_pins", "remove_pins"]


@dataclass(frozen=True)
class PinnedByUser:
    """A state that its first use has pinned.

    Attributes:
        key: The state.
        digest: Its state digest, which is required.
        nbytes: The bytes of its tensors.
        urls: Where it came from.
        sha256: The SHA-256 of each of these files.
        digits: How many leading digits of these the publisher had given: 64 are all.
        date: When that was: ISO 8601, in UTC.
        manifest: The manifest that listed it; ``mlstate:NAME`` of one that mlstate ships; or None.
        path: The pins file.
        line: The line of the pin in it, or None.
    """

    key: StateKey
    digest: Digest
    nbytes: int
    urls: tuple[str, ...]
    sha256: tuple[str, ...]
    digits: int
    date: str
    manifest: str | None
    path: str
    line: int | None


def list_pins() -> list[PinnedByUser]:
    """All that this user has pinned, in the order in which it was.

    Raises:
        FormatError: The pins file is damaged, or others may write it.
    """
    return [_report(pin) for pin in Pins.of_user().read()]


def remove_pins(keys: Iterable[StateKey]) -> list[PinnedByUser]:
    """Forget pins: the next use of these states is their first again, and trusts anew.

    Args:
        keys: The states. Those of one key in several manifests are all forgotten.

    Returns:
        What was forgotten.

    Raises:
        StateNotFoundError: One of them is not pinned; nothing was forgotten.
        FormatError: The pins file is damaged, or others may write it.
        OSError: It cannot be written.
    """
    pins, wanted = Pins.of_user(), check_keys(keys)
    there = {pin.key for pin in pins.read()}
    for key in wanted:
        if key not in there:
            raise StateNotFoundError(
                "you have no pin of this state; nothing was forgotten", key=key, path=pins.path
            )
    return [_report(pin) for pin in pins.remove(wanted)]


def _report(pin: Pin) -> PinnedByUser:
    files = pin.mirror.parts or (pin.mirror,)
    return PinnedByUser(
        pin.key,
        pin.digest,
        pin.size,
        tuple(url for file in files for url in file.urls),
        tuple(file.sha256 or "" for file in files),
        pin.digits,
        pin.date.isoformat(),
        pin.manifest,
        *pin.place,
    )
