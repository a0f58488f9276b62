"""A plain folder that states are materialized into: its record, and what may be replaced in it.

A file may be replaced if it is recorded and its bytes are still those that were written: what
somebody trained or edited in the folder stays, unless they ask for it to be replaced.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlstate.digests import Digest, Hasher
from mlstate.errors import FormatError, StateExistsError
from mlstate.files import LACKING, UnfitFileError, open_folder_of, open_listed, open_regular
from mlstate.format.plain_file import (
    PlainFile,
    content_digest,
    index_name,
    is_weights_name,
    stem_of_shard,
)
from mlstate.format.state_object import MAX_HEADER
from mlstate.locations import check_file_names
from mlstate.objects.beside import abandoned_since
from mlstate.objects.durable import read_small
from mlstate.phrases import OVERWRITE
from mlstate.states import is_device_name
from mlstate.system import WINDOWS, Place, remove_at, stat_at
from mlstate.texts import load_toml
from mlstate.weights.files import PIECE, LocalTensor, OpenFile, digest_of_tensors, pieces_at

__all__ = [
    "RECORD_NAME",
    "FolderPlan",
    "Recorded",
    "check_names_fit",
    "folder_of",
    "format_record",
    "is_own_name",
    "plan_folder",
    "remove_abandoned",
    "remove_temporaries",
    "temporary_name",
]

RECORD_NAME = ".mlstate.toml"
"""The file in the folder that lists what was written there."""

_OWN = ".mlstate"
_TEMPORARY = re.compile(r"\.mlstate-[0-9a-f]{32}\.tmp")

Recorded = Mapping[str, tuple[Digest, ...]]
"""Name -> the digests that were written under this name."""


@dataclass(frozen=True)
class FolderPlan:
    """The changes that a folder needs.

    Attributes:
        write: The names to write; all others of the state are there already.
        stale: The names to remove: what an earlier state had and this one has not.
        recorded: The folder's record as it is.
        kept: The part of it that stays, though it is not of this state.
    """

    write: frozenset[str]
    stale: tuple[str, ...]
    recorded: Recorded
    kept: Recorded


def plan_folder(
    folder: Path,
    wanted: Mapping[str, Digest],
    *,
    weights: Collection[str],
    overwrite: bool,
    weights_only: bool = False,
) -> FolderPlan:
    """Compare a folder with what it is to hold; nothing is changed.

    Args:
        folder: The folder; it may be missing.
        wanted: Each file with its digest: of weights that of `content_digest`.
        weights: Those that are weights.
        overwrite: Replace what is in the way, whoever wrote it.
        weights_only: Leave other recorded files, and their record, as they are.

    Raises:
        StateExistsError: Something is in the way that was not written here, or was changed since.
    """
    recorded = _read_record(folder / RECORD_NAME)
    write, stale = set(), []
    for name, digest in wanted.items():
        with _in_our_words():
            found = _found(folder, name, {digest, *recorded.get(name, ())}, name in weights)
        if found == digest:
            continue
        if found is not None and not overwrite and found not in recorded.get(name, ()):
            raise _in_the_way(folder / name)
        write.add(name)
    rivals = _rivals(folder, weights)
    others = {*rivals, *recorded}
    if weights_only:
        others = {name for name in others if name in rivals or is_weights_name(name)}
    for name in sorted(others - wanted.keys()):
        try:
            found = _found(folder, name, recorded.get(name, ()))
        except UnfitFileError:
            continue  # what is behind a link is not ours to remove
        if found in recorded.get(name, ()):
            stale.append(name)
        elif found is not None and name in rivals:
            if not overwrite:  # tools would read it instead of ours, or beside them
                raise _in_the_way(folder / name)
            stale.append(name)
    kept = {name: recorded[name] for name in recorded.keys() - others - wanted.keys()}
    return FolderPlan(frozenset(write), tuple(stale), recorded, kept)


def _in_the_way(path: Path) -> StateExistsError:
    return StateExistsError(
        "a file is in the way that mlstate did not write, or that was changed since; the folder "
        "is as it was",
        path=path,
        remedy="choose another folder, or move the file away, or replace it by " + OVERWRITE,
    )


def _rivals(folder: Path, weights: Collection[str]) -> set[str]:
    """The files that a tool may take for weights, where these are to be written.

    In the folder itself those with the usual names; in each folder of weights what is called like
    one of these, or like a shard or an index of it.
    """
    rivals = set(filter(is_weights_name, _names(folder)))
    for name in weights:
        place, slash, last = name.rpartition("/")
        like = _like(last)
        rivals |= {place + slash + n for n in _names(folder / place) if like.fullmatch(n)}
    return rivals


def _like(name: str) -> re.Pattern[str]:
    stem = stem_of_shard(name)
    index = re.escape(index_name(stem))
    return re.compile(rf"{re.escape(stem)}(-\d+-of-\d+)?\.safetensors|{index}", re.IGNORECASE)


_ENDING = ".safetensors"
_FOREIGN = "something else"


def _found(
    folder: Path, name: str, known: Collection[str], weights: bool | None = None
) -> str | None:
    """The digest of a file; None if there is none, `_FOREIGN` if it cannot be ours.

    Of weights it is that of `content_digest`. Without a word on what it is, it is the one of both
    that is known.

    Raises:
        UnfitFileError: Its folder is a link, or no folder.
    """
    path = folder / name
    try:
        with open_folder_of(folder, name) as (place, last):
            mode = stat_at(last, place).st_mode
            if stat.S_ISDIR(mode):
                raise StateExistsError(
                    "a folder is in the way of a file; nothing was changed", path=path
                )
            if not stat.S_ISREG(mode):
                return _FOREIGN
            descriptor = open_regular(last, folder=place, follow=False)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            return _digest_of(file, path, known, weights)
    except FileNotFoundError:
        return None  # or another process removed it


def _digest_of(file: BinaryIO, path: Path, known: Collection[str], weights: bool | None) -> str:
    if weights is not False and path.name.lower().endswith(_ENDING):
        found = _weights_digest(file, path) or _FOREIGN
        if weights or found in known or is_weights_name(path.name):
            return found
    hasher = Hasher()
    file.seek(0)
    while piece := file.read(PIECE):
        hasher.update(piece)
    return hasher.digest()


@contextmanager
def folder_of(folder: Path, name: str, *, make: bool = False) -> Iterator[tuple[Place, str]]:
    """Hold the folder of a file that is written here open; see `open_folder_of`.

    Raises:
        StateExistsError: A link, through which files elsewhere would change, or a file is in the
            place of a folder.
    """
    with _in_our_words(), open_folder_of(folder, name, make=make) as found:
        yield found


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Turn an UnfitFileError into the StateExistsError of `folder_of`."""
    try:
        yield
    except UnfitFileError as unfit:
        raise StateExistsError(
            f"{unfit.found} is in the way of a folder; what it leads to is as it was",
            path=unfit.filename,
            remedy="choose another folder, or move it away",
        ) from None


