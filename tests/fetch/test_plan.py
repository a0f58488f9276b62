"""Ranges are joined into requests, and headers say where tensors are."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.torch import save, save_file

from mlstate.errors import FormatError, TransportError
from mlstate.fetch.header import FileHeader, fetch_header, parse_header, read_header
from mlstate.fetch.plan import MOST, WASTE, Piece, Segments, join
from mlstate.fetch.progress import Meter
from mlstate.fetch.reader import LONGEST, Reader
from mlstate.format.tensor_object import BITS, TensorSpec
from mlstate.objects import FolderObjectStore
from mlstate.objects.partial import SEGMENT
from mlstate.objects.receiving import Receiver
from mlstate.tensors.memory import TORCH_DTYPES
from mlstate.transport import Retries, Transports
from mlstate.transport.local import LocalResource

HERE = LocalResource(Path("model.safetensors"))


# Ranges into runs


GAPS = st.integers(0, 40)


@st.composite
def pieces(draw, gaps=GAPS, most=12):
    """Pieces in any order; some empty, some touching."""
    position, made = 0, []
    for number, (gap, size) in enumerate(
        draw(st.lists(st.tuples(gaps, st.integers(0, 60)), max_size=most))
    ):
        position += gap
        made.append(Piece(position, position + size, number))
        position += size
    return draw(st.permutations(made))


def limits():
    wastes = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0])  # exact as floats
    return st.fixed_dictionaries(
        {"waste": wastes, "spent": st.integers(0, 50), "most": st.integers(1, 200)}
    )


def gaps_within(run):
    return sum(after.start - before.stop for before, after in pairwise(run))


@given(pieces(), limits())
def test_every_piece_is_in_exactly_one_run_and_all_are_in_order(given_pieces, options):
    runs = join(given_pieces, **options)
    flat = [piece for run in runs for piece in run]
    assert flat == sorted(given_pieces, key=lambda piece: (piece.start, piece.stop))
    assert all(runs)


@given(pieces(), limits())
def test_no_more_is_read_for_nothing_than_is_allowed(given_pieces, options):
    wasted = sum(map(gaps_within, join(given_pieces, **options)))
    wanted = sum(piece.stop - piece.start for piece in given_pieces)
    assert wasted <= max(0, options["waste"] * wanted - options["spent"])


@given(pieces(), limits())
def test_no_run_is_longer_than_allowed_but_for_a_single_piece(given_pieces, options):
    for run in join(given_pieces, **options):
        assert len(run) == 1 or run[-1].stop - run[0].start <= options["most"]


@given(pieces(gaps=st.just(0)), limits())
def test_what_touches_comes_in_as_few_runs_as_its_length_allows(given_pieces, options):
    fewest, length = 0, None
    for piece in sorted(given_pieces, key=lambda piece: (piece.start, piece.stop)):
        size = piece.stop - piece.start
        length = None if length is None else length + size
        if length is None or length > options["most"]:
            fewest, length = fewest + 1, size
    assert len(join(given_pieces, **options)) == fewest


@given(pieces(most=7), limits())
def test_no_choice_of_gaps_makes_fewer_runs(given_pieces, options):
    options["most"] = 1 << 60
    ordered = sorted(given_pieces, key=lambda piece: (piece.start, piece.stop))
    gaps = [after.start - before.stop for before, after in pairwise(ordered)]
    wanted = sum(piece.stop - piece.start for piece in ordered)
    budget = max(0, options["waste"] * wanted - options["spent"])
    bridged = max(
        count
        for count in range(len(gaps) + 1)
        if any(sum(chosen) <= budget for chosen in combinations(gaps, count))
    )
    assert len(join(given_pieces, **options)) == len(ordered) - bridged


def test_the_usual_limits_cost_at_most_two_hundredths():
    size = 1_000_000
    one, two = Piece(0, size, "a"), Piece(size + 40_000, 2 * size + 40_000, "b")
    assert join([two, one]) == [(one, two)]
    assert join([one, two], spent=1) == [(one,), (two,)]
    assert WASTE == 0.02
    large = [Piece(n * MOST, (n + 1) * MOST, n) for n in range(3)]
    assert join(large) == [(piece,) for piece in large]
    assert join([]) == []


# Headers


def entry(dtype="U8", shape=(1,), offsets=(0, 1), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def parsed(header: object, total: int | None = None) -> FileHeader:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return parse_header(text, HERE, total)


def check_tiled(file: FileHeader) -> None:
    """The data of a file is its tensors, one after the other, and nothing else."""
    position = file.data_start
    for tensor in file.tensors.values():
        assert tensor.start == position
        position += tensor.spec.nbytes
    assert position == file.size


def parsed_or_refused(text: bytes) -> None:
    with suppress(FormatError):  # anything else is an error
        check_tiled(parsed(text))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_refused(text):
    parsed_or_refused(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
SMALL = st.integers(-2, 9) | st.just(2**63) | JSON
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*BITS, "F6", "u8", ""]) | JSON,
        "shape": st.lists(SMALL, max_size=4) | JSON,
        "data_offsets": st.lists(SMALL, min_size=1, max_size=3) | JSON,
        "more": JSON,
    },
)


@given(JSON | st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRIES | JSON))
def test_any_json_is_a_header_or_refused(value):
    parsed_or_refused(json.dumps(value).encode())


@given(st.data())
def test_a_header_with_one_byte_changed_is_a_header_or_refused(data):
    text = bytearray(json.dumps({"a": entry(), "b": entry("F32", (2,), (1, 9))}).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255))
    parsed_or_refused(bytes(text))


@st.composite
def tensors(draw):
    made = {}
    names = draw(st.lists(st.text("abc.é日", min_size=1, max_size=9), unique=True, max_size=6))
    for name in names:
        dtype = TORCH_DTYPES[draw(st.sampled_from(sorted(TORCH_DTYPES)))]
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        if dtype == getattr(torch, "float4_e2m1fn_x2", None):
            shape = [*shape, 2]
        made[name] = torch.empty(shape, dtype=dtype)
    return made


@given(tensors(), st.none() | st.dictionaries(st.text("a", min_size=1), st.text()))
def test_a_header_that_safetensors_wrote_is_read_right(state, metadata):
    data = save(state, metadata or None)  # of nothing and {} safetensors makes what it refuses
    length = int.from_bytes(data[:8], "little")
    file = parsed(data[8 : 8 + length], len(data))
    check_tiled(file)
    assert (file.data_start, file.size) == (8 + length, len(data))
    expected = dict(deserialize(data))
    assert file.tensors.keys() == expected.keys() == state.keys()
    for name, theirs in expected.items():
        tensor = file.tensors[name]
        assert tensor.spec == TensorSpec(theirs["dtype"], tuple(theirs["shape"]))
        assert data[tensor.start : tensor.start + tensor.spec.nbytes] == theirs["data"]


REFUSED = {
    "gap": {"a": entry(), "b": entry(offsets=(2, 3))},
    "gap in front": {"a": entry(offsets=(1, 2))},
    "overlap": {"a": entry("U8", (4,), (0, 4)), "b": entry("U8", (4,), (3, 7))},
    "same place": {"a": entry(), "b": entry()},
    "backwards": {"a": entry(offsets=(1, 0))},
    "negative": {"a": entry(offsets=(-1, 0))},
    "too long for its shape": {"a": entry(offsets=(0, 2))},
    "too short for its shape": {"a": entry("F32", (2,), (0, 4))},
    "true for 1": {"a": entry(offsets=(False, True))},
    "1.0 for 1": {"a": entry(offsets=(0.0, 1.0))},
    "one offset": {"a": entry(offsets=(0,))},
    "three offsets": {"a": entry(offsets=(0, 1, 2))},
    "no offsets": {"a": {"dtype": "U8", "shape": [1]}},
    "no shape": {"a": {"dtype": "U8", "data_offsets": [0, 1]}},
    "no dtype": {"a": {"shape": [1], "data_offsets": [0, 1]}},
    "unknown dtype": {"a": entry("F6_E2M3", (4,), (0, 3))},
    "dtype of another case": {"a": entry("u8")},
    "dtype that is no text": {"a": entry(["U8"])},
    "negative dimension": {"a": entry("U8", (-1, -1), (0, 1))},
    "half a byte": {"a": entry("F4", (1,), (0, 1))},
    "overflow": {"a": entry("U8", (2**62, 2**62, 0), (0, 0))},
    "list": [entry()],
    "entry that is none": {"a": None},
}


@pytest.mark.parametrize("header", REFUSED.values(), ids=REFUSED)
def test_a_header_that_is_not_right_is_refused(header):
    with pytest.raises(FormatError) as caught:
        parsed(header)
    assert caught.value.path == HERE.address
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2),
        b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000,
        json.dumps({"a": entry()}).encode("utf-16"),
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,' + b"9" * 5000 + b"]}}",
        b"",
        b"{}{}",
    ],
    ids=["duplicate", "field", "deep", "deeper", "utf-16", "digits", "empty", "more"],
)
def test_a_header_that_is_not_json_of_one_meaning_is_refused(text):
    with pytest.raises(FormatError):
        parsed(text)


@pytest.mark.parametrize("total", [113, 115, 8, 0, 2**60])
def test_a_file_of_another_length_than_its_header_says_is_refused(total):
    header = json.dumps({"a": entry()}, separators=(",", ":")).encode()
    header += b" " * (105 - len(header))
    assert parsed(header, 114).size == 114
    with pytest.raises(FormatError, match="another length"):
        parsed(header, total)


# Files


@pytest.fixture
def open_file(tmp_path):
    with Transports(offline=True) as transports:

        def opened(data: bytes):
            (tmp_path / "file").write_bytes(data)
            return transports.open(str(tmp_path / "file"))

        yield opened


@pytest.mark.parametrize("guess", [0, 1, 50, 200, 10_000])
def test_a_file_is_read_whatever_length_of_its_header_was_guessed(open_file, guess):
    state = {"a": torch.arange(300.0), "b": torch.tensor(True), "é" * 20: torch.empty(0)}
    data = save(state)
    resource = open_file(data)
    file = fetch_header(resource, guess)
    with resource.read() as stream:
        assert read_header(resource, stream) == file
    assert {name: tensor.spec.nbytes for name, tensor in file.tensors.items()} == {
        "a": 1200,
        "b": 1,
        "é" * 20: 0,
    }
    assert file.size == len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        b"\x00" * 8,
        b"\x01" + b"\x00" * 8,
        (2**60).to_bytes(8, "little") + b"{}",
        (100_000_001).to_bytes(8, "little") + b"{}",
        (3).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}" + b"x",
        save({"a": torch.ones(5)})[:-1],
        save({"a": torch.ones(5)}) + b"x",
        b"<!DOCTYPE html><html><body>not here</body></html>",
        b"PK\x03\x04" + b"\x00" * 100,
    ],
)
def test_a_file_that_is_none_of_safetensors_is_refused_and_named(open_file, data):
    resource = open_file(data)
    for guess in (0, 1 << 16):
        with pytest.raises(FormatError) as caught:
            fetch_header(resource, guess)
        assert caught.value.path == resource.address
    with pytest.raises(FormatError), resource.read() as stream:
        read_header(resource, stream)


@pytest.mark.parametrize(
    ("size", "guess", "spans"),
    [
        (100_000, 10_000, ["0-10007"]),
        (100_000, 64, ["0-71", "72-{last}"]),
        (10, 10_000, ["0-10007", "0-0", "0-{end}"]),
    ],
)
def test_a_header_costs_one_request_where_its_length_was_guessed(
    recording_server, size, guess, spans
):
    data = save({"a" * 99: torch.zeros(size, dtype=torch.uint8)})
    recording_server.files["m"] = data
    with Transports() as transports:
        file = fetch_header(transports.open(recording_server.url + "/m"), guess)
    named = {"last": file.data_start - 1, "end": len(data) - 1}
    asked = [record.range for record in recording_server.requests]
    assert asked == [f"bytes={span.format(**named)}" for span in spans]


def test_a_server_that_gives_another_range_is_asked_for_the_size_and_no_more(start_liar, tmp_path):
    save_file({"a": torch.zeros(100_000)}, tmp_path / "m")
    liar = start_liar((tmp_path / "m").read_bytes(), "range-shifted")
    with Transports() as transports, pytest.raises(TransportError, match="another range"):
        fetch_header(transports.open(liar.url()), 1000)
    assert len(liar.requests) == 2


def pieces_of(receiver, size, span):
    segments = Segments(receiver)
    pieces = list(segments.pieces("a" * 64, size, lambda partial: None, span=span))
    segments.forget()
    segments.close()
    return [(piece.start, piece.stop) for piece in pieces]


def test_a_request_has_as_much_of_a_large_object_as_its_span_says(tmp_path):
    receiver = Receiver(FolderObjectStore(tmp_path / "store"))
    size = 10 * SEGMENT + 5
    assert pieces_of(receiver, size, lambda: 0) == pieces_of(receiver, size, lambda: SEGMENT)
    assert len(pieces_of(receiver, size, lambda: SEGMENT)) == 11
    wide = pieces_of(receiver, size, lambda: 4 * SEGMENT)
    assert wide == [(0, 4 * SEGMENT), (4 * SEGMENT, 8 * SEGMENT), (8 * SEGMENT, size)]
    spans = iter([SEGMENT, 3 * SEGMENT, 100 * SEGMENT])
    grown = pieces_of(receiver, size, lambda: next(spans))
    assert grown == [(0, SEGMENT), (SEGMENT, 4 * SEGMENT), (4 * SEGMENT, size)]


def test_a_request_passes_over_nothing_that_is_here(tmp_path):
    receiver = Receiver(FolderObjectStore(tmp_path / "store"))
    partial = receiver.partial("a" * 64, 5 * SEGMENT)
    partial.mark(2 * SEGMENT, 3 * SEGMENT)
    partial.close()
    found = pieces_of(receiver, 5 * SEGMENT, lambda: 64 << 20)
    assert found == [(0, 2 * SEGMENT), (3 * SEGMENT, 5 * SEGMENT)]


@pytest.mark.parametrize(
    ("total", "done", "seconds", "expected"),
    [
        (None, 0, 1.0, SEGMENT),  # nobody knows how much is left
        (100 << 30, 1 << 30, 1.0, LONGEST),  # a fast network, and enough to do
        (100 << 30, 1 << 30, 100.0, SEGMENT),  # a slow one
        (100 << 30, 1 << 30, 8.0, 1 << 25),  # in between: what comes in a quarter of a second
        (2 << 30, 1 << 30, 1.0, SEGMENT),  # the end: every stream has something left
    ],
)
def test_a_request_asks_for_more_where_the_network_is_fast(
    monkeypatch, total, done, seconds, expected
):
    now = [100.0]
    monkeypatch.setattr("mlstate.fetch.progress.time.monotonic", lambda: now[0])
    meter = Meter("test")
    meter.expect(total)
    meter.add(0)
    now[0] += seconds
    meter.add(done)
    assert Reader(Retries(), meter, 16).span() == expected
