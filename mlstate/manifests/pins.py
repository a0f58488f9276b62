"""The user's pins: digests of states whose manifests give none, as their first use has found them.

They are in ``pins.toml`` in the user's config folder, as an SSH client has its known hosts. A pin
belongs to a state key in a manifest: the same key in a manifest elsewhere is the same state only if
it leads to the same files. So a repository can be moved and cloned, and two projects can have a key
in common.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlstate.config import config_folder
from mlstate.errors import PinMismatchError
from mlstate.locations import Mirror
from mlstate.manifests.entries import Pin, StateEntry
from mlstate.manifests.pins_file import PinsFile
from mlstate.manifests.promised import is_same_source
from mlstate.states import StateKey

__all__ = ["Pins"]


class Pins:
    """The pins file of a user.

    Args:
        path: The file, which need not be there; None: there is no home folder, and no file.
        shipped: The folder of the manifests that mlstate ships, which is elsewhere in each
            installation.
    """

    def __init__(self, path: Path | None, shipped: Path | None = None) -> None:
        self.path = path
        self._file = PinsFile(path)
        self._shipped = shipped
        self._folder = ""
        with suppress(FileNotFoundError):  # as `Fetcher` has it
            self._folder = os.getcwd()

    @classmethod
    def of_user(cls, shipped: Path | None = None) -> Pins:
        """The pins of this user, in the config folder."""
        folder = config_folder()
        return cls(None if folder is None else folder / "pins.toml", shipped)

    def applied(self, entry: StateEntry) -> StateEntry:
        """An entry without a digest, with that of its pin; as it is if it has none, or another's.

        Raises:
            FormatError: The file is damaged, or others may write it.
        """
        pin = self._fitting(entry)
        return entry if pin is None else replace(entry, digest=pin.digest, size=pin.size, pin=pin)

    def check(self, entry: StateEntry) -> None:
        """Refuse an entry whose manifest led to other files when it was pinned.

        Raises:
            PinMismatchError: It does so.
            FormatError: As `applied`.
        """
        manifest = self.manifest_of(entry)
        if self._fitting(entry) is not None or manifest is None:
            return
        for pin in self.read():
            if (pin.key, pin.manifest) == (entry.key, manifest):
                raise PinMismatchError(
                    "the manifest has changed where this state is from, since you have pinned it",
                    key=entry.key,
                    path=pin.place[0],
                    line=pin.place[1],
                    expected=_in_words(pin.mirror),
                    found="; ".join(_in_words(m) for m in entry.mirrors if isinstance(m, Mirror))
                    or "no mirrors",
                    remedy=pin.remedy,
                )

    def manifest_of(self, entry: StateEntry) -> str | None:
        """What a pin calls the manifest of an entry; None of one that is in no file."""
        if entry.origin is None:
            return None
        path = Path(os.path.realpath(os.path.join(self._folder, entry.origin)))
        if self._shipped is not None and path.parent == self._shipped.resolve():
            return f"mlstate:{path.name}"
        return str(path)

    def read(self) -> list[Pin]:
        """All pins, in the order of the file; none if it is not there.

        Raises:
            FormatError: It is damaged, or others may write it.
        """
        return self._file.read()

    def add(self, pin: Pin) -> Pin:
        """Keep a pin; one that another process has just made of this state stays, if it is equal.

        Returns:
            The pin as the file has it.

        Raises:
            PinMismatchError: Another process has pinned other weights meanwhile.
            FormatError: As `read`.
            OSError: The file cannot be written.
        """
        kept: list[Pin] = []

        def join(pins: list[Pin]) -> list[Pin]:
            same = [p for p in pins if (p.key, p.manifest) == (pin.key, pin.manifest)]
            if pin.manifest is None:  # in no file: another source is another state
                same = [p for p in same if is_same_source(pin.mirror, p.mirror, here=True)]
            there = same[:1]
            if there and there[0].digest != pin.digest:
                raise PinMismatchError(
                    "this state was pinned with other weights meanwhile; nothing was pinned",
                    key=pin.key,
                    path=there[0].place[0],
                    line=there[0].place[1],
                    expected=there[0].digest,
                    found=pin.digest,
                    remedy=pin.remedy,
                )
            kept[:] = there or [replace(pin, place=(str(self.path), None))]
            return pins if there else [*pins, pin]

        self._file.change(join)
        return next((other for other in self.read() if other == kept[0]), kept[0])

    def remove(self, keys: Collection[StateKey]) -> list[Pin]:
        """Forget all pins of these states; returns those that were forgotten.

        Raises:
            FormatError: As `read`.
            OSError: The file cannot be written.
        """
        removed: list[Pin] = []

        def leave(pins: list[Pin]) -> list[Pin]:
            removed[:] = (pin for pin in pins if pin.key in keys)
            return [pin for pin in pins if pin.key not in keys]

        self._file.change(leave)
        return removed

    def why_not(self) -> str | None:
        """Why no pin can be kept, in words; None if one can be. See `PinsFile.why_not`."""
        return self._file.why_not()

    def _fitting(self, entry: StateEntry) -> Pin | None:
        """The pin of an entry: that of its own manifest first."""
        manifest = self.manifest_of(entry)
        mirrors = [mirror for mirror in entry.mirrors if isinstance(mirror, Mirror)]
        found: Pin | None = None
        for pin in self.read():
            here = pin.manifest is not None and pin.manifest == manifest
            if pin.key == entry.key and any(
                is_same_source(mirror, pin.mirror, here=here) for mirror in mirrors
            ):
                if here:
                    return pin
                found = found or pin
        return found


def _in_words(mirror: Mirror) -> str:
    parts = mirror.parts or (mirror,)
    return " and ".join(
        f"{', '.join(part.urls)}" + (f" (sha256 {part.sha256})" if part.sha256 else "")
        for part in parts
    )
