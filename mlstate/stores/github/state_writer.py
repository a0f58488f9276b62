"""The act of saving into a release: data first, then the pointer, then what is not needed any more.

A release has no rename that replaces and no conditional write. It has names that exist once: of
two that upload a pointer, one is first. To overwrite, the old pointer is renamed before the new one
is uploaded; a reader that does not find the pointer looks for the old one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from mlstate.errors import FormatError, MlstateError, TransportError
from mlstate.manifests import StateEntry
from mlstate.states import StateKey
from mlstate.stores.github.assets import (
    LEGACY,
    MAX_POINTER,
    OLD,
    POINTER,
    Plan,
    is_data,
    named,
    parse_pointer,
    stem_of,
)
from mlstate.stores.github.releases import UPLOADED, Asset, Release, Releases
from mlstate.stores.github.upload import full, upload
from mlstate.stores.save_request import is_same, other_exists

__all__ = ["StateAssets", "StateWriter"]

TURNS = 20  # how often others may get in between
GRACE = 24 * 3600.0  # seconds that data without a pointer may be that of a save under way


@dataclass(frozen=True)
class StateAssets:
    """What a release has of one key.

    Attributes:
        pointer: The pointer, complete; or None.
        old: A pointer that another is about to replace, or has replaced.
        legacy: A checkpoint of the predecessor.
        data: The data, by name, incomplete assets too.
        names: The names of all assets of the release.
    """

    pointer: Asset | None = None
    old: Asset | None = None
    legacy: Asset | None = None
    data: dict[str, Asset] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, assets: Iterable[Asset], key: StateKey) -> StateAssets:
        """Look through the assets of a release."""
        stem = stem_of(key)
        listed = list(assets)
        complete = {asset.name: asset for asset in listed if asset.state == UPLOADED}
        return cls(
            pointer=complete.get(stem + POINTER),
            old=complete.get(stem + OLD),
            legacy=complete.get(stem + LEGACY),
            data={asset.name: asset for asset in listed if is_data(stem, asset.name)},
            names=tuple(asset.name for asset in listed),
        )

    @property
    def current(self) -> Asset | None:
        """What says of the state what it is."""
        return self.pointer or self.old


class StateWriter:
    """Changes what a release has of one key.

    Args:
        releases: The way there.
        release: The release.
        key: The key.
    """

    def __init__(self, releases: Releases, release: Release, key: StateKey) -> None:
        self._releases = releases
        self._release = release
        self.key = key

    def look(self) -> StateAssets:
        """What is there now."""
        return StateAssets.of(self._releases.assets(self._release), self.key)

    def looks(self) -> Iterator[StateAssets]:
        """What is there, again and again, while others change it; with pauses.

        Raises:
            TransportError: It does not come to rest.
        """
        for turn in range(1, TURNS):
            yield self.look()
            time.sleep(self._releases.retries.delay(turn, None))
        raise TransportError(
            "others change this state again and again, or GitHub lists what is not there",
            path=f"{self._releases.repository}, tag {self._release.tag}",
            remedy="try again later",
        )

    def read(self, pointer: Asset) -> StateEntry | None:
        """What a pointer says.

        Returns:
            None if it is gone: another took its place, or none did. Look again.

        Raises:
            ManifestError: It cannot be read.
            MlstateError: It cannot be had.
        """
        data = self._releases.read(pointer, MAX_POINTER)
        where = f"{self._releases.repository}, tag {self._release.tag}, {pointer.name}"
        return None if data is None else parse_pointer(data, self.key, where)

    def save(self, plan: Plan, shelf: StateAssets, most: int, *, overwrite: bool) -> None:
        """Save a state that is not there, or replaces another.

        Args:
            plan: What to upload.
            shelf: What is there.
            most: The most assets that a release has.
            overwrite: Whether another state makes way.

        Raises:
            StateExistsError: Another was faster; its state is there.
            MlstateError: Something cannot be uploaded; what was there is still there.
        """
        new = sum(file.name not in shelf.data for file in plan.data)
        count = len(shelf.names)
        if count + new + 1 > most:
            raise full(self._release.tag, f"{count} assets; {new + 1} more are needed")
        self.put_data(plan, shelf, verify=True)  # the bytes of what is reused are compared
        pointer, before = self._publish(plan, overwrite=overwrite)
        after = self.look()
        # Somebody who overwrote this key may have taken data away that was reused here.
        self.put_data(plan, after, verify=False)
        if after.pointer is not None and after.pointer.id == pointer.id:
            self._tidy(after, {file.name for file in plan.data}, before)

    def put_data(self, plan: Plan, shelf: StateAssets, *, verify: bool) -> None:
        """Upload what is not there of a state's data.

        Args:
            plan: What is to be there.
            shelf: What is there.
            verify: Compare what is there by more than name and size.
        """
        for file in plan.data:
            there = shelf.data.get(file.name)
            if there is not None and there.state == UPLOADED and there.size == file.size:
                if not verify or self._releases.holds(there, file.size, file.sha256()):
                    continue
                self._releases.delete(there)
            upload(self._releases, self._release, file, replace=True)

    def keep(
        self, plan: Plan, shelf: StateAssets, stored: StateEntry, most: int, *, verify: bool
    ) -> None:
        """The same state again: mend what is missing of it, and what a broken-off save left.

        Args:
            plan: What would be uploaded today.
            shelf: What is there.
            stored: What the pointer says.
            most: The most assets that a release has.
            verify: Compare what is there by more than name and size.

        Raises:
            MlstateError: Something cannot be uploaded.
        """
        needed = named(stored)
        there = {name for name, asset in shelf.data.items() if asset.state == UPLOADED}
        if needed <= {file.name for file in plan.data}:
            self.put_data(plan, shelf, verify=verify)
        elif not needed <= there:  # it was spread over files in another way
            self.save(plan, shelf, most, overwrite=True)
            return
        if shelf.pointer is None and shelf.old is not None:
            self._releases.rename(shelf.old, stem_of(self.key) + POINTER)

    def delete(self, shelf: StateAssets) -> bool:
        """Remove a state: its pointers first, the one that counts last of them.

        Returns:
            False if another removed it first.
        """
        current = shelf.current
        assert current is not None
        before = self._named(current)
        if shelf.pointer is not None and shelf.old is not None:
            self._releases.delete(shelf.old)
        deleted = self._releases.delete(current)
        self._tidy(shelf, set(), before)
        return deleted

    def _publish(self, plan: Plan, *, overwrite: bool) -> tuple[Asset, set[str]]:
        """Put the pointer in its place; the names of the data of the one that was there."""
        for shelf in self.looks():
            current = shelf.current
            if current is not None and not overwrite:
                winner = self.read(current)
                if winner is None:
                    continue
                if not is_same(winner, plan.entry.pinned_digest, plan.entry):
                    raise other_exists(winner, plan.entry.pinned_digest, plan.entry)
                return current, set()
            before = set() if current is None else self._named(current)
            if shelf.pointer is not None:
                if shelf.old is not None:
                    self._releases.delete(shelf.old)
                if not self._releases.rename(shelf.pointer, stem_of(self.key) + OLD):
                    continue
            pointer = upload(self._releases, self._release, plan.pointer, replace=False)
            if pointer is not None:
                if current is not None:
                    with suppress(MlstateError):  # a later save removes it
                        self._releases.delete(current)
                return pointer, before
        raise AssertionError  # `looks` does not end so

    def _named(self, pointer: Asset) -> set[str]:
        """The data that a pointer refers to, as far as it can be read."""
        with suppress(FormatError):
            if entry := self.read(pointer):
                return named(entry)
        return set()

    def _tidy(self, shelf: StateAssets, needed: set[str], before: set[str]) -> None:
        """Remove data that no pointer names: of the replaced pointer, and of saves long dead.

        What cannot be removed now is removed with the next save of this key.
        """
        now = time.time()
        with suppress(MlstateError):
            for name, asset in shelf.data.items():
                if name not in needed and (name in before or now - asset.created > GRACE):
                    self._releases.delete(asset)
