"""State objects: one mapping, one encoding. No torch here."""

from __future__ import annotations

import json
import tracemalloc
from math import prod

import pytest
import safetensors
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.format.state_object import (
    BYTES_NAME,
    INLINE_LIMIT,
    MAX_HEADER,
    InlineTensor,
    StateObject,
    TensorRef,
    check_name,
)
from mlstate.format.tensor_object import BITS, TensorSpec

DIGEST = Digest.of(b"a tensor object")
U8 = TensorSpec("U8", (1,))

# ------------------------------------------------------------------------------- any state object

PECULIAR = ["", "\0", '"', "\\", "\n\t\x7f", "/", "é", "e\u0301", "\u2028", "\ufeff", "\uffff"]
PECULIAR += ["\U00010000", "\U0001f600", "\ue000", "\U0010ffff", "__metadata__x", "mlstate", "A.b"]
PECULIAR += ["mlstate2", "Mlstate.x", " ", "a.weight", "a.weight ", "layers.10", "layers.2"]


def allowed(name: str) -> bool:
    return name != "__metadata__" and not name.startswith("mlstate.")


def names():
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    return st.sampled_from(PECULIAR) | text.filter(allowed)


@st.composite
def inline_tensors(draw):
    dtype = draw(st.sampled_from(sorted(BITS)))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    if prod(shape) * BITS[dtype] % 8:
        shape.append(2)
    spec = TensorSpec(dtype, tuple(shape))
    data = draw(st.binary(min_size=spec.nbytes, max_size=spec.nbytes))
    if dtype == "BOOL":
        data = bytes(byte & 1 for byte in data)
    return InlineTensor(spec, data)


@st.composite
def refs(draw):
    dtype = draw(st.sampled_from(sorted(BITS)))
    elements = INLINE_LIMIT * 8 // BITS[dtype]
    shape = [*draw(st.lists(st.integers(1, 3), max_size=3)), elements]
    spec = TensorSpec(dtype, tuple(draw(st.permutations(shape))))
    return TensorRef(spec, Digest(draw(st.binary(min_size=32, max_size=32)).hex()))


@st.composite
def states(draw):
    tensors = draw(st.dictionaries(names(), inline_tensors() | refs(), max_size=6))
    return StateObject(
        {name: entry for name, entry in tensors.items() if isinstance(entry, InlineTensor)},
        {name: entry for name, entry in tensors.items() if isinstance(entry, TensorRef)},
    )


@given(states())
@settings(deadline=None)
def test_parse_is_the_inverse_of_encode(state):
    data = state.encode()
    parsed = StateObject.parse(data)
    assert parsed == state
    assert parsed.encode() == data
    assert {name: bytes(entry.data) for name, entry in parsed.inline.items()} == {
        name: entry.data for name, entry in state.inline.items()
    }


@given(states(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_mapping_does_not_count(state, random):
    def shuffled(mapping):
        items = list(mapping.items())
        random.shuffle(items)
        return dict(items)

    assert StateObject(shuffled(state.inline), shuffled(state.refs)).encode() == state.encode()


@given(states(), states())
@settings(deadline=None)
def test_other_states_have_other_bytes(a, b):
    assert (a == b) == (a.encode() == b.encode())


@given(states(), st.data())
@settings(deadline=None, max_examples=300)
def test_a_flipped_bit_never_means_the_same(state, data):
    good = state.encode()
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    try:
        parsed = StateObject.parse(bytes(bad))
    except FormatError:
        return
    assert parsed != state
    assert parsed.encode() == bad


SCRAPS = [b" ", b",", b"0", b"-", b"1", b".0", b"e0", b'"', b"\\", b"{}", b"[]", b"null", b"true"]
SCRAPS += [b"\t", b"\n", b"\0", b"\\u0061", b"\xc3\xa9", b"NaN", b'"a":1,', b"}", b"]", bytes(64)]


@given(states(), st.data())
@settings(deadline=None, max_examples=300)
def test_what_parses_is_what_encode_would_have_written(state, data):
    good = state.encode()
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 9)))
    scrap = data.draw(st.sampled_from(SCRAPS) | st.binary(max_size=9))
    bad = good[:start] + scrap + good[end:]
    length = int.from_bytes(good[:8], "little") + len(scrap) - (end - start)
    if data.draw(st.booleans()) and start >= 8 and length >= 0:
        bad = length.to_bytes(8, "little") + bad[8:]
    assume(bad != good)
    try:
        parsed = StateObject.parse(bad)
    except FormatError:
        return
    assert parsed.encode() == bad
    assert parsed != state


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_garbage_is_a_format_error(data):
    with pytest.raises(FormatError):
        StateObject.parse(data)


