"""Saving states: objects first, then the state object, then the state file, in this order.

So a crash at any point leaves the complete state or none, and at most objects that nothing names.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlstate.digests import Digest
from mlstate.errors import (
    FormatError,
    IncompatibleStateError,
    ManifestError,
    StateExistsError,
    StateNotFoundError,
    concerning,
)
from mlstate.format import tensor_object
from mlstate.format.encode import (
    EncodedState,
    TensorSource,
    bytes_source,
    check_sources,
    encode_state,
)
from mlstate.locations import check_file_names
from mlstate.manifests import FileEntry, Manifest, StateEntry
from mlstate.models import BytesModel, TensorModel, state_type_of
from mlstate.objects import WritableObjectStore
from mlstate.objects.saveact import SaveAct
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import check_key, check_state_type
from mlstate.stores.statefiles import StateFiles, format_state_file, parse_state_file
from mlstate.stores.view import Found, StateView

__all__ = ["Content", "SavingStore"]

Content = bytes | str | os.PathLike[str]
"""A file to keep with a state: its bytes, or the path of a file that has them."""


class SavingStore(StateView):
    """A store of one's own: state files, and objects beside them.

    Args:
        states: The state files.
        objects: The objects.
    """

    objects: WritableObjectStore

    def __init__(self, states: StateFiles, objects: WritableObjectStore) -> None:
        self.states = states
        self.objects = objects

    def get_state_keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The states that are compatible with a type, or all, sorted by fields."""
        if state_type is not None:
            check_state_type(state_type)
        return sorted(self.states.keys(state_type))

    def exists(self, state_key: StateKey) -> bool:
        """Whether a state is in this store."""
        check_key(state_key)
        return self.states.read(state_key) is not None

    def find(self, key: StateKey) -> Found | None:
        """Find a state; see `StateView.find`."""
        data = self.states.read(key)
        if data is None:
            return None
        return Found(parse_state_file(data, key, self.states.locate(key)), self.objects)

    def save(
        self,
        model: Any,
        training_id: str,
        *,
        files: Mapping[str, Content] | None = None,
        meta: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        verify: bool = False,
    ) -> StateKey:
        """Save a model's state under its ``state_type`` and a training id.

        Objects that the store has already are not written again, whichever state they came with.
        Saving the same weights and files again changes nothing.

        Args:
            model: A ``torch.nn.Module`` with a ``state_type``, or another model.
            training_id: What made this state, for instance ``"2022-01-01-finetuned-imagenet"``.
            files: Files to keep with it: name -> bytes, or the path of a file.
            meta: Free information: licence, description, metrics. Of an unchanged state the
                stored one stays, and a warning says so.
            overwrite: Replace another state that has this key.
            verify: Read objects that are reused, and write those that are damaged again.

        Returns:
            The key that it is stored under.

        Raises:
            StateExistsError: Other weights or files have this key; nothing was written.
            FormatError: An entry of the state dict cannot be stored; nothing was written.
            IncompatibleStateError: The model has no state type.
        """
        key = StateKey(state_type_of(model), training_id)
        with concerning(key):
            sources = _sources_of(model)
        return self._save(key, sources, _Wish(files or {}, meta, overwrite, verify))

    def save_state_dict(
        self,
        state_dict: Mapping[str, Any],
        key: StateKey,
        *,
        files: Mapping[str, Content] | None = None,
        meta: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        verify: bool = False,
    ) -> StateKey:
        """Save tensors without a model: merged or averaged weights, an adapter, a checkpoint.

        Args:
            state_dict: Name -> tensor.
            key: The key to store it under.
            files: As for `save`.
            meta: As for `save`.
            overwrite: As for `save`.
            verify: As for `save`.

        Returns:
            The key.

        Raises:
            StateExistsError: Other weights or files have this key; nothing was written.
            FormatError: An entry cannot be stored; nothing was written.
        """
        from mlstate.tensors import tensor_sources

        check_key(key)
        with concerning(key):
            sources = tensor_sources(state_dict)
        return self._save(key, sources, _Wish(files or {}, meta, overwrite, verify))

    def delete(self, key: StateKey) -> None:
        """Remove a state. Its objects stay until pruning finds them unused.

        Raises:
            StateNotFoundError: There is no such state.
        """
        check_key(key)
        if not self.states.remove(key):
            self.get(key)  # says what is there instead
            raise StateNotFoundError("another process deleted this state first", key=key)

    def _save(self, key: StateKey, sources: list[TensorSource], wish: _Wish) -> StateKey:
        with concerning(key):
            _check_wish(wish.files, wish.meta)
            check_file_names(wish.files)
            files = {name: FileEntry(Digest.of(_content(wish.files[name]))) for name in wish.files}
            # Of the wish, before anything is written: meta that TOML cannot hold is refused here.
            wanted = _through_toml(StateEntry(key, None, files=files, meta=wish.meta or {}))
            check_sources(sources)
            existing = self._existing(key, overwrite=wish.overwrite)
            if existing is not None:
                encoded = encode_state(sources)
                other_meta = wish.meta is not None and wanted.meta != existing.entry.meta
                renew = wish.overwrite and (other_meta or existing.objects is not self.objects)
                if _same(existing.entry, encoded.digest, wanted) and not renew:
                    self._keep(existing, encoded, wanted, wish)
                    if other_meta:
                        _warn_of_meta(key)
                    return key
                if not wish.overwrite:
                    raise _exists(existing.entry, encoded.digest, wanted)
            elif variant := self.states.case_variant(key):
                raise StateExistsError(
                    "a state whose key differs only in case is there; many file systems cannot "
                    "tell them apart",
                    found=variant,
                    remedy="choose another training id",
                )
            act = SaveAct(self.objects, verify=wish.verify)
            encoded = encode_state(sources, act.take)
            for name, entry in files.items():
                act.take(entry.digest, [_content(wish.files[name])])
            act.take(encoded.digest, [encoded.data])
            act.flush()
            self._publish(replace(wanted, digest=encoded.digest, size=encoded.state.nbytes), wish)
            self._look_again(act, encoded, wish)
        return key

    def _existing(self, key: StateKey, *, overwrite: bool) -> Found | None:
        try:
            return self.find(key)
        except ManifestError as error:
            if overwrite:
                return None  # what cannot be read is replaced
            error.remedy = "save with overwrite=True to replace it"
            raise

    def _keep(
        self, existing: Found, encoded: EncodedState, wanted: StateEntry, wish: _Wish
    ) -> None:
        """The same weights and files again: mend what is missing of them."""
        if existing.objects is self.objects:
            absent = [d for d, size in encoded.sizes().items() if self.objects.size(d) != size]
            files = {file.digest for file in wanted.files.values()}
            absent += [digest for digest in files if self.objects.size(digest) is None]
            if absent or wish.verify:
                act = SaveAct(self.objects, verify=wish.verify)
                self._put_all(act, encoded, wish)
                act.flush()

    def _publish(self, entry: StateEntry, wish: _Wish) -> None:
        data = format_state_file(entry)
        if wish.overwrite:
            self.states.replace(entry.key, data)
            return
        while not self.states.create(entry.key, data):
            winner = self.find(entry.key)
            if winner is None:
                continue  # it was deleted since: the key is free again
            if not _same(winner.entry, entry.pinned_digest, entry):
                raise _exists(winner.entry, entry.pinned_digest, entry)
            return

    def _look_again(self, act: SaveAct, encoded: EncodedState, wish: _Wish) -> None:
        """Pruning may have taken a reused object before the state file named it: put it again."""
        if act.lost():
            again = SaveAct(self.objects, verify=False)
            self._put_all(again, encoded, wish)
            again.flush()

    def _put_all(self, act: SaveAct, encoded: EncodedState, wish: _Wish) -> None:
        for digest, source in encoded.sources.items():
            with source.data() as data:
                act.take(digest, [tensor_object.header(source.spec), data])
        for content in wish.files.values():
            data = _content(content)
            act.take(Digest.of(data), [data])
        act.take(encoded.digest, [encoded.data])


