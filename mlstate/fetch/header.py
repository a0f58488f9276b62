"""Headers of safetensors files on mirrors: which tensors a file holds, and where in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from mlstate.errors import FormatError, TransportError, concerning
from mlstate.fetch.reader import read_exactly
from mlstate.foreign import FRONT, check_not_foreign, check_same_container
from mlstate.format.tensor_object import MAX_HEADER, TensorSpec, parse_spec
from mlstate.locations import SAFETENSORS
from mlstate.texts import load_json
from mlstate.transport import Resource, Stream

__all__ = [
    "FileHeader",
    "FileTensor",
    "HeaderRoom",
    "begins_with",
    "fetch_header",
    "front_of",
    "parse_header",
    "read_header",
]

_LENGTH = 8
_METADATA = "__metadata__"
_WHAT = "the header of a safetensors file"
_USUAL = 8 << 20
"""How long the headers of a small state's files may be: 80,000 tensors, or much metadata."""


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file: what it is, and where its data begins.

    ``crc`` is the CRC-32 of its data, if the file has one and it is to be compared.
    """

    spec: TensorSpec
    start: int
    crc: int | None = None


@dataclass(frozen=True)
class FileHeader:
    """A safetensors file by its header: its tensors in the order of their data, and its sizes.

    ``data_start`` is where the first tensor's data begins, ``size`` the length of the whole file;
    ``metadata`` is what its ``__metadata__`` says, unchecked; None if it has none.
    """

    resource: Resource
    tensors: Mapping[str, FileTensor]
    data_start: int
    size: int
    metadata: object = None

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor's type and shape."""
        return {name: tensor.spec for name, tensor in self.tensors.items()}


class HeaderRoom:
    """What the headers of all files of one mirror may be together: they are not trusted.

    A parsed header takes up to 26 times its length. One of the longest that safetensors reads
    would take 2.6 GB, whatever the state is: so how long they may be depends on the state.

    Args:
        size: The bytes of the state's tensor data, or None if nobody says.

    Attributes:
        most: How long they may be, in bytes.
    """

    def __init__(self, size: int | None = None) -> None:
        self.most = MAX_HEADER if size is None else min(MAX_HEADER, _USUAL + size)
        self._left = self.most
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def take(self, length: int, resource: Resource) -> None:
        """Have room for so many bytes more.

        Raises:
            FormatError: There is no room for so long a header.
        """
        with self._lock:
            if length > self._left:
                raise FormatError(
                    "the headers of these files are too long for this state",
                    path=resource.address,
                    expected=f"at most {self.most} bytes in all",
                    found=f"one of {length} bytes, where {self._left} are left",
                )
            self._left -= length

    @contextmanager
    def header(self, length: int, resource: Resource) -> Iterator[None]:
        """Have room for one more header, which is given back after an error; see `take`."""
        self.take(length, resource)
        try:
            yield
        except BaseException as error:
            with self._lock:
                self._left += length
            if isinstance(error, MemoryError):
                raise FormatError(
                    "there is not enough memory to read the header of a safetensors file",
                    path=resource.address,
                    found=f"a header of {length} bytes",
                ) from None
            raise

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Within this, no other file of the mirror has its structure made in memory."""
        with self._turn:
            yield

    def parse(self, text: bytes, resource: Resource, total: int | None) -> FileHeader:
        """Parse a header, one at a time; see `parse_header`."""
        with self.one_at_a_time():
            return parse_header(text, resource, total)


def fetch_header(
    resource: Resource, expected_header: int, room: HeaderRoom | None = None
) -> FileHeader:
    """Read a file's header by ranges; of so many bytes as it may well be long, the first.

    Args:
        resource: The file.
        expected_header: How many bytes its header may well have.
        room: What it may have at most; that of safetensors by default.

    Raises:
        NoRangesError: The server gives the whole file only.
        FormatError: It is no safetensors file, or its header is too long.
    """
    room = HeaderRoom() if room is None else room
    with ExitStack() as stack:
        with front_of(resource, _LENGTH + expected_header) as stream:
            length = _header_length(resource, stream)
            stack.enter_context(room.header(length, resource))
            have = min(length, expected_header)
            text = read_exactly(stream, have)
            total = stream.total
        if have < length:
            with resource.read(_LENGTH + have, _LENGTH + length) as stream:
                text += read_exactly(stream, length - have)
        return room.parse(text, resource, total)


@contextmanager
def front_of(resource: Resource, stop: int) -> Iterator[Stream]:
    """The first bytes of a file, or all of one that is shorter.

    Hardly any is, so its size is asked for only when the range turns out not to be there.
    """
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(resource.read(0, stop))
        except TransportError as error:
            asked = error.status in (None, 416) and not error.transient
            size = resource.size() if asked else None
            if size is None or size >= stop:
                raise
            if size == 0:
                check_not_foreign(b"", resource.address)
            stream = stack.enter_context(resource.read(0, size))
        yield stream


def read_header(resource: Resource, stream: Stream, room: HeaderRoom | None = None) -> FileHeader:
    """Read the header from the front of a stream of the whole file; see `fetch_header`."""
    room = HeaderRoom() if room is None else room
    length = _header_length(resource, stream)
    with room.header(length, resource):
        return room.parse(read_exactly(stream, length), resource, stream.total)


def _header_length(resource: Resource, stream: Stream) -> int:
    head, total = read_exactly(stream, _LENGTH), stream.total
    length = int.from_bytes(head, "little")
    most = MAX_HEADER if total is None else min(MAX_HEADER, total - _LENGTH)
    if len(head) < _LENGTH or not 2 <= length <= most:
        cut = head.endswith(b"\0\0") and most < length <= MAX_HEADER
        if not cut:
            front = head + read_exactly(stream, FRONT - len(head))
            check_same_container(front, SAFETENSORS, resource.address)
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
        metadata = entries.pop(_METADATA, None)
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
    return FileHeader(resource, tensors, data_start, size, metadata)


def _entries(text: bytes) -> dict[str, Any]:
    try:
        if not json.detect_encoding(text).startswith("utf-8"):
            raise ValueError("it is not UTF-8")
        text.decode()  # for JSON in bytes may have lone surrogates
        return load_json(text, _WHAT, most=MAX_HEADER, pairs=_once)
    except ValueError as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{_WHAT} is not valid JSON", found=error) from None


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