# ---------------------------------------------------------------------------------- the layout


@given(states())
@settings(deadline=None)
def test_the_header_ends_at_a_multiple_of_64_with_the_least_padding(state):
    data = state.encode()
    start = 8 + int.from_bytes(data[:8], "little")
    header = data[8:start]
    assert start % 64 == 0
    assert len(header) - len(header.rstrip(b" ")) < 64
    assert header.rstrip(b" ").endswith(b"}")
    assert len(data) - start == sum(entry.spec.nbytes for entry in state.inline.values())


@given(states())
@settings(deadline=None)
def test_the_header_is_canonical_json(state):
    data = state.encode()
    text = data[8 : 8 + int.from_bytes(data[:8], "little")].rstrip(b" ").decode("ascii")
    value = json.loads(text)
    again = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert text == again
    metadata = value["__metadata__"]
    assert set(metadata) == {"mlstate", "tensors"}
    assert metadata["mlstate"] == "1"
    assert json.loads(metadata["tensors"]) == {
        name: {"blake3": ref.digest, "dtype": ref.spec.dtype, "shape": list(ref.spec.shape)}
        for name, ref in state.refs.items()
    }


@given(states())
@settings(deadline=None)
def test_inline_data_lie_widest_first_then_by_name(state):
    data = state.encode()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    del entries["__metadata__"]
    assert entries.keys() == state.inline.keys()
    position = 0
    for name in sorted(entries, key=lambda name: (-BITS[entries[name]["dtype"]], name)):
        entry = entries[name]
        assert entry["data_offsets"] == [position, position + state.inline[name].spec.nbytes]
        position = entry["data_offsets"][1]
        assert data[8 + length :][slice(*entry["data_offsets"])] == state.inline[name].data
        width = max(1, BITS[entry["dtype"]] // 8)
        assert (8 + length + entry["data_offsets"][0]) % width == 0


def test_names_go_by_code_point_not_by_utf_16():
    low, high = "\uffee", "\U0001f600"  # in UTF-16 the second would come first
    state = StateObject({high: InlineTensor(U8, b"h"), low: InlineTensor(U8, b"l")}, {})
    data = state.encode()
    assert data.endswith(b"lh")
    assert data.index(rb"\uffee") < data.index(rb"\ud83d\ude00")


# ----------------------------------------------------------------------- a valid safetensors file


@given(states())
@example(StateObject({}, {}))
@settings(deadline=None)
def test_safetensors_reads_the_inline_tensors(state):
    found = dict(safetensors.deserialize(state.encode()))
    assert found.keys() == state.inline.keys()
    for name, entry in state.inline.items():
        assert found[name]["dtype"] == entry.spec.dtype
        assert tuple(found[name]["shape"]) == entry.spec.shape
        assert bytes(found[name]["data"]) == entry.data


def test_safetensors_reads_the_metadata(tmp_path):
    spec = TensorSpec("F32", (64, 64))
    inline = {"b": InlineTensor(TensorSpec("I16", (2,)), b"\1\0\2\0")}
    path = tmp_path / "state.safetensors"
    path.write_bytes(StateObject(inline, {"w": TensorRef(spec, DIGEST)}).encode())
    with safetensors.safe_open(path, framework="np") as file:
        assert list(file.keys()) == ["b"]
        assert file.get_tensor("b").tolist() == [1, 2]
        assert file.metadata() == {
            "mlstate": "1",
            "tensors": f'{{"w":{{"blake3":"{DIGEST}","dtype":"F32","shape":[64,64]}}}}',
        }


# ------------------------------------------------------------------------------- every deviation

A = b'"a":{"data_offsets":[8,12],"dtype":"F32","shape":[1]}'
B = b'"b":{"data_offsets":[0,8],"dtype":"F64","shape":[1]}'
E = b'"e":{"data_offsets":[12,12],"dtype":"U8","shape":[0]}'
W = rb"\"w\":{\"blake3\":\"%s\",\"dtype\":\"F32\",\"shape\":[64,64]}" % DIGEST.encode()
V = W.replace(rb"\"w\"", rb"\"v\"")
META = b'"__metadata__":{"mlstate":"1","tensors":"{' + V + b"," + W + b'}"}'
GOOD = b"{" + b",".join([META, A, B, E]) + b"}"
DATA = b"bbbbbbbbaaaa"


def pack(text: bytes, data: bytes = DATA, *, padding: bytes | None = None) -> bytes:
    if padding is None:
        padding = b" " * (-(8 + len(text)) % 64)
    return (len(text) + len(padding)).to_bytes(8, "little") + text + padding + data


def refused(data: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        StateObject.parse(data)
    assert str(caught.value)
    return caught.value


def test_the_example_is_valid():
    spec = TensorSpec("F32", (64, 64))
    state = StateObject(
        {
            "a": InlineTensor(TensorSpec("F32", (1,)), b"aaaa"),
            "b": InlineTensor(TensorSpec("F64", (1,)), b"bbbbbbbb"),
            "e": InlineTensor(TensorSpec("U8", (0,)), b""),
        },
        {"v": TensorRef(spec, DIGEST), "w": TensorRef(spec, DIGEST)},
    )
    assert pack(GOOD) == state.encode()
    assert StateObject.parse(pack(GOOD)) == state


UP = DIGEST.upper().encode()
LOW = DIGEST.encode()
DEVIATIONS = {
    "duplicate key": (B, B + b"," + B),
    "duplicate key, the first one wrong": (B, b'"b":1,' + B),
    "duplicate field": (b'"F64"', b'"F64","dtype":"F64"'),
    "duplicate metadata": (META, META + b"," + META),
    "other key order": (A + b"," + B, B + b"," + A),
    "metadata last": (META + b"," + A + b"," + B + b"," + E, A + b"," + B + b"," + E + b"," + META),
    "other field order": (b'"dtype":"F64","shape":[1]', b'"shape":[1],"dtype":"F64"'),
    "space after comma": (b',"b"', b', "b"'),
    "space after colon": (b'"F64"', b' "F64"'),
    "newline": (b',"b"', b',\n"b"'),
    "space in a list": (b"[0,8]", b"[0, 8]"),
    "leading space": (b'{"__metadata__"', b' {"__metadata__"'),
    "byte order mark": (b'{"__metadata__"', b'\xef\xbb\xbf{"__metadata__"'),
    "needless escape": (b'"b":', rb'"\u0062":'),
    "needless escape in metadata": (b'"mlstate"', rb'"\u006dlstate"'),
    "escaped slash": (b'"b":', rb'"b\/":'),
    "upper-case escape": (b'"b":', rb'"b\u00E9":'),
    "name as UTF-8": (b'"b":', '"bé":'.encode()),
    "name not UTF-8": (b'"b":', b'"b\xff":'),
    "control character": (b'"b":', b'"b\x01":'),
    "lone high surrogate": (b'"b":', rb'"b\ud800":'),
    "lone low surrogate": (b'"b":', rb'"b\udc00":'),
    "reversed surrogates": (b'"b":', rb'"b\udc00\ud800":'),
    "lone surrogate as bytes": (b'"b":', b'"b\xed\xa0\x80":'),
    "gap before": (b"[0,8]", b"[1,9]"),
    "offsets overlap": (b"[8,12]", b"[7,11]"),
    "offsets beyond": (b"[8,12]", b"[8,13]"),
    "empty tensor elsewhere": (b"[12,12]", b"[0,0]"),
    "offset reversed": (b"[0,8]", b"[8,0]"),
    "three offsets": (b"[0,8]", b"[0,8,8]"),
    "no offsets": (b'"data_offsets":[0,8],', b""),
    "float offset": (b"[0,8]", b"[0.0,8]"),
    "bool offset": (b"[0,8]", b"[false,8]"),
    "minus zero": (b"[0,8]", b"[-0,8]"),
    "offset with exponent": (b"[0,8]", b"[0,8e0]"),
    "offsets as text": (b"[0,8]", b'"0,8"'),
    "offsets null": (b"[0,8]", b"null"),
    "float size": (b'"F64","shape":[1]', b'"F64","shape":[1.0]'),
    "bool size": (b'"F64","shape":[1]', b'"F64","shape":[true]'),
    "size with exponent": (b'"U8","shape":[0]', b'"U8","shape":[0e2]'),
    "1e2": (b'"F64","shape":[1]', b'"F64","shape":[1e2]'),
    "negative size": (b'"F64","shape":[1]', b'"F64","shape":[-1]'),
    "two negative sizes": (b'"F64","shape":[1]', b'"F64","shape":[-1,-1]'),
    "text size": (b'"F64","shape":[1]', b'"F64","shape":["1"]'),
    "null size": (b'"F64","shape":[1]', b'"F64","shape":[null]'),
    "nested shape": (b'"F64","shape":[1]', b'"F64","shape":[[1]]'),
    "no list": (b'"F64","shape":[1]', b'"F64","shape":1'),
    "NaN size": (b'"F64","shape":[1]', b'"F64","shape":[NaN]'),
    "infinite size": (b'"F64","shape":[1]', b'"F64","shape":[Infinity]'),
    "leading zero": (b'"F64","shape":[1]', b'"F64","shape":[01]'),
    "huge size": (b'"F64","shape":[1]', b'"F64","shape":[%d]' % 2**60),
    "sizes that overflow": (b'"F64","shape":[1]', b'"F64","shape":[%d,%d]' % (2**32, 2**32)),
    "size of many digits": (b'"F64","shape":[1]', b'"F64","shape":[' + b"9" * 5000 + b"]"),
    "other shape": (b'"F64","shape":[1]', b'"F64","shape":[2]'),
    "no shape": (b'"F64","shape":[1]', b'"F64"'),
    "another field": (b'"F64","shape":[1]', b'"F64","shape":[1],"x":1'),
    "unknown dtype": (b"F64", b"F65"),
    "refused dtype": (b"F64", b"C128"),
    "lower-case dtype": (b"F64", b"f64"),
    "other width": (b"F64", b"F16"),
    "null dtype": (b'"F64"', b"null"),
    "list dtype": (b'"F64"', b'["F64"]'),
    "entry null": (B, b'"b":null'),
    "entry list": (B, b'"b":[]'),
    "name reserved": (b'"b":', b'"mlstate.b":'),
    "name reserved, nothing more": (b'"b":', b'"mlstate.":'),
    "opaque bytes with company": (b'"e":', b'"mlstate.bytes":'),
    "no metadata": (META + b",", b""),
    "metadata null": (META, b'"__metadata__":null'),
    "metadata list": (META, b'"__metadata__":["mlstate","tensors"]'),
    "no version": (b'"mlstate":"1",', b""),
    "version 2": (b'"mlstate":"1"', b'"mlstate":"2"'),
    "version 0": (b'"mlstate":"1"', b'"mlstate":"0"'),
    "version 1.0": (b'"mlstate":"1"', b'"mlstate":"1.0"'),
    "version, a number": (b'"mlstate":"1"', b'"mlstate":1'),
    "no references": (b',"tensors":"{' + V + b"," + W + b'}"', b""),
    "references as an object": (b'"{' + V + b"," + W + b'}"', b"{}"),
    "references null": (b'"{' + V + b"," + W + b'}"', b"null"),
    "references as a list": (b'"{' + V + b"," + W + b'}"', b'"[]"'),
    "references, no text": (b'"{' + V + b"," + W + b'}"', b'""'),
    "more metadata": (b'"mlstate":"1",', b'"format":"pt","mlstate":"1",'),
    "reference twice": (V, W),
    "references out of order": (V + b"," + W, W + b"," + V),
    "space in references": (V, V.replace(b":[", b": [")),
    "trailing space in references": (b'}"}', b'} "}'),
    "digest in upper case": (V, V.replace(LOW, UP)),
    "digest too short": (V, V.replace(LOW, LOW[:-1])),
    "digest too long": (V, V.replace(LOW, LOW + b"0")),
    "digest with a newline": (V, V.replace(LOW, LOW + rb"\\n")),
    "digest in other digits": (V, V.replace(LOW, "\u0664".encode() * 64)),
    "digest a number": (V, V.replace(rb"\"" + LOW + rb"\"", b"1")),
    "digest null": (V, V.replace(rb"\"" + LOW + rb"\"", b"null")),
    "reference without digest": (V, V.replace(rb"\"blake3\":\"" + LOW + rb"\",", b"")),
    "reference with offsets": (V, V.replace(rb"\"dtype\"", rb"\"data_offsets\":[0,1],\"dtype\"")),
    "reference, other field order": (
        V,
        rb"\"v\":{\"dtype\":\"F32\",\"blake3\":\"" + LOW + rb"\",\"shape\":[64,64]}",
    ),
    "small outside": (V, V.replace(b"64,64", b"64,63")),
    "empty outside": (V, V.replace(b"64,64", b"0")),
    "scalar outside": (V, V.replace(b"64,64", b"")),
    "negative outside": (V, V.replace(b"64,64", b"-64,-64")),
    "float outside": (V, V.replace(b"64,64", b"64,64.0")),
    "bool outside": (V, V.replace(b"64,64", b"true,64,64")),
    "too large outside": (V, V.replace(b"64,64", b"%d" % 2**62)),
    "unknown dtype outside": (V, V.replace(b"F32", b"F33")),
    "reserved name outside": (V, V.replace(rb"\"v\"", rb"\"mlstate.v\"")),
    "metadata as a reference": (V, V.replace(rb"\"v\"", rb"\"__metadata__\"")),
    "opaque bytes with company outside": (V, V.replace(rb"\"v\"", rb"\"mlstate.bytes\"")),
    "lone surrogate outside": (V, V.replace(rb"\"v\"", rb"\"v\\ud800\"")),
    "lone surrogate in the text": (V, V.replace(rb"\"v\"", rb"\"v\ud800\"")),
    "reference unescaped": (V, V.replace(rb"\"v\"", rb"\"v\u00e9\"")),
    "inside and outside": (b'"b":', b'"v":'),
    "not closed": (E + b"}", E),
    "closed twice": (E + b"}", E + b"}}"),
    "something after": (E + b"}", E + b"} {}"),
    "comma at the end": (E + b"}", E + b",}"),
    "a comment": (E + b"}", E + b"/**/}"),
}


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_deviations_of_the_header_are_refused(deviation):
    old, new = DEVIATIONS[deviation]
    assert GOOD.count(old) == 1
    assert new != old
    refused(pack(GOOD.replace(old, new)))


LEAST = -(8 + len(GOOD)) % 64
PADDINGS = {
    "none": b"",
    "one less": b" " * (LEAST - 1),
    "one more": b" " * (LEAST + 1),
    "64 more": b" " * (LEAST + 64),
    "tabs": b"\t" * LEAST,
    "one tab": b" " * (LEAST - 1) + b"\t",
    "newlines": b"\n" * LEAST,
    "zeros": b"\0" * LEAST,
}


@pytest.mark.parametrize("padding", PADDINGS)
def test_other_padding_is_refused(padding):
    assert LEAST > 1
    refused(pack(GOOD, padding=PADDINGS[padding]))


def test_64_spaces_are_not_the_least():
    text = StateObject({}, {}).encode()[8:].rstrip(b" ")
    name = b"x" * (
        -(8 + len(text) + len(b',"":{"data_offsets":[0,0],"dtype":"U8","shape":[0]}')) % 64
    )
    full = text[:-1] + b',"' + name + b'":{"data_offsets":[0,0],"dtype":"U8","shape":[0]}}'
    assert (8 + len(full)) % 64 == 0
    assert StateObject.parse(pack(full, b"")).inline.keys() == {name.decode()}
    refused(pack(full, b"", padding=b" " * 64))


@pytest.mark.parametrize("extra", [b"\0", b" ", b"x" * 64, pack(GOOD)])
def test_bytes_after_the_data_are_refused(extra):
    refused(pack(GOOD) + extra)


def test_every_shorter_file_is_refused():
    good = pack(GOOD)
    for length in range(len(good)):
        refused(good[:length])


def test_gaps_are_refused():
    text = GOOD.replace(b"[8,12]", b"[9,13]").replace(b"[12,12]", b"[13,13]")
    refused(pack(text, b"bbbbbbbb-aaaa"))
    text = text.replace(b"[0,8]", b"[1,9]")
    refused(pack(text, b"-bbbbbbbbaaaa"))


def test_data_in_another_order_are_refused():
    text = GOOD.replace(b"[0,8]", b"[4,12]").replace(b"[8,12]", b"[0,4]")
    assert dict(safetensors.deserialize(pack(text, b"aaaabbbbbbbb"))).keys() == {"a", "b", "e"}
    refused(pack(text, b"aaaabbbbbbbb"))


def test_shared_data_are_refused():
    text = GOOD.replace(B, B + b',"c":{"data_offsets":[0,8],"dtype":"F64","shape":[1]}')
    refused(pack(text))


def only(entry: bytes, data: bytes, references: bytes = b"{}") -> bytes:
    metadata = b'"__metadata__":{"mlstate":"1","tensors":"' + references + b'"}'
    return pack(b"{" + metadata + (b"," + entry if entry else b"") + b"}", data)


@pytest.mark.parametrize(("size", "fine"), [(16383, True), (16384, False), (16385, False)])
def test_inside_ends_at_16384_bytes(size, fine):
    data = only(
        b'"x":{"data_offsets":[0,%d],"dtype":"U8","shape":[%d]}' % (size, size), bytes(size)
    )
    if fine:
        assert StateObject.parse(data).inline["x"].spec.nbytes == size
    else:
        refused(data)


@pytest.mark.parametrize(("size", "fine"), [(16383, False), (16384, True), (16385, True)])
def test_outside_begins_at_16384_bytes(size, fine):
    entry = rb"{\"x\":{\"blake3\":\"%s\",\"dtype\":\"U8\",\"shape\":[%d]}}" % (LOW, size)
    data = only(b"", b"", entry)
    if fine:
        assert StateObject.parse(data).refs["x"].spec.nbytes == size
    else:
        refused(data)


@pytest.mark.parametrize("size", [16383, 16384])
def test_the_constructor_knows_inside_and_outside(size):
    spec = TensorSpec("U8", (size,))
    inside = {"x": InlineTensor(spec, bytes(size))}
    outside = {"x": TensorRef(spec, DIGEST)}
    fine, wrong = [(inside, {}), ({}, outside)][:: 1 if size < INLINE_LIMIT else -1]
    StateObject(*fine)
    with pytest.raises(FormatError, match=r"inside|outside"):
        StateObject(*wrong)


@pytest.mark.parametrize("size", [3, 5, 0])
def test_data_of_another_length_are_refused(size):
    with pytest.raises(FormatError, match="wrong length") as caught:
        StateObject({"x": InlineTensor(TensorSpec("F32", (1,)), bytes(size))}, {})
    assert caught.value.tensor == "x"


@pytest.mark.parametrize("byte", [2, 3, 0x80, 0xFF])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bool_byte_is_0_or_1(byte, place):
    entry = b'"x":{"data_offsets":[0,3],"dtype":"BOOL","shape":[3]}'
    data = bytearray(b"\1\0\1")
    assert bytes(StateObject.parse(only(entry, bytes(data))).inline["x"].data) == data
    data[place] = byte
    assert refused(only(entry, bytes(data))).tensor == "x"


@pytest.mark.parametrize("name", ["__metadata__", "mlstate.", "mlstate.x", "mlstate.bytes2"])
def test_reserved_names_are_refused(name):
    with pytest.raises(FormatError, match="reserved"):
        check_name(name)
    with pytest.raises(FormatError, match="reserved"):
        StateObject({name: InlineTensor(U8, b"x")}, {})
    with pytest.raises(FormatError, match="reserved"):
        StateObject({}, {name: TensorRef(TensorSpec("U8", (20000,)), DIGEST)})


@pytest.mark.parametrize("name", ["\ud800", "a\udfffb", "\udc00\ud800"])
def test_lone_surrogates_are_refused(name):
    with pytest.raises(FormatError, match="surrogate") as caught:
        StateObject({name: InlineTensor(U8, b"x")}, {})
    str(caught.value).encode()


@pytest.mark.parametrize("name", [None, 1, b"a", ("a",)])
def test_a_name_is_text(name):
    with pytest.raises(FormatError, match="text"):
        check_name(name)


@pytest.mark.parametrize("shape", [(0,), (5,), (16384,), (20000,)])
def test_opaque_bytes_are_one_tensor_alone(shape):
    spec = TensorSpec("U8", shape)

    def state(spec: TensorSpec, **others: InlineTensor) -> StateObject:
        if spec.nbytes < INLINE_LIMIT:
            return StateObject({BYTES_NAME: InlineTensor(spec, bytes(spec.nbytes)), **others}, {})
        return StateObject(others, {BYTES_NAME: TensorRef(spec, DIGEST)})

    assert StateObject.parse(state(spec).encode()) == state(spec)
    for wrong in (TensorSpec("I8", shape), TensorSpec("U8", (*shape, 1))):
        with pytest.raises(FormatError, match=r"mlstate\.bytes"):
            state(wrong)
    with pytest.raises(FormatError, match=r"mlstate\.bytes"):
        state(spec, a=InlineTensor(U8, b"x"))


@pytest.mark.parametrize("dtype", ["I8", "BOOL", "U16"])
def test_opaque_bytes_of_another_dtype_are_refused(dtype):
    size = BITS[dtype] // 8
    entry = b'"mlstate.bytes":{"data_offsets":[0,%d],"dtype":"%s","shape":[1]}'
    StateObject.parse(only(entry % (1, b"U8"), bytes(1)))
    refused(only(entry % (size, dtype.encode()), bytes(size)))


def test_opaque_bytes_that_are_a_scalar_are_refused():
    refused(only(b'"mlstate.bytes":{"data_offsets":[0,1],"dtype":"U8","shape":[]}', b"x"))


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"1", b'""', b"{}", b"true", b"{", b"\0"])
def test_what_is_not_a_header_is_refused(text):
    refused(pack(text, b""))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7"])