@dataclass(frozen=True)
class _Wish:
    """What a caller of `save` asked for beside the weights."""

    files: Mapping[str, Content]
    meta: Mapping[str, Any] | None
    overwrite: bool
    verify: bool


def _sources_of(model: Any) -> list[TensorSource]:
    if isinstance(model, TensorModel):
        from mlstate.tensors import tensor_sources

        return tensor_sources(model.state_dict())
    if isinstance(model, BytesModel):
        return [bytes_source(model.get_state())]
    raise IncompatibleStateError(
        f"this {type(model).__name__} has no state to save",
        expected="state_dict() and load_state_dict(), or get_state() and set_state()",
    )


def _warn_of_meta(key: StateKey) -> None:
    warnings.warn(
        f"{key} is stored already with the same weights and other meta: the stored meta stays; "
        "overwrite=True replaces it",
        stacklevel=4,
    )


def _content(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return Path(content).read_bytes()
    except OSError as error:
        error.add_note("in files=, a text is the path of a file; give its content as bytes")
        raise


def _check_wish(files: object, meta: object) -> None:
    """Refuse files and meta of the wrong kind, before anything is looked at.

    Raises:
        FormatError: They are no mappings, or a file is neither bytes nor a path.
    """
    if not isinstance(files, Mapping) or not all(
        isinstance(name, str) and isinstance(value, bytes | str | os.PathLike)
        for name, value in files.items()
    ):
        raise FormatError(
            "files is a mapping from names to contents",
            expected='for instance {"labels.json": b"[]", "config.json": "path/to/config.json"}',
            found=files,
        )
    if meta is not None and not isinstance(meta, Mapping):
        raise FormatError(
            "meta is a mapping", expected='for instance {"license": "MIT"}', found=repr(meta)
        )


def _same(stored: StateEntry, digest: Digest, wanted: StateEntry) -> bool:
    return stored.digest == digest and _digests(stored) == _digests(wanted)


def _digests(entry: StateEntry) -> dict[str, Digest]:
    return {name: file.digest for name, file in entry.files.items()}


def _exists(stored: StateEntry, digest: Digest, wanted: StateEntry) -> StateExistsError:
    what, yours, theirs = "weights", str(digest), str(stored.digest)
    if stored.digest == digest:
        what, yours, theirs = "files", str(_digests(wanted)), str(_digests(stored))
    return StateExistsError(
        f"this key has other {what} already; nothing was changed",
        key=stored.key,
        path=stored.origin,
        expected=f"{yours}, yours",
        found=f"{theirs}, stored",
        remedy="choose another training id, or overwrite=True",
    )


def _through_toml(entry: StateEntry) -> StateEntry:
    """An entry as it will be read back, for comparing meta with stored meta."""
    return Manifest.parse(format_state_file(entry), "the new state file").states[entry.key]
