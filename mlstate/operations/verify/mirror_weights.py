"""What a mirror of files of weights is asked: which tensors do they hold, how long are they?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from mlstate.errors import FetchError, FormatError, NoRangesError, concerning
from mlstate.fetch import Fetcher
from mlstate.fetch.addresses import addresses_of
from mlstate.fetch.archive import fetch_archive
from mlstate.fetch.attempts import Context
from mlstate.fetch.header import HeaderRoom, fetch_header
from mlstate.fetch.names import translate_all
from mlstate.format.state_object import StateObject
from mlstate.format.tensor_object import TensorSpec
from mlstate.locations import Mirror
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Cache
from mlstate.operations.verify.mirror_questions import FAULTS, Answer, reason_of
from mlstate.operations.verify.servers import Servers
from mlstate.pickled import select_tensors, spec_of

__all__ = ["ask_weights"]

_HEADER = 64 << 10
"""How much of a file of weights is asked for first, in bytes: nearly all headers are shorter."""


def ask_weights(
    entry: StateEntry,
    mirror: Mirror,
    state: StateObject | None,
    context: Context,
    *,
    servers: Servers,
    deep: Fetcher | None,
) -> Answer:
    """Ask for the files that have the tensors of a state.

    Which tensors they hold is looked at where it is cheap to know: in headers of safetensors. With
    ``deep``, the fetcher that says how patiently, every byte is read.
    """
    size = entry.size if state is None else state.nbytes
    room, specs = HeaderRoom(size), dict[str, TensorSpec]()
    files = nbytes = 0
    is_told = is_sized = True  # whether all files say which tensors they hold, and their sizes
    for part in mirror.parts or (mirror,):
        for address in _addresses(part, context, room, servers):
            look = partial(_look, address, part, room, context)
            found = servers.ask(address, look)
            files, nbytes = files + 1, nbytes + (found.size or 0)
            is_told &= found.specs is not None
            is_sized &= found.size is not None
            specs.update(found.specs or {})
    reason = _compare(state, size, specs) if is_told else None
    if state is not None and not is_told and is_sized and _has_plain_bytes(mirror):
        reason = _too_short(state, nbytes)
    if reason is None and deep is not None:
        return Answer(files, *_read_all(entry, mirror, state, deep))
    return Answer(files, nbytes, reason)


def _addresses(part: Mirror, context: Context, room: HeaderRoom, servers: Servers) -> list[str]:
    return servers.ask(part.urls[0], lambda: addresses_of(part, context, room.most))


def _read_all(
    entry: StateEntry, mirror: Mirror, state: StateObject | None, patient: Fetcher
) -> tuple[int, str | None]:
    """Fetch a state from this mirror alone into a folder that is removed; bytes, and why not.

    What a fetch takes for right is right: nothing else knows all kinds of files.
    """
    alone = replace(entry, mirrors=(replace(mirror, state=None),), objects=(), files={})
    with tempfile.TemporaryDirectory(prefix="mlstate-verify-") as folder:
        objects = FolderObjectStore(folder)
        if state is not None:
            objects.writer().put(entry.pinned_digest, [state.encode()])
        fetcher = Fetcher(
            Cache([objects]),
            patient.transports,
            retries=patient.retries,
            connections=patient.connections,
            durable=False,
            max_size=patient.max_size,
        )
        try:
            if entry.digest is not None:
                return fetcher.fetch(alone).fetched, None
            return fetcher.pin(alone).size or 0, None
        except (FetchError, *FAULTS) as error:
            return 0, reason_of(error)


@dataclass(frozen=True)
class _Looked:
    """A file of weights: its size, and the tensors it holds, if it says so cheaply."""

    size: int | None
    specs: Mapping[str, TensorSpec] | None


def _look(address: str, part: Mirror, room: HeaderRoom, context: Context) -> _Looked:
    """Look at a file; at its header, or the structure of a checkpoint, where it has ranges."""
    resource = context.open(address)
    with suppress(NoRangesError):
        if part.format == "safetensors":
            header = fetch_header(resource, _HEADER, room)
            specs = {n: header.tensors[old].spec for n, old in _ours(part, header.tensors)}
            return _Looked(header.size, specs)
        archive = fetch_archive(resource, _HEADER, room) if part.format == "torch" else None
        if archive is not None:
            with concerning(path=resource.address):
                root, length = archive[0].root, archive[1].size
                tensors = select_tensors(root, length, part.select, part.tensors_only)
                named = {n: spec_of(n, tensors[old]) for n, old in _ours(part, tensors)}
            return _Looked(length, named)
    size = resource.size()
    if size == 0:
        raise FormatError("the file is empty", path=resource.address)
    return _Looked(size, None)


def _ours(part: Mirror, names: Iterable[str]) -> Iterable[tuple[str, str]]:
    return translate_all(part, names).items()


def _has_plain_bytes(mirror: Mirror) -> bool:
    """Whether its files have the bytes of each tensor, one after the other."""
    return all(part.format == "safetensors" for part in mirror.parts or (mirror,))


def _compare(
    state: StateObject | None, size: int | None, found: Mapping[str, TensorSpec]
) -> str | None:
    """What is wrong with the tensors that files say they hold; None if nothing is."""
    if state is None:
        total = sum(spec.nbytes for spec in found.values())
        if size in (None, total):
            return None
        return f"it is another state; expected: {size} bytes of tensors; found: {total} bytes"
    having = {ref.digest for name, ref in state.refs.items() if name in found}
    lacking = sorted(name for name, ref in state.refs.items() if ref.digest not in having)
    if lacking:
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        return f"it lacks tensor {lacking[0]!r}{more}"
    for name, spec in sorted(state.specs.items()):
        if found.get(name, spec) != spec:
            return f"tensor {name!r} is another; expected: {spec}; found: {found[name]}"
    return None


def _too_short(state: StateObject, nbytes: int) -> str | None:
    """What is wrong with files that are too small for the tensors of a state."""
    least = sum({ref.digest: ref.spec.nbytes for ref in state.refs.values()}.values())
    if nbytes >= least:
        return None
    return f"it is cut short; expected: at least {least} bytes; found: {nbytes} bytes"