def test_another_encoding_is_refused(encoding):
    text = GOOD.decode().replace('"b"', '"bé"').encode(encoding)
    refused(pack(text))


@pytest.mark.parametrize("depth", [50, 300, 490, 900, 990, 3000, 100_000])
def test_deep_nesting_is_refused(depth):
    nest = b"[" * depth + b"]" * depth
    metadata = b'"__metadata__":{"mlstate":"1","tensors":"{}"}'
    refused(pack(nest, b""))
    refused(pack(b'{"__metadata__":%s}' % nest, b""))
    refused(pack(b'{"__metadata__":{"mlstate":%s,"tensors":"{}"}}' % nest, b""))
    refused(pack(b'{%s,"x":%s}' % (metadata, nest), b""))
    refused(only(b'"x":{"data_offsets":[0,0],"dtype":"U8","shape":%s}' % nest, b""))
    refused(only(b'"x":{"data_offsets":[0,0],"dtype":%s,"shape":[0]}' % nest, b""))
    refused(only(b'"x":{"data_offsets":%s,"dtype":"U8","shape":[0]}' % nest, b""))
    refused(only(b"", b"", rb"{\"x\":%s}" % nest))
    refused(only(b"", b"", b'{"x":' * depth))


# ---------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 2**63, 2**32, MAX_HEADER + 1, 1000])
def test_a_claimed_header_length_costs_no_memory(length):
    data = length.to_bytes(8, "little") + GOOD[:500]
    tracemalloc.start()
    try:
        refused(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(2**60,), (2**31, 2**31), (2**62, 1)])
