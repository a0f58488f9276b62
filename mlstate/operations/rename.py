"""`rename` gives a state another key."""

from __future__ import annotations

from dataclasses import replace

from mlstate.errors import (
    FormatError,
    ReadOnlyStoreError,
    StateExistsError,
    StateNotFoundError,
    concerning,
)
from mlstate.manifests import Manifest
from mlstate.manifests.update import change_manifest
from mlstate.operations.copy import copy_one
from mlstate.operations.enlist import read_manifests
from mlstate.operations.transfer import ObjectCounter
from mlstate.phrases import OVERWRITE, Phrase
from mlstate.states import StateKey, check_key
from mlstate.stores.cache import PathLike
from mlstate.stores.read import StateStore
from mlstate.stores.save import SavingStore
from mlstate.stores.save_request import SaveRequest

__all__ = ["rename"]


def rename(
    target: PathLike | StateStore, old: StateKey, new: StateKey, *, overwrite: bool = False
) -> None:
    """Give a state another key. Its weights, files, notes and digest stay as they are.

    In a folder or a bucket no tensor is read or written: the state is saved under the new key, then
    deleted under the old one, and its old state file goes to the trash. So at each moment it has
    one key at least. (A release has no objects that two states share: its tensors are uploaded
    again.) In a manifest its table gets the new name where it stands, and aliases of it follow.

    Args:
        target: A store that saves; or the path of a manifest, or of a folder of them: all that list
            the state are changed. The objects in a cache stay as they are.
        old: The key that it has.
        new: The key that it gets.
        overwrite: Replace another state that has the new key.

    Raises:
        StateNotFoundError: There is no such state.
        StateExistsError: Another state has the new key, or a key that differs in case only; nothing
            was changed.
        FormatError: Both keys are the same.
        ReadOnlyStoreError: Nothing can be saved here, or the state is a checkpoint of MLModule.
    """
    check_key(old)
    check_key(new)
    if old == new:
        raise FormatError("the state has this key already", key=old)
    if not isinstance(target, StateStore):
        _rename_in_manifests(target, old, new, overwrite=overwrite)
        return
    if not isinstance(target, SavingStore):
        target.get(old)
        raise ReadOnlyStoreError(
            "states of this store cannot be renamed here",
            path=target,
            remedy=Phrase(
                "of a manifest give its path instead of a store",
                "of a manifest give its path: --store FILE.toml",
            ),
        )
    target.get(old)
    if error := target.catalog.undeletable(old):
        raise error
    if not overwrite and target.exists(new):
        raise _taken(new, target)
    with concerning(new):
        request = SaveRequest({}, None, overwrite)
        copy_one(target, target.saver, old, request, ObjectCounter(new, None), as_key=new)
    target.delete(old)


def _rename_in_manifests(
    manifest: PathLike, old: StateKey, new: StateKey, *, overwrite: bool
) -> None:
    files = read_manifests(manifest, [old])
    for path, read in files:
        if new in read.states and not overwrite:
            raise _taken(new, path)

    def renamed(now: Manifest) -> Manifest:
        if old not in now.states:
            raise StateNotFoundError("the manifest lists no such state", key=old, path=manifest)
        if new in now.states and not overwrite:
            raise _taken(new, manifest)
        states = {key: entry for key, entry in now.states.items() if key not in (old, new)}
        states[new] = replace(now.states[old], key=new)
        aliases = {name: new if key == old else key for name, key in now.aliases.items()}
        return replace(now, states=states, aliases=aliases)

    for path, read in files:
        if old in read.states:
            change_manifest(path, renamed)


def _taken(key: StateKey, where: object) -> StateExistsError:
    return StateExistsError(
        "another state has this key; nothing was changed",
        key=key,
        path=where,
        remedy="choose another key, or " + OVERWRITE,
    )
