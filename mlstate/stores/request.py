"""What a caller of `save` asks for, checked, and how it compares with what is stored already.

Shared by all stores that save, whichever way they do it.
"""

from __future__ import annotations

import abc
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlstate.digests import Digest
from mlstate.errors import FormatError, IncompatibleStateError, StateExistsError, concerning
from mlstate.format.encode import EncodedState, TensorSource, bytes_source
from mlstate.locations import check_file_names
from mlstate.manifests import FileEntry, Manifest, StateEntry
from mlstate.models import BytesModel, TensorModel, state_type_of
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey
from mlstate.stores.abstract import check_key

__all__ = [
    "FROM_COPY",
    "Content",
    "Saves",
    "Source",
    "Wish",
    "case_variant_exists",
    "content_of",
    "is_same",
    "other_exists",
    "warn_of_meta",
]

FROM_COPY = 5
"""As `stacklevel` of a warning in the `_receive` of a store: whoever called `copy`."""

Content = bytes | str | os.PathLike[str]
"""A file to keep with a state: its bytes, or the path of a file that has them."""


class Source(Protocol):
    """Where a state comes from that another store has."""

    def bring(self, missing: Callable[[], Collection[Digest]]) -> None:
        """Make sure that the bytes of some objects are at hand; others come when they are read.

        Args:
            missing: Says of which objects; not asked where all are at hand.
        """

    def passed(self, digest: Digest, size: int) -> None:
        """Note that an object has been stored, or was there."""


@dataclass(frozen=True)
class Wish:
    """What a caller of `save` or `copy` asked for beside the weights.

    Attributes:
        files: The files to keep with the state.
        meta: What to note with it; None: nothing in particular.
        overwrite: Replace another state.
        verify: Read objects that are reused.
        source: The store that the state comes from, if it comes from one.
        reused: Filled with the tensor objects that were there already, each with the bytes of its
            tensor, by stores that know.
    """

    files: Mapping[str, Content]
    meta: Mapping[str, Any] | None
    overwrite: bool
    verify: bool = False
    source: Source | None = None
    reused: dict[Digest, int] | None = None

    def entry(self, key: StateKey) -> StateEntry:
        """What is to be said of the state, without digest and size, as it will be read back.

        Raises:
            FormatError: Files or meta are of the wrong kind, a file's name leaves its bounds, or
                meta holds something that TOML cannot.
        """
        _check_kinds(self.files, self.meta)
        check_file_names(self.files)
        files = {name: FileEntry(Digest.of(content_of(self.files[name]))) for name in self.files}
        entry = StateEntry(key, None, files=files, meta=self.meta or {})
        if not files and not self.meta:
            return entry  # nothing that TOML might refuse or change
        text = Manifest({key: entry}).format().encode()
        return Manifest.parse(text, "the new state file").states[key]

    def other_meta(self, stored: StateEntry, wanted: StateEntry) -> bool:
        """Whether the caller gave meta, and other meta is stored."""
        return self.meta is not None and wanted.meta != stored.meta


class Saves(abc.ABC):
    """A store that saves models and state dicts, by way of one method."""

    @abc.abstractmethod
    def _save(self, key: StateKey, sources: list[TensorSource], wish: Wish) -> StateKey:
        """Save what these sources give under a key."""

    @abc.abstractmethod
    def _receive(self, encoded: EncodedState, wanted: StateEntry, wish: Wish) -> bool:
        """Save a state whose digests are known already. Its bytes are verified on the way.

        Args:
            encoded: The state.
            wanted: What is to be said of it, without digest and size.
            wish: As for `_save`.

        Returns:
            False if it was there.
        """

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

        What the store has already is not written again, whichever state it came with. Saving the
        same weights and files again changes nothing.

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
        return self._save(key, sources, Wish(files or {}, meta, overwrite, verify))

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
        return self._save(key, sources, Wish(files or {}, meta, overwrite, verify))


def content_of(content: Content) -> bytes:
    """The bytes of a file to keep with a state."""
    if isinstance(content, bytes):
        return content
    try:
        return Path(content).read_bytes()
    except OSError as error:
        error.add_note("in files=, a text is the path of a file; give its content as bytes")
        raise


def is_same(stored: StateEntry, digest: Digest, wanted: StateEntry) -> bool:
    """Whether a stored state has exactly these weights and files."""
    return stored.digest == digest and _digests(stored) == _digests(wanted)


def other_exists(stored: StateEntry, digest: Digest, wanted: StateEntry) -> StateExistsError:
    """The error that another state has the key."""
    what, yours, theirs = "weights", str(digest), str(stored.digest)
    if stored.digest == digest:
        what, yours, theirs = "files", str(_digests(wanted)), str(_digests(stored))
    return StateExistsError(
        f"this key has other {what} already; nothing was changed",
        key=stored.key,
        path=stored.origin,
        expected=f"{yours}, yours",
        found=f"{theirs}, stored",
        remedy="choose another training id, or " + OVERWRITE,
    )


def case_variant_exists(variant: StateKey) -> StateExistsError:
    """The error that a key differs only in case from one that is there."""
    return StateExistsError(
        "a state whose key differs only in case is there; many file systems cannot tell them apart",
        found=variant,
        remedy="choose another training id",
    )


def warn_of_meta(key: StateKey, *, stacklevel: int = 4) -> None:
    """Say that other meta stays; called by the `_save` of a store.

    Args:
        key: The state.
        stacklevel: Whom the warning concerns: as for `warnings.warn`.
    """
    warnings.warn(
        f"{key} is stored already with the same weights and other meta: the stored meta stays; "
        + OVERWRITE
        + " replaces it",
        stacklevel=stacklevel,
    )


def _digests(entry: StateEntry) -> dict[str, Digest]:
    return {name: file.digest for name, file in entry.files.items()}


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


def _check_kinds(files: object, meta: object) -> None:
    """Refuse files and meta of the wrong kind, before anything is looked at."""
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