def test_a_claimed_shape_costs_no_memory(shape):
    size = prod(shape)
    claim = b'"x":{"data_offsets":[0,%d],"dtype":"U8","shape":%s}'
    data = only(claim % (size, str(list(shape)).replace(" ", "").encode()), b"x")
    tracemalloc.start()
    try:
        refused(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_sizes_beyond_all_limits_cost_no_time():
    # 2,000 sizes of 4,000 digits each: their product would take minutes.
    shape = b",".join([b"9" * 4000] * 2000)
    refused(only(b'"x":{"data_offsets":[0,0],"dtype":"U8","shape":[%s]}' % shape, b""))


@pytest.mark.slow
def test_a_header_is_at_most_100_000_000_bytes():
    longest = MAX_HEADER - (8 + MAX_HEADER) % 64  # with the 8 before it, a multiple of 64
    entry = b',"":{"data_offsets":[0,1],"dtype":"U8","shape":[1]}'
    room = longest - len(StateObject({}, {}).encode()[8:].rstrip(b" ")) - len(entry)
    data = StateObject({"x" * room: InlineTensor(U8, b"!")}, {}).encode()
    assert int.from_bytes(data[:8], "little") == longest
    assert len(data) == 8 + longest + 1
    (name,) = StateObject.parse(data).inline
    assert len(name) == room
    assert [len(name) for name, _ in safetensors.deserialize(data)] == [room]
    with pytest.raises(FormatError, match="too long"):
        StateObject({"x" * (room + 1): InlineTensor(U8, b"!")}, {}).encode()


def test_a_longer_header_is_not_read():
    data = (MAX_HEADER + 56).to_bytes(8, "little") + bytes(MAX_HEADER + 56)
    assert "too long" in refused(data).message


NOTHING = [("F33", (1,)), ("f32", ()), (None, ()), ("F4", ()), ("F4", (3,)), ("F4", (3, 5))]
NOTHING += [("U8", (-1,)), ("U8", (True,)), ("U8", (1.0,)), ("U8", (2**63,)), ("F64", (2**60,))]
NOTHING += [("U8", (2**62, 2)), ("U8", ("1",)), ("U8", (None,)), ("BOOL", (2**63, 0))]


@pytest.mark.parametrize(("dtype", "shape"), NOTHING)
def test_specs_that_nothing_has_are_refused(dtype, shape):
    with pytest.raises(FormatError):
        TensorSpec(dtype, shape)


def test_the_largest_spec():
    assert TensorSpec("U8", (2**63 - 1,)).nbytes == 2**63 - 1
    assert TensorSpec("F4", (3, 2)).nbytes == 3
    assert TensorSpec("C64", ()).nbytes == 8


def test_sizes_that_safetensors_would_refuse_are_refused():
    # Every object is a valid safetensors file: a product that overflows before a 0 is none.
    entry = b'"x":{"data_offsets":[0,0],"dtype":"U8","shape":[%d,%d,0]}' % (2**62, 2**62)
    with pytest.raises(Exception, match="overflow"):
        safetensors.deserialize(only(entry, b""))
    refused(only(entry, b""))


def test_nbytes_counts_every_name():
    spec = TensorSpec("U8", (20000,))
    ref = TensorRef(spec, DIGEST)
    state = StateObject({"a": InlineTensor(U8, b"x")}, {"b": ref, "c": ref})
    assert state.nbytes == 1 + 2 * 20000
    assert state.specs == {"a": U8, "b": spec, "c": spec}
