"""`export` writes a state as a file of weights that any tool reads."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from mlstate.errors import FormatError, StateExistsError, concerning
from mlstate.files import kind_of
from mlstate.foreign import file_kind
from mlstate.layouts import metadata_of
from mlstate.locations import local_path
from mlstate.objects.durable import create_exclusively, sync_path
from mlstate.phrases import OVERWRITE, Phrase
from mlstate.reading import read_state
from mlstate.states import StateKey, check_key
from mlstate.stores.abstract import Found
from mlstate.stores.custom import state_store
from mlstate.stores.materialize import materialize_state
from mlstate.stores.read import StateStore
from mlstate.system import replace
from mlstate.units import parse_size
from mlstate.weights.folder import remove_abandoned
from mlstate.weights.writer import check_has_tensors, temporaries, weights_of, write_output

__all__ = ["export", "publish", "refuse_existing"]

_TORCH = re.compile(r".+\.(pt|pth|bin|ckpt)(\.tar)?", re.IGNORECASE)
_SAFETENSORS = re.compile(r".+\.safetensors", re.IGNORECASE)
_ENDING = re.compile(r".+(\.(?!v\d)[A-Za-z][A-Za-z0-9]{1,11})")
"""What a file's name ends in: no number of a version."""
_FORMATS = ("safetensors", "torch", "dcp")
_Kind = Literal["file", "folder", "torch", "dcp"]
_METADATA = ".metadata"
"""The file that makes a folder a distributed checkpoint."""
_PART = re.compile(r"__\d+_\d+\.distcp")


