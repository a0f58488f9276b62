"""Headers of safetensors files on mirrors: which tensors a file holds, and where in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from mlstate.errors import FormatError, TransportError, concerning
from mlstate.fetch.reader import read_exactly
from mlstate.format.tensor_object import MAX_HEADER, TensorSpec, parse_spec
from mlstate.transport import Resource, Stream

__all__ = ["FileHeader", "FileTensor", "begins_with", "fetch_header", "parse_header", "read_header"]

_LENGTH = 8
_METADATA = "__metadata__"


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file: what it is, and where its data begins."""

    spec: TensorSpec
    start: int


@dataclass(frozen=True)
class FileHeader:
    """A safetensors file by its header: its tensors in the order of their data, and its sizes.

    ``data_start`` is where the first tensor's data begins, ``size`` the length of the whole file.
    """

    resource: Resource
    tensors: Mapping[str, FileTensor]
    data_start: int
    size: int

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor's type and shape."""
        return {name: tensor.spec for name, tensor in self.tensors.items()}


def fetch_header(resource: Resource, expected_header: int) -> FileHeader:
    """Read a file's header by ranges; of so many bytes as it may well be long, the first.

    Raises:
        NoRangesError: The server gives the whole file only.
        FormatError: It is no safetensors file.
    """
    with _front(resource, _LENGTH + expected_header) as stream:
        head = read_exactly(stream, _LENGTH)
        length = _header_length(head, resource, stream.total)
        have = min(length, expected_header)
        text = read_exactly(stream, have)
        total = stream.total
    if have < length:
        with resource.read(_LENGTH + have, _LENGTH + length) as stream:
            text += read_exactly(stream, length - have)
    return parse_header(text, resource, total)


@contextmanager
def _front(resource: Resource, stop: int) -> Iterator[Stream]:
    """The first bytes of a file, or all of one that is shorter.

    Hardly any is, so its size is asked for only when the range turns out not to be there.
    """
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(resource.read(0, stop))
        except TransportError as error:
            size = resource.size() if error.status is None and not error.transient else None
            if size is None or size >= stop:
                raise
            stream = stack.enter_context(resource.read(0, size))
        yield stream


def read_header(resource: Resource, stream: Stream) -> FileHeader:
    """Read the header from the front of a stream of the whole file; see `fetch_header`."""
    head = read_exactly(stream, _LENGTH)
    length = _header_length(head, resource, stream.total)
    return parse_header(read_exactly(stream, length), resource, stream.total)


def _header_length(head: bytes, resource: Resource, total: int | None) -> int:
    length = int.from_bytes(head, "little")
    most = MAX_HEADER if total is None else min(MAX_HEADER, total - _LENGTH)
    if len(head) < _LENGTH or not 2 <= length <= most:
        cut = head.endswith(b"\0\0") and most < length <= MAX_HEADER
        raise FormatError(
            "this is no file of weights, or it is cut short",
            path=resource.address,
            expected="a safetensors file, or a torch checkpoint that is named as one",
            found=f"{total} bytes, of which a header has {length}" if cut else begins_with(head),
        )
    return length


def begins_with(front: bytes) -> str:
    """A description of a file that is no file of weights, by its first bytes, for an error."""
    if len(front) < _LENGTH:
        return f"{len(front)} bytes" if front else "an empty file"
    text = front.decode("ascii", "replace")
    plain = text.isascii() and text.isprintable()
    return f"it begins with {text!r}" if plain else f"it begins with {front!r}"


def parse_header(text: bytes, resource: Resource, total: int | None) -> FileHeader:
    """Read a header: every tensor's type, shape and place, as the format of the file demands.

    Raises:
        FormatError: It is not valid, has gaps or overlaps, or an element type that cannot be kept.
    """
    with concerning(path=resource.address):
        entries = _entries(text)
        entries.pop(_METADATA, None)
        data_start = _LENGTH + len(text)
        places = sorted((_place(name, entry), name) for name, entry in entries.items())
        position = 0
        tensors = {}
        for (start, stop), name in places:
            spec = parse_spec(name, entries[name])
            if start != position or stop - start != spec.nbytes:
                raise FormatError(
                    "a tensor's place in a safetensors file is not right",
                    tensor=name,
                    expected=f"bytes {position} to {position + spec.nbytes}",
                    found=f"bytes {start} to {stop}",
                )
            position = stop
            tensors[name] = FileTensor(spec, data_start + start)
        size = data_start + position
        if total is not None and total != size:
            raise FormatError(
                "a safetensors file has another length than its header says",
                expected=f"{size} bytes",
                found=f"{total} bytes",
            )
    return FileHeader(resource, tensors, data_start, size)


def _entries(text: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(text.decode(), object_pairs_hook=_once)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError("the header of a safetensors file is not JSON", found=error) from None
    if not isinstance(entries, dict):
        raise FormatError("the header of a safetensors file is not a JSON object")
    return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without a name that is there twice: which one counts, readers do not agree."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise FormatError("the header of a safetensors file has a name twice")
    return entries


def _place(name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or any(type(offset) is not int for offset in offsets)
    ):
        raise FormatError("a tensor's entry is malformed", tensor=name, found=entry)
    return (offsets[0], offsets[1])
