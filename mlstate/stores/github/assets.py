"""The assets of a state in a release: their names, and the bytes of each.

``{extra...}.{training_id}.toml`` is the pointer: a manifest of this one state. While a new one is
uploaded, it is called ``....toml.old``. The data has the digest in its name:
``....{digest}.safetensors`` (or ``....{digest}-00001-of-00002.safetensors``, and so on), the
state object ``....{digest}.mlstate``, and each file of the state ``....{its digest}.file``.
``....state.gzip`` is a checkpoint of MLModule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

from mlstate.digests import Bytes, Digest, Hasher
from mlstate.errors import FormatError, IntegrityError, LimitError, ManifestError
from mlstate.format import tensor_object
from mlstate.format.encode import EncodedState
from mlstate.format.plain_file import PlainFile, split
from mlstate.locations import Mirror, parse_mirror
from mlstate.manifests import FileEntry, Manifest, StateEntry
from mlstate.manifests.parse import parse_state_file
from mlstate.phrases import FOLDER_OR_BUCKET
from mlstate.states import StateKey
from mlstate.stores.abstract import Listing
from mlstate.stores.github.releases import Asset
from mlstate.stores.github.upload import Upload
from mlstate.stores.save_request import Content, content_of

__all__ = [
    "LEGACY",
    "MAX_POINTER",
    "OLD",
    "POINTER",
    "Plan",
    "check_pointer_size",
    "is_data",
    "key_of",
    "listings",
    "make_plan",
    "named",
    "parse_pointer",
    "pointer_of",
    "stem_of",
]

POINTER = ".toml"
OLD = ".toml.old"
LEGACY = ".state.gzip"

MAX_POINTER = 1 << 20  # bytes

_PIECE = 1 << 18
_DATA = re.compile(r"[0-9a-f]{64}((-\d+-of-\d+)?\.safetensors|\.mlstate|\.file)")


def stem_of(key: StateKey) -> str:
    """The beginning, before a dot, of the names of all assets of a state."""
    return ".".join((*key.state_type.extra, key.training_id))


def key_of(tag: str, name: str) -> StateKey | None:
    """The key of a pointer or an old checkpoint; None for other names.

    The tag is without its prefix: ``backend.architecture``.
    """
    suffix = next((end for end in (OLD, POINTER, LEGACY) if name.endswith(end)), None)
    if suffix is None or tag.count(".") != 1:
        return None
    try:
        return StateKey.parse(f"{tag}.{name.removesuffix(suffix)}")
    except FormatError:
        return None


def listings(tag: str, assets: Iterable[Asset]) -> Iterator[Listing]:
    """The states of a release with this tag, each with its size and the time of its upload."""
    sizes: dict[str, int] = {}
    pointers: dict[StateKey, Asset] = {}
    for asset in assets:
        if (key := key_of(tag, asset.name)) is not None:
            pointers[key] = asset
        elif found := _DATA.search(asset.name):
            stem = asset.name[: found.start()].removesuffix(".")
            sizes[stem] = sizes.get(stem, 0) + asset.size
    for key, pointer in pointers.items():
        own = pointer.size if pointer.name.endswith(LEGACY) else 0
        yield Listing(key, pointer.created, sizes.get(stem_of(key), 0) + own)


def parse_pointer(data: bytes, key: StateKey, where: str) -> StateEntry:
    """The entry of a pointer; a ManifestError if it cannot be read, or is too large."""
    check_pointer_size(data, where)
    return parse_state_file(data, key, where)


def check_pointer_size(data: bytes, where: str) -> None:
    """Refuse, by a ManifestError, what is larger than a pointer can be."""
    if len(data) > MAX_POINTER:
        raise ManifestError(
            "this is larger than a pointer can be",
            path=where,
            expected=f"at most {MAX_POINTER} bytes",
        )


def is_data(stem: str, name: str) -> bool:
    """Whether an asset holds data of the state with this stem."""
    return name.startswith(f"{stem}.") and bool(_DATA.fullmatch(name, len(stem) + 1))


def named(entry: StateEntry) -> set[str]:
    """The names of the assets that a state's pointer refers to."""
    found = [*entry.mirrors, *(m for file in entry.files.values() for m in file.mirrors)]
    addresses: list[str] = []
    for mirror in found:
        if isinstance(mirror, Mirror):
            addresses += [*mirror.urls, *([mirror.state] if mirror.state else [])]
    return {unquote(address.rpartition("/")[2]) for address in addresses}


@dataclass(frozen=True)
class Plan:
    """The files to upload for a state: its data, and the pointer with its entry."""

    entry: StateEntry
    data: list[Upload]
    pointer: Upload


