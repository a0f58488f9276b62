"""Hostile checkpoints: nothing runs, nothing is allocated, each is refused with its reason."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import struct
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch

from mlstate.errors import FormatError
from mlstate.pickled import (
    BytesSource,
    caps,
    interpreter,
    read_checkpoint,
    select_tensors,
    tensor_pieces,
)
from mlstate.pickled.interpreter import read_pickle
from mlstate.pickled.source import Cursor
from mlstate.pickled.values import Call, Global, Pairs, kind_of
from tests.pickled.crafted import legacy, number, state, storage, tensor, text, zipped


def loads(data: bytes):
    return read_pickle(Cursor(BytesSource(data)))


def refused(data: bytes, match: str) -> FormatError:
    """The error of a whole checkpoint, whose tensors are asked for but not read."""
    source = BytesSource(data)
    with pytest.raises(FormatError, match=match) as caught:
        select_tensors(read_checkpoint(source).root, source.size)
    return caught.value


def arrive(data: bytes) -> dict[str, bytes]:
    source = BytesSource(data)
    checkpoint = read_checkpoint(source)
    tensors = select_tensors(checkpoint.root, source.size)
    return {
        name: b"".join(map(bytes, tensor_pieces(checkpoint, source, value)))
        for name, value in tensors.items()
    }


def calls(mark: Path) -> dict[str, bytes]:
    """Every way in which a pickle makes Python call something: each would create the mark."""
    command = f"touch {mark}"
    system, line = b"cposix\nsystem\n", command.encode()
    built = text("exec") + b"cbuiltins\nexec\n"
    code = text(f"__import__('pathlib').Path({str(mark)!r}).touch()")
    return {
        "REDUCE": system + text(command) + b"\x85R.",
        "STACK_GLOBAL": text("posix") + text("system") + b"\x93" + text(command) + b"\x85R.",
        "INST": b"(S'" + line + b"'\niposix\nsystem\n.",
        "OBJ": b"(" + system + text(command) + b"o.",
        "NEWOBJ": b"csubprocess\nPopen\n" + text(command) + b"\x85\x81.",
        "NEWOBJ_EX": b"csubprocess\nPopen\n)}" + text("args") + text(command) + b"s\x92.",
        "eval": b"cbuiltins\neval\n" + code + b"\x85R.",
        "Python 2": b"c__builtin__\neval\n" + code + b"\x85R.",
        "attributes": b"cbuiltins\ngetattr\n(cposix\n" + b"system\n" + text("__call__") + b"tR"
        + text(command) + b"\x85R.",
        "BUILD": b"cmlstate.pickled.values\nGlobal\n)\x81}" + built + b"sb.",
        "a known function in a call": b"ctorch._utils\n_rebuild_parameter\n(" + system
        + text(command) + b"\x85R\x88NtR.",
        "a function of torch": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + system
        + b"ctorch\nTensor\n" + text(command) + b"\x85NtR.",
        "a mapping": b"ccollections\nOrderedDict\n" + system + text(command) + b"\x85R\x85R.",
        "a dotted name": text("os") + text("sys.modules") + b"\x93)R.",
    }  # fmt: skip


@pytest.mark.parametrize("way", calls(Path("mark")))
@pytest.mark.parametrize("container", ["bare", "zip", "legacy"])
def test_nothing_is_called_in_any_way(tmp_path, way, container):
    mark = tmp_path / "it-ran"
    before = {*sys.modules}
    content = b"\x80\x04" + calls(mark)[way]
    if container == "bare":
        assert isinstance(loads(content), Call)
    else:
        data = zipped(content) if container == "zip" else legacy(content, [], [])
        error = refused(data, "not a checkpoint of plain tensors")
        assert str(error.found).startswith("a pickled ")
    assert not mark.exists()
    assert {*sys.modules} == before


def test_the_attacks_would_run(tmp_path):
    ran = 0
    for way, content in calls(tmp_path / "x").items():
        if way in ("REDUCE", "STACK_GLOBAL", "INST", "OBJ", "eval", "Python 2", "a mapping"):
            with contextlib.suppress(TypeError):  # what OrderedDict makes of the answer
                pickle.loads(content)
            assert (tmp_path / "x").exists(), way
            (tmp_path / "x").unlink()
            ran += 1
    assert ran == 7


def test_the_persistent_id_of_a_program_is_refused():
    for key in (text("module"), number(3), b"(" + text("storage") + b"t", b"(t", b"]", b"N"):
        refused(zipped(b"\x80\x02" + key + b"Q."), "refers to what is no storage")
    refused(zipped(b"P1\n."), "refers to what is no storage")
    with pytest.raises(FormatError, match="something outside"):
        loads(b"P1\n.")


def test_extensions_and_buffers_stay_undone():
    for code in (b"\x82\x01.", b"\x83\x01\x00.", b"\x84\x01\x00\x00\x00."):
        assert kind_of(loads(code)) == "a pickled copyreg.extension"
    for code in (b"\x97.", b"\x98."):
        with pytest.raises(FormatError, match="buffer"):
            loads(code)


def test_every_opcode_of_python_is_known():
    codes = {ord(opcode.code) for opcode in pickletools.opcodes}
    known = {code for code, opcode in enumerate(interpreter._OPCODES) if opcode}
    assert known | {ord(".")} == codes


VALUES = [
    None, True, False, 0, -1, 255, 256, 65536, -(2**31), 2**31, 2**63, -(2**80), 1.5, float("inf"),
    "", "text \n ü \U0001f600 \ud800", b"", b"\xff" * 300, (), (1,), (1, 2), (1, 2, 3), (1,) * 4,
    [], [1, [2, [3]]], "x" * 300, b"'quoted\\'\n",
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_those_of_python(protocol):
    for value in VALUES:
        data = pickle.dumps(value, protocol)
        if protocol < 3 and type(value) is bytes:
            assert isinstance(loads(data), Call)  # of _codecs.encode, which is left undone
            continue
        found = loads(data)
        assert type(found) is type(value)
        assert found == value
        pairs = loads(pickle.dumps({"a": value, 3: value}, protocol))
        assert isinstance(pairs, Pairs)
        assert [*pairs.items()] == [("a", value), (3, value)]
    knot: list[object] = []
    knot.append(knot)
    found = loads(pickle.dumps(knot, protocol))
    assert found[0] is found


def test_texts_of_python_2():
    assert loads(b"S'a\\x62\\n'\n.") == "ab\n"
    assert loads(b"U\x02\xff\xfe.") == b"\xff\xfe"
    assert loads(b"T\x01\0\0\0a.") == "a"
    for wrong in (
        b"S'a\n.",
        b"Sa\n.",
        b"S'\\q'\n.",
        b"S'\\x1'\n.",
        b"I1x\n.",
        b"Fx\n.",
        b"L1.5L\n.",
    ):
        with pytest.raises(FormatError):
            loads(wrong)


def bombs() -> dict[str, tuple[bytes, str]]:
    doubled = (
        b"]"
        + b"q\x00"
        + b"".join(
            b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(200)
        )
    )
    return {
        "tuples inside each other": (b")" + b"\x85" * 100_000 + b".", "inside each other"),
        "lists inside each other": (b"]" * 100_000 + b"a" * 99_999 + b".", "inside each other"),
        "calls inside each other": (b"cx\ny\n" + b")R" * 50_000 + b".", "inside each other"),
        "a chain that grows afterwards": (
            b"](" + b"".join(b"]r" + struct.pack("<I", i) for i in range(5000)) + b"e"
            + b"".join(
                b"j" + struct.pack("<I", i) + b"j" + struct.pack("<I", i + 1) + b"a0"
                for i in range(4999)
            )
            + b".",
            "inside each other",
        ),
        "doubled again and again": (doubled + b".", ""),
        "marks": (b"(" * 100_000, "open marks"),
        "the stack": (b"N" * 1_100_000, "values on its stack"),
        "opcodes": (b"N0" * 1_100_000, "too many opcodes"),
        "memo": (b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(1_000_100)), "memo"),
        "a text": (b"X\xff\xff\xff\x7f", "too long"),
        "a text of 2^63": (b"\x8d" + b"\xff" * 8, "too long"),
        "bytes": (b"B\xff\xff\xff\xff", "too long"),
        "bytes of 2^63": (b"\x8e" + b"\xff" * 8, "too long"),
        "a bytearray": (b"\x96" + b"\xff" * 8, "too long"),
        "a string": (b"T\xff\xff\xff\x7f", "too long"),
        "a negative length": (b"T\xff\xff\xff\xff", "too long"),
        "a text that is not there": (b"X\xff\xff\x0f\x00abc", "ends too early"),
        "a frame": (b"\x80\x04\x95" + b"\xff" * 8, "frame"),
        "an integer": (b"\x8b\xff\xff\xff\x7f", "too long"),
        "a negative integer length": (b"\x8b\xff\xff\xff\xff", "too long"),
        "digits": (b"L" + b"9" * 3000 + b"L\n.", "integer that is too long"),
        "a line": (b"I" + b"9" * 100_000, "line"),
        "keys inside each other": (b"}" + b")" + b"\x85" * 100 + b"Ns.", "key of tuples"),
        "a memo that is empty": (b"h\x00.", "memo"),
        "an empty stack": (b"0R.", "mark"),
        "no mark": (b"Nt.", "lacks a mark"),
        "an unknown opcode": (b"\xff", "does not exist"),
        "a protocol": (b"\x80\x06N.", "does not exist"),
        "a list as a key": (b"}]Ns.", "key that cannot be one"),
        "a key without a value": (b"}(Nu.", "without a value"),
        "a state of a number": (b"K\x01}b.", "gives a state"),
        "appended to a number": (b"K\x01Na.", "appends"),
        "keys of a number": (b"K\x01NNs.", "sets keys"),
    }  # fmt: skip


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_with_the_limit_and_little_memory(name):
    data, match = bombs()[name]
    if len(data) < 500_000:  # those that are longer take long to trace
        tracemalloc.start()
    try:
        if not match:
            assert isinstance(loads(data), list)
        else:
            with pytest.raises(FormatError, match=match):
                loads(data)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_keys_are_not_chosen_to_collide():
    # All have the hash 1 in Python: a mapping of them would take hours.
    many = b"".join(number(1 + i * (2**61 - 1)) + b"N" for i in range(50_000))
    assert len(loads(b"}(" + many + b"u.")) == 50_000


def test_a_pickle_longer_than_its_cap_is_refused(monkeypatch):
    monkeypatch.setattr("mlstate.pickled.zipped.MAX_PICKLE", 100)
    refused(zipped(state(text("x" * 200))), "a pickle that is too long")
    with pytest.raises(FormatError, match="too long"):
        read_pickle(Cursor(BytesSource(b"X\xff\0\0\0" + b"x" * 300), most=100))


# Tensors and storages


GOOD = tensor(storage(4), (2, 2), (2, 1))
DATA = {"0": struct.pack("<4f", 1, 2, 3, 4)}


def test_what_is_written_by_hand_is_read():
    assert arrive(zipped(state(GOOD), DATA)) == {"w": DATA["0"]}
    assert torch.load(io.BytesIO(zipped(state(GOOD), DATA)), weights_only=True)["w"].sum() == 10
    old = legacy(state(tensor(storage(4, more=b"N"), (2, 2), (2, 1))), ["0"], [(4, DATA["0"])])
    assert arrive(old) == {"w": DATA["0"]}
    assert torch.load(io.BytesIO(old), weights_only=True)["w"].sum() == 10


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (tensor(storage(4), (5,), (1,)), "larger than its storage"),
        (tensor(storage(4), (2,), (4,)), "larger than its storage"),
        (tensor(storage(4), (1,), (1,), 4), "larger than its storage"),
        (tensor(storage(4), (2**40, 2**40), (0, 0)), "larger than 2\\^63"),
        (tensor(storage(4), (2**62, 2**62, 0), (0, 0, 0)), "larger than 2\\^63"),
        (tensor(storage(4), (10**6, 10**4), (0, 0)), "repeats its storage"),
        (tensor(storage(4), (4,), (-1,), 3), "stride"),
        (tensor(storage(4), (-4,), (1,)), "dimension"),
        (tensor(storage(4), (1,), (1,), -1), "offset"),
        (tensor(storage(4), (2**64,), (1,)), "dimension"),
        (tensor(storage(4), (2, 2), (1,)), "strides"),
        (tensor(storage(4), (1,) * 65, (1,) * 65), "dimensions"),
        (tensor(storage(-1), (1,), (1,)), "size of a storage"),
        (tensor(storage(2**62), (1,), (1,)), "another size"),
        (tensor(storage(5), (1,), (1,)), "another size"),
        (tensor(storage(4, "1"), (1,), (1,)), "lacks a storage"),
        (tensor(storage(4, "../data.pkl"), (1,), (1,)), "lacks a storage"),
        (tensor(storage(4, kind="QInt8Storage"), (1,), (1,)), "element type"),
        (tensor(storage(4, kind="TypedStorage"), (1,), (1,)), "class that is not read"),
        (tensor(b"N", (1,), (1,)), "no storage"),
        (tensor(storage(4, more=b"N"), (1,), (1,)), "no storage"),
        (GOOD + b"N)b", "gives a state"),
        (b"}(" + text("a") + GOOD + text("b") + tensor(storage(2, kind="DoubleStorage"), (1,), (1,))
         + b"u", "described in two ways"),
    ],
)  # fmt: skip
def test_a_tensor_that_is_not_there_is_refused_before_a_byte_is_read(value, match):
    refused(zipped(state(value), DATA), match)


def test_many_tensors_that_repeat_one_storage_are_refused_together():
    entries = b"".join(
        text(str(i)) + tensor(storage(1000), (200_000 + i,), (0,)) for i in range(40)
    )
    refused(
        zipped(b"\x80\x02}(" + entries + b"u.", {"0": bytes(4000)}), "repeat its storages too often"
    )


def test_a_legacy_file_with_a_short_list_of_storages_is_refused():
    one = tensor(storage(4, "a", more=b"N"), (2, 2), (2, 1))
    other = tensor(storage(4, "b", more=b"N"), (2, 2), (2, 1))
    both = b"\x80\x02}(" + text("w") + one + text("v") + other + b"u."
    block = (4, DATA["0"])
    assert arrive(legacy(both, ["b", "a"], [block, block])).keys() == {"w", "v"}
    for keys, blocks in {
        (): [],
        ("a",): [block],
        ("a", "a"): [block, block],
        ("a", "b", "c"): [block, block, block],
        ("a", "c"): [block, block],
    }.items():
        refused(legacy(both, list(keys), blocks), "lists other storages")
    for keys in (None, {"a": "b"}, [1, 2], "ab"):
        refused(legacy(both, keys, [block, block]), "no list of storages")
    for count in (0, 3, 5, -1, 2**60):
        refused(legacy(both, ["a", "b"], [block, (count, DATA["0"])]), "another size")
    refused(legacy(both, ["a", "b"], [block, (4, DATA["0"][:-1])]), "ends too early")
    refused(legacy(both, ["a", "b"], [block]), "ends too early")


def test_a_part_of_a_storage_in_an_old_file():
    view = b"(" + text("v") + number(1) + number(2) + b"t"
    data = state(tensor(storage(4, more=view), (2,), (1,)))
    file = legacy(data, ["0"], [(4, DATA["0"])])
    assert arrive(file) == {"w": DATA["0"][4:12]}
    theirs = torch.load(io.BytesIO(file), weights_only=True)
    assert theirs["w"].tolist() == [2, 3]
    wide = state(tensor(storage(4, more=view), (3,), (1,)))
    refused(legacy(wide, ["0"], [(4, DATA["0"])]), "larger than its storage")
    long = b"(" + text("v") + number(1) + number(4) + b"t"
    beyond = state(tensor(storage(4, more=long), (1,), (1,)))
    refused(legacy(beyond, ["0"], [(4, DATA["0"])]), "larger than the storage")


@pytest.mark.parametrize("zipped_format", [True, False], ids=["zip", "legacy"])
def test_cut_at_every_byte_a_file_is_refused(zipped_format):
    file = io.BytesIO()
    content = {"a": torch.ones(3), "b": torch.arange(4).reshape(2, 2).T}
    torch.save(content, file, _use_new_zipfile_serialization=zipped_format)
    whole = file.getvalue()
    assert arrive(whole).keys() == {"a", "b"}
    for length in range(len(whole)):
        with pytest.raises(FormatError):
            arrive(whole[:length])


def test_a_flipped_bit_of_a_stored_tensor_is_noticed():
    whole = bytearray(zipped(state(GOOD), DATA))
    at = whole.index(DATA["0"])
    whole[at + 3] ^= 1
    with pytest.raises(FormatError, match="a storage of this checkpoint is damaged"):
        arrive(bytes(whole))


def test_a_whole_model_is_named_and_not_built():
    file = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), file)
    error = refused(file.getvalue(), "not a checkpoint of plain tensors")
    assert error.found == "a pickled torch.nn.modules.linear.Linear"


def test_an_unknown_object_beside_the_weights_is_a_name():
    file = io.BytesIO()
    torch.save({"args": Path("x"), "state": {"w": torch.ones(1)}}, file)
    source = BytesSource(file.getvalue())
    root = read_checkpoint(source).root
    assert kind_of(root.get("args")) == "a pickled pathlib.PosixPath"
    assert select_tensors(root, source.size, "state").keys() == {"w"}
    assert select_tensors(root, source.size).keys() == {"w"}  # the only one
    file = io.BytesIO()
    torch.save({"args": Path("x"), "a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, file)
    source = BytesSource(file.getvalue())
    with pytest.raises(FormatError) as caught:
        select_tensors(read_checkpoint(source).root, source.size)
    assert caught.value.remedy == "select the state dict inside: a, b"


def test_globals_are_names():
    assert loads(b"c__builtin__\nset\n.") == Global("builtins", "set")
    for wrong in (b"K\x01K\x02\x93.", b"cos\n"):
        with pytest.raises(FormatError):
            loads(wrong)


def test_caps_are_said_in_the_error():
    with pytest.raises(FormatError) as caught:
        loads(b"(" * 2000)
    assert caught.value.expected == f"at most {caps.MAX_DEPTH}"
