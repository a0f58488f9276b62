"""For Lightning: a `CheckpointIO` that keeps checkpoints in a store."""

from __future__ import annotations

import json
import re
import uuid
from collections import OrderedDict
from pathlib import PurePosixPath
from typing import Any

import torch

from mlstate.digests import Digest
from mlstate.errors import FormatError, StateExistsError, StateNotFoundError
from mlstate.integrations.common import StoreLike, needing, saving_store
from mlstate.integrations.plain import joined, parted
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey, StateType
from mlstate.stores.arguments import check_pin

with needing("lightning"):
    from lightning.fabric.plugins.io import CheckpointIO
    from lightning.fabric.utilities.cloud_io import get_filesystem

__all__ = ["StoreCheckpointIO"]

_BESIDE = "lightning.json"
"""The file of the model's state that says which state has the rest."""
_PLAIN = "lightning.pt"
"""The file of that state with all but the tensors, read with ``weights_only``."""
_POINTER = "mlstate-checkpoint"
_LARGEST = 4096
_META: tuple[str, ...] = ("epoch", "global_step")


class StoreCheckpointIO(CheckpointIO):
    """Keeps the checkpoints of a `Trainer` in a store: it is one of the trainer's ``plugins``.

    The model is a state of its own, ``<run>-<name of the file>``, which loads without Lightning.
    Optimizers, schedulers, loops and callbacks are kept in a second state beside it, so that
    ``trainer.fit(ckpt_path=...)`` goes on exactly. A tensor that did not change is stored once.

    Where the trainer would write a checkpoint there is a small file that names the state, so that
    ``ckpt_path="last"``, ``save_top_k`` and the like work as they do. If it is lost,
    ``ckpt_path="<key>"`` finds the state as well. What a save that was killed has left beside the
    model is deleted by the next one that saves, or removes, a checkpoint of this name.

    Nothing is pickled but plain values: a checkpoint that holds other objects is refused when it is
    saved, and nothing else is ever read.

    Args:
        store: The store, or what `mlstate.open_store` takes.
        state_type: The type of the model's states.
        run: The name of the run, with which the training ids begin.
        overwrite: Replace states that another run of this name left.

    Raises:
        ReadOnlyStoreError: The store does not save.
    """

    def __init__(
        self, store: StoreLike, state_type: StateType, run: str, *, overwrite: bool = False
    ) -> None:
        self.store = saving_store(store)
        self.state_type = state_type
        self.run = run
        self._overwrite = overwrite
        self.key("last.ckpt")  # a name that is not possible is refused at once

    def key(self, path: Any) -> StateKey:
        """The key of the model's state of a checkpoint with this path.

        Example:
            ``lightning_logs/version_0/checkpoints/epoch=1-step=20.ckpt`` gives
            ``pytorch.net.<run>-epoch-1-step-20``
        """
        name = PurePosixPath(str(path)).name.removesuffix(".ckpt")
        readable = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")
        return StateKey(self.state_type, f"{self.run}-{readable}")

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save the model, and beside it all else; then name both at the path.

        Raises:
            StateExistsError: Another run has a state of this key.
            FormatError: There is an object in it that is no plain value; nothing was saved.
        """
        if storage_options is not None:
            raise FormatError("a store takes no storage_options", found=storage_options)
        key = self.key(path)
        there = self.store.exists(key)
        if there and not self._overwrite and self._named_at(path) != key:
            raise StateExistsError(
                "the store has a state of a run of this name; nothing was saved",
                key=key,
                path=self.store,
                remedy="give this run another name: run=..., or " + OVERWRITE,
            )
        model, rest = _without_model(checkpoint)
        tensors, plain = parted(rest)
        old = self._record(key) if there else {}
        beside = StateKey(_type_of_rest(self.state_type), f"{_mark(key)}{uuid.uuid4().hex}")
        # A checkpoint that is replaced stays whole until the state file of the new one is there.
        self.store.save_state_dict(tensors, beside, files={_PLAIN: plain})
        named = {"state": str(beside), "blake3": self.store.digest(beside)}
        files = {_BESIDE: json.dumps(named).encode()}
        meta = {name: checkpoint[name] for name in _META if name in checkpoint}
        self.store.save_state_dict(model, key, files=files, meta=meta, overwrite=True)
        self._forget(old)
        self._clean(key, beside)
        self._write_pointer(path, key)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint of a path, or of a key, verified.

        Args:
            path: The path, or the text of the key of a state.
            map_location: A device; the CPU by default.
            weights_only: Has no effect: other objects than plain values are never read.

        Raises:
            StateNotFoundError: The state is not in the store.
            FormatError: At the path is something else, such as a checkpoint of Lightning's own.
            IntegrityError: Bytes are damaged or missing.
        """
        key = self._named_at(path) or _as_key(path)
        if key is None:
            raise StateNotFoundError("there is no such checkpoint", path=str(path))
        device = map_location if isinstance(map_location, str | torch.device) else "cpu"
        beside = self._beside(key)
        tensors = self.store.load_state_dict(beside, device=device)
        rest = joined(self.store.files(beside)[_PLAIN], tensors)
        model: dict[str, Any] = OrderedDict(rest.pop("state_dict", {}))
        model.update(self.store.load_state_dict(key, device=device))
        model._metadata = rest.pop(_METADATA, None)  # type: ignore[attr-defined]
        return {**rest, "state_dict": model}

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the states of a checkpoint, and what names them at the path."""
        key = self._named_at(path)
        if key is not None and self.store.exists(key):
            old = self._record(key)
            self.store.delete(key)
            self._forget(old)
            self._clean(key, None)
        fs = get_filesystem(path)
        if fs.exists(str(path)):
            fs.rm(str(path))

    def _record(self, key: StateKey) -> dict[str, str]:
        """What a model's state says of the one with all else; nothing if it has none."""
        files = self.store.files(key)
        record: dict[str, str] = json.loads(files[_BESIDE]) if _BESIDE in files else {}
        return record

    def _forget(self, record: dict[str, str]) -> None:
        if record and self.store.exists(beside := StateKey.parse(record["state"])):
            self.store.delete(beside)

    def _clean(self, key: StateKey, beside: StateKey | None) -> None:
        """Delete what saves of a checkpoint that were killed have left: all but what it names."""
        mark = _mark(key)
        for other in self.store.get_state_keys(_type_of_rest(self.state_type)):
            if other.training_id.startswith(mark) and other != beside:
                self.store.delete(other)

    def _beside(self, key: StateKey) -> StateKey:
        """The state with all but the model, which is the one that was saved with it."""
        record = self._record(key)
        if not record:
            raise FormatError(
                "this state is no checkpoint of Lightning, but a model alone",
                key=key,
                path=self.store,
                remedy="load it into the model: store.load(model, key)",
            )
        beside = StateKey.parse(record["state"])
        check_pin(self.store.digest(beside), record["blake3"])
        return beside

    def _named_at(self, path: Any) -> StateKey | None:
        """The key that the file at a path names; None if there is no file.

        Raises:
            FormatError: It is no such file.
        """
        fs = get_filesystem(path)
        if not fs.isfile(str(path)):
            return None
        with fs.open(str(path), "rb") as file:
            data = file.read(_LARGEST)
        word, _, text = data.partition(b" ")
        if word != _POINTER.encode():
            raise FormatError(
                "this file names no checkpoint in a store",
                path=str(path),
                remedy="a checkpoint that Lightning wrote itself is loaded without this plugin",
            )
        return StateKey.parse(text.decode().strip())

    def _write_pointer(self, path: Any, key: StateKey) -> None:
        fs = get_filesystem(path)
        fs.makedirs(str(PurePosixPath(str(path)).parent), exist_ok=True)
        with fs.transaction, fs.open(str(path), "wb") as file:
            file.write(f"{_POINTER} {key}\n".encode())


_METADATA = "mlstate.versions"
"""The versions of modules, which torch notes in a state dict."""


def _without_model(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of the model, and all else."""
    state = checkpoint["state_dict"]
    model = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    rest = {**checkpoint, "state_dict": {n: v for n, v in state.items() if n not in model}}
    metadata = getattr(state, "_metadata", None)
    return model, rest if metadata is None else {**rest, _METADATA: metadata}


def _type_of_rest(state_type: StateType) -> StateType:
    """The type of the states with all but the model: no model takes it for one of its own."""
    return StateType("lightning", state_type.architecture, state_type.extra)


def _mark(key: StateKey) -> str:
    """What the training ids of the states beside a model's state begin with."""
    return f"{Digest.of(str(key).encode())[:16]}-"


def _as_key(path: Any) -> StateKey | None:
    try:
        return StateKey.parse(str(path))
    except FormatError:
        return None
