"""Writing a state into a release: its data first, then its pointer; old data is removed last.

A release has no rename that replaces and no conditional write, but its names are unique: of two
writers that upload a pointer, one is first. To overwrite a state, the old pointer is renamed before
the new one is uploaded; readers that find no pointer look for the old one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

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
    pointer_of,
    stem_of,
)
from mlstate.stores.github.releases import UPLOADED, Asset, Release, Releases
from mlstate.stores.github.upload import Upload, full, upload
from mlstate.stores.save_request import check_same

__all__ = ["StateAssets", "StateWriter"]

_MOST_LISTINGS = 20  # how often the assets are listed while others change them
_GRACE = 24 * 3600.0  # seconds that data without a pointer may be that of a save under way


@dataclass(frozen=True)
class StateAssets:
    """The assets of one state in a release.

    Attributes:
        pointer: The pointer, complete; or None.
        old: A pointer that another is about to replace, or has replaced.
        legacy: A checkpoint of MLModule.
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
        """The assets of a key among all assets of a release."""
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
        """The pointer that counts."""
        return self.pointer or self.old


class StateWriter:
    """Changes the assets of one key in a release that has at most `most` assets.

    `sign` gives the signed content of a pointer, from its entry and the content of that before it;
    None if nothing is signed.
    """

    def __init__(
        self,
        releases: Releases,
        release: Release,
        key: StateKey,
        most: int,
        sign: Callable[[StateEntry, bytes | None], bytes | None] | None = None,
    ) -> None:
        self._releases = releases
        self._release = release
        self._most = most
        self.key = key
        self.text: bytes | None = None  # of the pointer that was read last
        self._sign = sign

    def list_assets(self) -> StateAssets:
        """The assets as they are now."""
        return StateAssets.of(self._releases.assets(self._release), self.key)

    def poll_assets(self) -> Iterator[StateAssets]:
        """The assets, listed again and again with pauses; a TransportError after many times."""
        for attempt in range(1, _MOST_LISTINGS):
            yield self.list_assets()
            time.sleep(self._releases.retries.delay(attempt, None))
        raise TransportError(
            "others change this state again and again, or GitHub lists what is not there",
            path=f"{self._releases.repository}, tag {self._release.tag}",
            remedy="try again later",
        )

    def read_pointer(self, pointer: Asset) -> StateEntry | None:
        """The entry that a pointer has; None if the asset is gone: then the list is out of date."""
        data = self._releases.read(pointer, MAX_POINTER)
        where = f"{self._releases.repository}, tag {self._release.tag}, {pointer.name}"
        if data is None:
            return None
        self.text = data
        return parse_pointer(data, self.key, where)

    def save(self, plan: Plan, assets: StateAssets, *, overwrite: bool) -> None:
        """Save a state that is not there, or with `overwrite` replaces another.

        Raises:
            StateExistsError: Another state was saved under this key meanwhile.
            MlstateError: Something cannot be uploaded; the earlier state is still there.
        """
        new = sum(file.name not in assets.data for file in plan.data)
        count = len(assets.names)
        if count + new + 1 > self._most:
            raise full(self._release.tag, f"{count} assets; {new + 1} more are needed")
        signed = None if self._sign is None else self._sign(plan.entry, self.text)
        if signed is not None:
            plan = replace(plan, pointer=pointer_of(self.key, signed, MAX_POINTER))
        self.upload_data(plan, assets, verify=True)
        pointer, before = self._replace_pointer(plan, overwrite=overwrite)
        after = self.list_assets()
        # Another that overwrote this key may have removed data that was reused here.
        self.upload_data(plan, after, verify=False)
        if after.pointer is not None and after.pointer.id == pointer.id:
            self._remove_unneeded(after, {file.name for file in plan.data}, before)

    def upload_data(self, plan: Plan, assets: StateAssets, *, verify: bool) -> None:
        """Upload the data that is not there; `verify` compares hashes beside names and sizes."""
        for file in plan.data:
            there = assets.data.get(file.name)
            if there is not None and there.state == UPLOADED and there.size == file.size:
                if not verify or self._releases.holds(there, file.size, file.sha256()):
                    continue
                self._releases.delete(there)
            upload(self._releases, self._release, file, replace=True)

    def repair(self, plan: Plan, assets: StateAssets, stored: StateEntry, *, verify: bool) -> None:
        """Upload what is missing of a stored state, and finish an interrupted save.

        The plan is that of a save of the same state, `stored` the entry of its pointer.
        """
        needed = named(stored)
        there = {name for name, asset in assets.data.items() if asset.state == UPLOADED}
        if needed <= {file.name for file in plan.data}:
            self.upload_data(plan, assets, verify=verify)
        elif not needed <= there:  # it was spread over files in another way
            self.save(plan, assets, overwrite=True)
            return
        if assets.pointer is None and assets.old is not None:
            self._releases.rename(assets.old, stem_of(self.key) + POINTER)

    def delete(self, assets: StateAssets, current: Asset) -> bool:
        """Remove a state, its current pointer after an old one; False if another removed it."""
        before = self._data_of(current)
        if assets.pointer is not None and assets.old is not None:
            self._releases.delete(assets.old)
        deleted = self._releases.delete(current)
        self._remove_unneeded(assets, set(), before)
        return deleted

    def _replace_pointer(self, plan: Plan, *, overwrite: bool) -> tuple[Asset, set[str]]:
        """Upload the pointer; returns it, and the names of the data of the one before."""
        for assets in self.poll_assets():
            current = assets.current
            if current is not None and not overwrite:
                winner = self.read_pointer(current)
                if winner is None:
                    continue
                check_same(winner, plan.entry.pinned_digest, plan.entry)
                return current, set()
            before = set() if current is None else self._data_of(current)
            if assets.pointer is not None:
                if assets.old is not None:
                    self._releases.delete(assets.old)
                if not self._releases.rename(assets.pointer, stem_of(self.key) + OLD):
                    continue
            pointer = upload(self._releases, self._release, plan.pointer, replace=False)
            if pointer is not None:
                if current is not None:
                    with suppress(MlstateError):  # a later save removes it
                        self._releases.delete(current)
                return pointer, before
        raise AssertionError  # `poll_assets` ends with an error

    def change(self, assets: StateAssets, old: bytes, new: Upload) -> bool:
        """Replace the pointer that has a certain content by a new one; False if it has another."""
        current = assets.current
        if current is None or self._releases.read(current, MAX_POINTER) != old:
            return False
        if assets.pointer is not None:
            if assets.old is not None:
                self._releases.delete(assets.old)
            if not self._releases.rename(assets.pointer, stem_of(self.key) + OLD):
                return False
        if upload(self._releases, self._release, new, replace=False) is None:
            return False
        with suppress(MlstateError):  # a later save removes it
            self._releases.delete(current)
        return True

    def _data_of(self, pointer: Asset) -> set[str]:
        """The names of the data that a pointer refers to; none if it cannot be read."""
        with suppress(FormatError):
            if entry := self.read_pointer(pointer):
                return named(entry)
        return set()

    def _remove_unneeded(self, assets: StateAssets, needed: set[str], before: set[str]) -> None:
        """Remove data of the replaced pointer, and of interrupted saves of long ago.

        The next save of this key removes what cannot be removed now.
        """
        now = time.time()
        with suppress(MlstateError):
            for name, asset in assets.data.items():
                if name not in needed and (name in before or now - asset.created > _GRACE):
                    self._releases.delete(asset)
