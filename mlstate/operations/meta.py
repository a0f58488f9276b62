"""`set_meta` changes the notes of a state: licence, description, metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from mlstate.errors import (
    FormatError,
    ReadOnlyStoreError,
    SignatureError,
    StateNotFoundError,
    concerning,
)
from mlstate.manifests import Manifest, StateEntry
from mlstate.manifests.edit import edit_manifest
from mlstate.manifests.entries import ManifestContent
from mlstate.manifests.parse import parse_state_content
from mlstate.manifests.state_signatures import StateText, signed_again, without_signature
from mlstate.manifests.update import change_manifest
from mlstate.operations.enlist import read_manifests
from mlstate.phrases import Phrase
from mlstate.signatures.inline import is_signed
from mlstate.states import StateKey, check_key
from mlstate.stores.cache import PathLike
from mlstate.stores.read import StateStore
from mlstate.stores.save import SavingStore
from mlstate.warn import warn

__all__ = ["set_meta"]

_Change = Callable[[StateEntry], StateEntry]


def set_meta(
    target: PathLike | StateStore,
    key: StateKey,
    values: Mapping[str, Any] | None = None,
    *,
    unset: Iterable[str] = (),
) -> Mapping[str, Any]:
    """Change the notes of a state. Its weights, its files and its digest stay as they are.

    What others write at the same time is not lost.

    Args:
        target: A `LocalStateStore`, an `S3StateStore`, a `GitHubReleaseStore` or a
            `MemoryStateStore`; or the path of a manifest, or of a folder of them: all that list the
            state are changed.
        key: The state.
        values: What to note: name -> text, number, bool, date, list or mapping. What is noted under
            the same name is replaced.
        unset: The names of what to take away.

    Returns:
        All that is noted now.

    Raises:
        StateNotFoundError: There is no such state.
        FormatError: A value that TOML cannot hold, or a name to take away that is not there;
            nothing was changed.
        ReadOnlyStoreError: The state has no state file that could be changed.
        SignatureError: The store requires a signature, and this call has no key to sign with.

    Example:
        >>> import torch
        >>> from mlstate import MemoryStateStore
        >>> store = MemoryStateStore()
        >>> key = StateKey.parse("pytorch.linear.ones")
        >>> _ = store.save_state_dict({"weight": torch.ones(2)}, key)
        >>> set_meta(store, key, {"accuracy": 0.93})
        {'accuracy': 0.93}
    """
    check_key(key)
    leaving = [unset] if isinstance(unset, str) else list(unset)
    said: dict[str, Any] = {}

    def change(entry: StateEntry) -> StateEntry:
        absent = [name for name in leaving if name not in entry.meta]
        if absent:
            raise FormatError(
                "this state has no such note; nothing was changed",
                key=key,
                path=entry.origin,
                expected=", ".join(sorted(entry.meta)) or "none",
                found=", ".join(map(repr, absent)),
            )
        said.clear()
        said.update({name: v for name, v in entry.meta.items() if name not in leaving})
        said.update(values or {})
        return replace(entry, meta=dict(said))

    with concerning(key):
        if isinstance(target, StateStore):
            _change_state(target, key, change)
        else:
            _change_manifests(target, key, change)
    return dict(said)


def _change_manifests(manifest: PathLike, key: StateKey, change: _Change) -> None:
    def changed(old: Manifest) -> Manifest:
        if key not in old.states:  # another process has just removed it
            raise StateNotFoundError("the manifest lists no such state", key=key, path=manifest)
        return replace(old, states={**old.states, key: change(old.states[key])})

    files = [(path, read) for path, read in read_manifests(manifest, [key]) if key in read.states]
    for _, read in files:
        change(read.states[key])  # all or none
    for path, _ in files:
        change_manifest(path, changed)


def _change_state(store: StateStore, key: StateKey, change: _Change) -> None:
    while True:
        text = store.catalog.text(key)
        if text is None or not isinstance(store, SavingStore):
            store.get(key)
            raise ReadOnlyStoreError(
                "this state has no state file that could be changed",
                path=store,
                expected="a state that was saved into a folder, a bucket or a release",
                remedy=Phrase(
                    "of a manifest give its path instead of a store",
                    "of a manifest give its path: --store FILE.toml",
                ),
            )
        if store.saver.change(key, text.data, _state_file(store, text, change)):
            return


def _state_file(store: StateStore, text: StateText, change: _Change) -> bytes:
    """A state file with other notes; signed anew if the store signs."""
    old = without_signature(text.data)
    content = parse_state_content(old, text.key, text.path)
    entry = change(replace(content.states[text.key], origin=text.path))
    wanted = ManifestContent({text.key: entry}, content.objects, content.unknown)
    new = edit_manifest(old, text.path, wanted)
    signatures = store.catalog.signatures
    if new == old:
        return text.data
    if signatures is not None and signatures.key is not None:
        return signed_again(replace(text, data=new), signatures.key)[0]
    if store.catalog.requires_signature:
        raise SignatureError(
            "a change of this state needs a signature; nothing was changed",
            path=text.path,
            remedy=Phrase("give the store signing_key=, or set", "set")
            + " MLSTATE_SIGNING_KEY to the path of an SSH key",
        )
    if is_signed(text.data):
        warn(
            Phrase(
                f"{text.path} was changed, so its signature is gone: sign it again, with "
                "mlstate.sign(store, key)",
                f"{text.path} was changed, so its signature is gone: sign it again, with "
                f"mlstate sign STORE {text.key} --key FILE",
            )
        )
    return new