def _weights_digest(file: BinaryIO, path: Path) -> Digest | None:
    """The `content_digest` of a plain file; None of a file that is laid out in another way."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(b"".join(pieces_at(file.fileno(), 0, 8)), "little")
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        return None
    try:
        header = b"".join(pieces_at(file.fileno(), 0, 8 + length))
        layout = PlainFile.parse(header, any_metadata=True)
        if layout.size != size:
            return None
        opened = OpenFile(file, str(path))
        tensors = digest_of_tensors(
            LocalTensor(name, spec, opened, layout.starts[name], exact=True)
            for name, spec in layout.specs.items()
        )
        return content_digest(tensors, layout.metadata)
    except FormatError:
        return None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


# The record.


def is_own_name(name: str) -> bool:
    """Whether a name is that of a record or a temporary, or could be taken for one."""
    return name.lower().startswith(_OWN)


def format_record(key: object, digest: Digest, files: Recorded) -> bytes:
    """The content of a folder's record."""
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment("What mlstate wrote here; it replaces and removes nothing else."))
    document["version"] = 1
    document["key"] = str(key)
    document["blake3"] = str(digest)
    document["files"] = {name: [*map(str, files[name])] for name in sorted(files)}
    return tomlkit.dumps(document).encode()


def _read_record(path: Path) -> Recorded:
    """A folder's record; empty if there is none, or none that can be understood."""
    missing = (FileNotFoundError, NotADirectoryError)
    try:
        table = load_toml(read_small(path), "a record")
        files = {name: tuple(map(Digest, digests)) for name, digests in table["files"].items()}
        check_file_names(files)
    except (*missing, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return {}
    return files if table.get("version") == 1 else {}


def temporary_name() -> str:
    """A new name for a folder of temporaries."""
    return f"{_OWN}-{os.urandom(16).hex()}.tmp"


def remove_abandoned(folder: Path) -> None:
    """Remove temporaries that nobody has written to for an hour."""
    for name in _names(folder):
        if _TEMPORARY.fullmatch(name):
            run = folder / name
            with suppress(OSError), open_listed(run) as place:
                limit = abandoned_since(folder)
                found = (stat_at(one, place) for one in (".", *os.listdir(place)))
                if max(one.st_mtime for one in found) < limit:
                    remove_temporaries(run)


_ODD = re.compile(r'[<>:"|?*]|[ .](/|$)')
_PLAIN = re.compile(r"[A-Za-z0-9_/-][A-Za-z0-9_./-]{0,99}(?<![./])")


def check_names_fit(run: Path, names: Collection[str]) -> None:
    """Refuse names that the file system of a folder of temporaries cannot hold, or not together.

    FAT knows no colon, no file system a name of 300 bytes; where case is ignored, two names may be
    one. It is tried, with empty files, unless the names are such that nothing can be wrong.

    Raises:
        FormatError: There is such a name; nothing was written.
    """
    for name in sorted(names) if WINDOWS else ():  # which writes to devices and streams, no error
        if _ODD.search(name) or any(map(is_device_name, name.split("/"))):
            raise _unfit(name, "Windows keeps it for devices, or for itself")
    folded = {name.casefold() for name in names}
    if len(folded) == len(names) and all(map(_PLAIN.fullmatch, names)):
        return
    trial = run / "trial"
    trial.mkdir()
    made: list[Path] = []
    try:
        for name in sorted(names):
            # Of a path all parts are tried, in one folder: `ReadMe/x` meets `readme/x` as well.
            for part in sorted({*name.split("/"), name.replace("/", "_")}):
                _try_name(trial / part, name, made)
    finally:
        for path in made:
            path.unlink(missing_ok=True)
        trial.rmdir()


def _try_name(path: Path, name: str, made: list[Path]) -> None:
    if path in made:
        return
    try:
        path.open("xb").close()
    except FileExistsError:
        reason = "in case or spelling alone it differs from another one, and here these are one"
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        made.append(path)
        return
    raise _unfit(name, reason)


def _unfit(name: str, reason: str) -> FormatError:
    return FormatError(
        "a file of this state has a name that this folder's file system cannot hold; nothing was "
        "written",
        path=name,
        found=reason,
        remedy="choose a folder on another file system, or save the state without this file",
    )


def remove_temporaries(run: Path) -> None:
    """Remove a folder of temporaries, which has files alone, as far as that can be done.

    Of a link, which another member of a group may have put there, nothing is removed.
    """
    try:
        with open_listed(run) as place:
            _unlink_all(place, os.listdir(place))
    except OSError as error:
        if error.errno not in LACKING:
            return
        with suppress(OSError):  # a file system that opens no folders: by the path, then
            if stat.S_ISDIR(run.lstat().st_mode):
                _unlink_all(None, [str(run / name) for name in os.listdir(run)])
    with suppress(OSError):
        run.rmdir()


def _unlink_all(folder: Place | None, names: list[str]) -> None:
    for name in names:
        with suppress(OSError):
            remove_at(name, folder)