def make_plan(
    encoded: EncodedState,
    wanted: StateEntry,
    contents: Mapping[str, Content],
    folder: str,
    limit: int,
) -> Plan:
    """The files to upload for a state, each of at most `limit` bytes.

    `wanted` is its entry, without digest, size and mirrors; `folder` the address in front of the
    names of all assets of the release.

    Raises:
        LimitError: A tensor, or something else that cannot be split, is too large.
        IntegrityError: A file has changed since the entry was made.
    """
    stem = stem_of(wanted.key)
    head = f"{stem}.{encoded.digest}"
    shards = _shards(encoded, limit)
    names = [f"{head}.safetensors"]
    if len(shards) > 1:
        count = len(shards)
        names = [f"{head}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    data = [
        Upload(name, shard.size, partial(_plain_parts, encoded, shard))
        for name, shard in zip(names, shards, strict=True)
    ]
    state = f"{head}.mlstate"
    data.append(_whole(state, encoded.data, limit, "a state object"))
    files: dict[str, FileEntry] = {}
    for name, file in wanted.files.items():
        content = content_of(contents[name])
        if Digest.of(content) != file.digest:
            raise IntegrityError("a file changed while it was saved", path=name, remedy="try again")
        asset = f"{stem}.{file.digest}.file"
        files[name] = file
        if content:  # GitHub takes no empty file, and nobody needs one
            files[name] = replace(file, mirrors=(_mirror(_address(folder, asset)),))
            if all(asset != other.name for other in data):
                data.append(_whole(asset, content, limit, f"the file {name!r}"))
    urls = [_address(folder, name) for name in names]
    where: dict[str, Any] = {"url": urls[0]} if len(urls) == 1 else {"urls": urls}
    entry = replace(
        wanted,
        digest=encoded.digest,
        size=encoded.state.nbytes,
        mirrors=(_mirror({**where, "state": _address(folder, state)}),),
        files=files,
    )
    text = Manifest({entry.key: entry}).format().encode()
    return Plan(entry, data, pointer_of(entry.key, text, limit))


def pointer_of(key: StateKey, text: bytes, limit: int) -> Upload:
    """The pointer with this content, to be uploaded; a LimitError if it is too large."""
    return _whole(f"{stem_of(key)}{POINTER}", text, min(limit, MAX_POINTER), "a pointer")


def _address(folder: str, name: str) -> str:
    return f"{folder}/{quote(name)}"


def _mirror(value: object) -> Mirror:
    mirror = parse_mirror(value)
    assert isinstance(mirror, Mirror)
    return mirror


def _shards(encoded: EncodedState, limit: int) -> list[PlainFile]:
    """The plain files that together hold the tensors, none larger than the limit."""
    specs = encoded.state.specs
    whole = PlainFile.lay_out(specs)
    if whole.size <= limit:
        return [whole]
    # No shard's header is longer than that of all.
    room = max(limit - len(whole.header), 1)
    shards = [PlainFile.lay_out(shard) for shard in split(specs, room)]
    for shard in shards:
        if shard.size > limit:
            largest = max(shard.specs, key=lambda name: shard.specs[name].nbytes)
            error = _too_large("this tensor", shard.size, limit)
            error.tensor = largest
            error.remedy = "save into " + FOLDER_OR_BUCKET + ", or split the tensor"
            raise error
    return shards


def _plain_parts(encoded: EncodedState, layout: PlainFile) -> Iterator[Bytes]:
    """The bytes of a plain file; a tensor that must be copied is in memory while it is sent."""
    state = encoded.state
    yield layout.header
    for name in layout.specs:
        if name in state.inline:
            yield state.inline[name].data
            continue
        ref = state.refs[name]
        with encoded.sources[ref.digest].data() as data:
            yield from _checked(name, memoryview(data), tensor_object.header(ref.spec), ref.digest)


def _checked(name: str, data: memoryview, header: bytes, digest: Digest) -> Iterator[Bytes]:
    hasher = Hasher()
    hasher.update(header)
    left = len(data)
    for piece in _pieces(data):
        hasher.update(piece)
        left -= len(piece)
        # Before the last piece is sent: GitHub makes no asset of an incomplete upload.
        if not left and hasher.digest() != digest:
            raise IntegrityError(
                "a tensor changed while it was saved",
                tensor=name,
                expected=digest,
                found=hasher.digest(),
                remedy="do not train a model while it is saved",
            )
        yield piece


def _whole(name: str, content: bytes, limit: int, what: str) -> Upload:
    if len(content) > limit:
        raise _too_large(what, len(content), limit)
    return Upload(name, len(content), lambda: _pieces(memoryview(content)))


def _pieces(view: memoryview) -> Iterator[memoryview]:
    return (view[start : start + _PIECE] for start in range(0, len(view), _PIECE))


def _too_large(what: str, size: int, limit: int) -> LimitError:
    return LimitError(
        f"{what} is larger than GitHub takes as an asset; nothing was uploaded",
        expected=f"at most {limit} bytes",
        found=f"{size} bytes",
        remedy="save into " + FOLDER_OR_BUCKET,
    )
