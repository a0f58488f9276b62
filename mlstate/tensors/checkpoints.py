"""Checkpoints that torch.save wrote, read without running anything that they contain."""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from mlstate.errors import FormatError, concerning
from mlstate.pickled import BytesSource, FileSource, read_checkpoint
from mlstate.pickled.gzipped import plain_file
from mlstate.tensors.fit import some

__all__ = ["load_checkpoint", "open_checkpoint", "write_checkpoint"]


class _Noting:
    """A file that keeps the error of a write, instead of which torch raises its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def write_checkpoint(tensors: Mapping[str, torch.Tensor], file: BinaryIO) -> None:
    """Write a state dict of CPU tensors by ``torch.save``; none is copied on the way.

    The file is an open one: by its name torch would call what is inside, and the same tensors are
    always to make the same bytes. Errors of writing are an OSError.
    """
    noting = _Noting(file)
    try:
        torch.save(dict(tensors), cast("BinaryIO", noting))
    except RuntimeError as error:
        if noting.failure is None:
            raise
        raise noting.failure from error


_ZIP = b"PK\x03\x04"
_REFUSED = re.compile(r"GLOBAL ([\w.]{1,200})")


def load_checkpoint(data: bytes, path: str) -> dict[str, Any]:
    """The state dict in a checkpoint of this content, read with ``weights_only=True``, on the CPU.

    Anything but a mapping of plain data is a FormatError, which names ``path``.
    """
    with concerning(path=path):
        read_checkpoint(BytesSource(data))  # before torch allocates: see `open_checkpoint`
    return dict(_state_dict(_unpickle(io.BytesIO(data), path, mmap=False), path))


def open_checkpoint(
    path: Path,
    *,
    gzip: bool = False,
    select: str | None = None,
    origin: str,
    max_bytes: int | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file by name, with ``weights_only=True``, mapped where possible.

    A file in today's format (zip, torch 1.6 and newer) is mapped, so that a tensor takes memory
    only while it is read; nobody may change the file as long as the tensors are in use. The older
    format is read into memory. A compressed file is decompressed first, into a temporary file
    beside it that has no name and goes with the last tensor: of at most ``max_bytes``, if given.
    Nothing is verified here. ``origin`` is where the file is from, for errors.

    ``select`` is the dotted path of the state dict inside. At each step the longest key that
    matches is taken, so keys may have dots themselves. Without ``max_bytes`` the limit of
    `plain_file` counts.

    Raises a `FormatError` for what is no checkpoint, holds more than plain data, is damaged, or is
    too large when decompressed; for nothing where ``select`` leads; for entries that are no
    tensors.
    """
    with plain_file(path, gzip, origin, max_bytes) as file:
        zipped = file.read(len(_ZIP)) == _ZIP
        if zipped:
            _check_zip(file, origin)
        with concerning(path=origin):
            # Torch allocates and rebuilds before it looks, and leaves memory that nobody wrote
            # where storages are missing: what it is given was looked at before.
            read_checkpoint(FileSource(file))
        file.seek(0)
        # Mapping needs a name. This one is the open file's, whatever the path has come to mean.
        name = f"/dev/fd/{file.fileno()}"
        mapped = zipped and os.path.exists(name)
        loaded = _unpickle(name if mapped else file, origin, mmap=mapped)
    if select is not None:
        loaded = _selected(loaded, select, origin)
    return _tensors(_state_dict(loaded, origin), origin)


def _check_zip(file: BinaryIO, origin: str) -> None:
    """Refuse archives that torch.save did not write, before torch reads them.

    It stores entries as they are. A compressed one could not be mapped, and its text, which is
    read whole, could be of any size.
    """
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, zlib.error) as error:
        raise FormatError(
            "this file is a damaged or incomplete checkpoint", path=origin, found=error
        ) from None
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise FormatError(
            "this file is a TorchScript archive, which is a program and not a checkpoint",
            path=origin,
            remedy="if you trust it, torch.jit.load it and save its state_dict()",
        )
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise FormatError(
                "this archive has compressed entries, which torch.save does not write",
                path=origin,
                found=entry.filename,
            )


def _unpickle(source: Any, origin: str, *, mmap: bool) -> object:
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # torch promises no type for what is damaged or hostile
        # Not its text, which advises to switch the protection off.
        refused = _REFUSED.search(str(error))
        raise FormatError(
            "this file is not a checkpoint of plain tensors",
            path=origin,
            expected="what torch.save writes of tensors, whole",
            found=f"a pickled {refused[1]}" if refused else "something else, or a part of it",
        ) from None


def _state_dict(loaded: object, origin: str) -> Mapping[Any, Any]:
    if not isinstance(loaded, Mapping):
        raise FormatError(
            "this checkpoint holds no state dict",
            path=origin,
            expected="a mapping from names to tensors",
            found=type(loaded).__name__,
        )
    return loaded


def _selected(loaded: object, select: str, origin: str) -> object:
    """The value under a dotted path."""
    here, left = loaded, select
    while True:
        keys = here if isinstance(here, Mapping) else {}
        # From the whole of what is left to its first part.
        parts = left.split(".")
        heads = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        head = next((head for head in heads if head in keys), None)
        if head is None:
            near = get_close_matches(select, _inside(loaded), n=1) or _inside(loaded)
            raise FormatError(
                "the checkpoint has nothing where select leads",
                path=origin,
                expected=select,
                found=_some(keys) if isinstance(here, Mapping) else type(here).__name__,
                remedy=f"select one of: {', '.join(near)}" if near else None,
            )
        here = keys[head]
        if head == left:
            return here
        left = left[len(head) + 1 :]


def _tensors(state_dict: Mapping[Any, Any], origin: str) -> dict[str, torch.Tensor]:
    """All entries as tensors: parameters become plain ones; anything else is refused."""
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            inside = _inside(state_dict)
            raise FormatError(
                "this entry of the checkpoint is no tensor",
                path=origin,
                tensor=name if isinstance(name, str) else repr(name),
                expected="a mapping from names to tensors",
                found=type(value).__name__,
                remedy=f"select the state dict inside: {', '.join(inside)}" if inside else None,
            )
    return {
        name: value.detach() if type(value) is torch.nn.Parameter else value
        for name, value in state_dict.items()
    }


def _inside(loaded: object, most: int = 5) -> list[str]:
    """Dotted paths of mappings with a tensor in them: the first few, those further up first."""
    paths: list[str] = []
    queue = deque([("", loaded)])
    seen = {id(loaded)}  # a pickle can put one mapping into another many times, or into itself
    while queue and len(paths) < most:
        path, mapping = queue.popleft()
        if not isinstance(mapping, Mapping):
            continue
        if path and any(isinstance(entry, torch.Tensor) for entry in mapping.values()):
            paths.append(path)
            continue
        for key, value in mapping.items():
            if isinstance(key, str) and id(value) not in seen:
                seen.add(id(value))
                queue.append((f"{path}.{key}" if path else key, value))
    return paths


def _some(keys: Mapping[Any, Any]) -> str:
    names = [key if isinstance(key, str) else repr(key) for key in keys]
    return some(names) or "an empty mapping"