def export(
    store: StateStore,
    key: StateKey,
    destination: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002  # what a file is called, everywhere
    max_shard_size: int | str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a state's weights as a file that any tool reads. All is verified on its way.

    ======================================  ====================================================
    ``x.safetensors``                       one safetensors file
    a folder; a new one has no ending, or   the files that its tensors were adopted in, or
    a slash after it                        ``model.safetensors``; with `max_shard_size` shards
                                            and their index, as transformers names them
    ``x.pth``, ``x.pt``, ``x.bin``, or      a checkpoint, as ``torch.save`` writes a state dict;
    ``format="torch"``                      needs torch
    a folder, with ``format="dcp"``         a distributed checkpoint, which ``dcp.load`` of
                                            ``torch.distributed.checkpoint`` reads; needs torch
    ======================================  ====================================================

    Names of one tensor of 16 KiB or more, as tied weights have them, are one tensor in a
    checkpoint, too; a tensor that repeats one value is not. In a safetensors file, which cannot say
    so, each name has its own copy: models that tie them do so when they load it.

    What an adopted safetensors file said of itself (``__metadata__``) is in it again; in one file
    that several became, if all said the same.

    Only the tensors are written, and the indexes of their shards. `materialize` writes a folder for
    `from_pretrained`, with config and tokenizer.

    Args:
        store: Any store of mlstate.
        key: The state.
        destination: A file or a folder; a folder that is missing is made.
        format: ``"safetensors"``, ``"torch"`` or ``"dcp"``; by default as the name of the
            destination says.
        max_shard_size: Of a folder, the most bytes of a file that holds several tensors: a number,
            or for instance ``"5GB"``.
        overwrite: Replace a file that is there. Of a folder, see `materialize`: what an earlier
            export wrote there is replaced anyway.

    Returns:
        The destination.

    Raises:
        StateExistsError: Something is there; it is as it was.
        FormatError: The options contradict each other, or the state has no tensors.
        IntegrityError: Bytes are damaged or missing; nothing was written.
        StateNotFoundError: There is no such state.
        FetchError: Something is missing in a cache, and no mirror could give it.

    Example:
        >>> import tempfile, torch
        >>> from mlstate import MemoryStateStore
        >>> store = MemoryStateStore()
        >>> key = StateKey.parse("pytorch.linear.ones")
        >>> _ = store.save_state_dict({"weight": torch.ones(2)}, key)
        >>> torch.load(export(store, key, tempfile.mkdtemp() + "/ones.pth"))
        {'weight': tensor([1., 1.])}
    """
    check_key(key)
    view = state_store(store)
    target = local_path(destination)
    with concerning(key):
        kind = _kind(target, format, max_shard_size, os.fspath(destination).endswith(os.sep))
        if kind == "folder":
            state = view.get(key)
            # The indexes of shards are files of the state.
            files = any(file.index is not None for file in state.entry.layout.values())

            def write_folder(found: Found) -> Path:
                view.access.bring(found.entry, files=files)
                return materialize_state(
                    *found, target, max_shard_size=max_shard_size, overwrite=overwrite, files=False
                )

            return view.reading(key, write_folder, files=files, found=state)
        if kind == "dcp":
            return _write_dcp(view, key, target, overwrite=overwrite)
        refuse_existing(target, overwrite=overwrite)
        remove_abandoned(target.parent)
        with temporaries(target.parent) as run:
            write = _write_torch if kind == "torch" else _write_plain
            publish(write(view, key, run / "weights"), target, overwrite=overwrite)
    return target


def _kind(target: Path, form: str | None, most: int | str | None, folder: bool) -> _Kind:
    """What to write, by the name and `format`; refused if they contradict each other.

    ``folder`` says that the name ends in a slash.
    """
    if form is not None and form not in _FORMATS:
        raise FormatError("unknown format", expected=" or ".join(_FORMATS), found=repr(form))
    if most is not None:
        parse_size(most)
    kind: _Kind = "torch" if form == "torch" else "dcp" if form == "dcp" else "folder"
    flag = "--dcp" if form == "dcp" else "--torch"
    if not target.is_dir() and not folder:
        plain, pickled = _SAFETENSORS.fullmatch(target.name), _TORCH.fullmatch(target.name)
        if (plain and kind != "folder") or (pickled and form in ("safetensors", "dcp")):
            raise FormatError(
                "the name of the file says another format",
                path=target,
                found=Phrase(f"format={form!r}", flag),
                remedy="choose another name, or leave " + Phrase("format", flag) + " out",
            )
        if not plain and not pickled and (known := _says_other(target.name, form)):
            raise FormatError(
                "weights are not written in the format that this name says",
                path=target,
                expected="a name that ends in .safetensors, .pt, .pth, .bin or .ckpt; or a folder/",
                found=known,
                remedy="choose such a name; that of a new folder may end in /",
            )
        kind = "torch" if pickled else "file" if plain else kind
    if most is not None and kind == "dcp":
        raise FormatError(
            "a distributed checkpoint has the chunks that the state has",
            path=target,
            remedy="give no " + Phrase("max_shard_size", "--max-shard-size"),
        )
    if most is not None and kind != "folder":
        raise FormatError(
            "shards need a folder",
            path=target,
            remedy="give a folder, or no " + Phrase("max_shard_size", "--max-shard-size"),
        )
    return kind


def _says_other(name: str, form: str | None) -> str | None:
    """What a name says that is neither of the two formats: of a folder it has no ending."""
    known, ending = file_kind(name), _ENDING.fullmatch(name)
    if known is None and (form in ("torch", "dcp") or ending is None):
        return None
    return known or f"the ending {ending[1] if ending else ''}"


def _write_plain(store: StateStore, key: StateKey, temporary: Path) -> Path:
    def write(found: Found) -> Path:
        store.access.bring(found.entry, files=False)
        (output,) = weights_of(read_state(*found), None, metadata_of(found.entry.layout))
        temporary.unlink(missing_ok=True)  # of a first attempt, which met something damaged
        return write_output(output, found.objects, temporary)

    return store.reading(key, write, files=False)


def _write_torch(store: StateStore, key: StateKey, temporary: Path) -> Path:
    from mlstate.tensors import part_constant, read_tensors, write_checkpoint

    def write(found: Found) -> Path:
        store.access.bring(found.entry, files=False)
        state = read_state(*found)
        check_has_tensors(state.specs)
        # Names of one object share a storage in the file, as tied weights do that torch saves.
        tensors = part_constant(read_tensors(found.objects, state, shared=True))
        temporary.unlink(missing_ok=True)  # of a first attempt, which met something damaged
        with temporary.open("xb") as file:
            write_checkpoint(tensors, file)
        sync_path(temporary)
        return temporary

    return store.reading(key, write, files=False)


def _write_dcp(store: StateStore, key: StateKey, folder: Path, *, overwrite: bool) -> Path:
    """Write a folder that plain ``dcp.load`` reads: its ``.metadata``, published last, names all.

    Raises:
        StateExistsError: The folder is not empty, or no folder; nothing was changed.
    """
    from mlstate.tensors import read_tensors
    from mlstate.tensors.dcp import opened_checkpoint, write_dcp_folder

    there = _names_in(folder)
    if there and not overwrite:
        raise StateExistsError(
            "this folder has files; nothing was changed",
            path=folder,
            found=", ".join(sorted(there)[:5]),
            remedy="choose a new folder, or " + OVERWRITE,
        )
    with temporaries(folder) as run:

        def write(found: Found) -> list[str]:
            store.access.bring(found.entry)
            state, index = opened_checkpoint(*found)
            check_has_tensors(state.specs)
            for name in _names_in(run):  # of a first attempt, which met something damaged
                (run / name).unlink()
            return write_dcp_folder(
                index, lambda name: read_tensors(found.objects, state, [name])[name], run
            )

        names = store.reading(key, write)
        for name in [_METADATA, *filter(_PART.fullmatch, there)]:
            (folder / name).unlink(missing_ok=True)
        for name in names:
            sync_path(run / name)
            publish(run / name, folder / name, overwrite=overwrite)
    return folder


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise StateExistsError(
            "a file is in the way of a folder; nothing was changed", path=folder
        ) from None


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Refuse, by a StateExistsError, a destination that is taken, before anything is read."""
    if target.is_dir():
        raise StateExistsError("a folder is in the way of a file; nothing was changed", path=target)
    if target.exists() and not target.is_file():  # a device would be lost
        raise StateExistsError(
            "a file is replaced by a whole new one, and this is none; nothing was changed",
            path=target,
            expected="the name of a file",
            found=kind_of(target.stat().st_mode),
        )
    if not overwrite and os.path.lexists(target):
        raise StateExistsError(
            "this file is there already; nothing was changed",
            path=target,
            remedy="choose another name, or " + OVERWRITE,
        )


def publish(temporary: Path, target: Path, *, overwrite: bool) -> None:
    """Give a complete file its name, durably; a StateExistsError if another was made meanwhile."""
    if overwrite:
        replace(temporary, target)
    elif not create_exclusively(temporary, target):
        refuse_existing(target, overwrite=False)
    sync_path(target.parent)
