"""The names of states: what is refused, and that the text form loses nothing."""

from __future__ import annotations

import copy
import pickle
import string
import weakref

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mlstate.errors import FormatError, MlstateError
from mlstate.states import MAX_KEY_LENGTH, StateKey, StateType

DEVICES = ["con", "prn", "aux", "nul"] + [
    f"{port}{n}" for port in ("com", "lpt") for n in range(10)
]
ALPHABET = string.ascii_letters + string.digits + "_-"
BAD_PARTS = {
    "empty": "",
    "dot": "a.b",
    "slash": "a/b",
    "backslash": "a\\b",
    "parent": "..",
    "space": "a b",
    "leading space": " a",
    "newline at the end": "a\n",
    "newline at the front": "\na",
    "carriage return": "a\r",
    "nul byte": "a\0",
    "accent": "é",
    "fullwidth letter": "\uff41",
    "arabic digit": "\u0661",
    "kelvin sign": "\u212a",
    "long s": "\u017f",
    "colon": "a:b",
    "star": "*",
    "plus": "a+b",
    "65 characters": "a" * 65,
    "bytes": b"a",
    "number": 1,
    "nothing": None,
}

parts = st.text(ALPHABET, min_size=1, max_size=12).filter(lambda part: part.lower() not in DEVICES)
state_types = st.builds(StateType, parts, parts, st.lists(parts, max_size=4).map(tuple))
state_keys = st.builds(StateKey, state_types, parts)


def makers():
    """Each place where a part can stand."""
    return {
        "backend": lambda part: StateType(part, "a"),
        "architecture": lambda part: StateType("b", part),
        "extra": lambda part: StateType("b", "a", ("x", part)),
        "training_id": lambda part: StateKey(StateType("b", "a"), part),
    }


@pytest.mark.parametrize("field", makers())
@pytest.mark.parametrize("part", BAD_PARTS.values(), ids=BAD_PARTS)
def test_a_bad_part_is_refused_wherever_it_stands(field, part):
    with pytest.raises(FormatError) as caught:
        makers()[field](part)
    assert field in caught.value.message
    assert caught.value.found == repr(part)


@pytest.mark.parametrize("field", makers())
@pytest.mark.parametrize("device", DEVICES)
def test_names_of_windows_devices_are_refused_in_any_case(field, device):
    for spelling in (device, device.upper(), device.capitalize(), device[:-1] + device[-1].upper()):
        with pytest.raises(FormatError, match=field):
            makers()[field](spelling)


@pytest.mark.parametrize("field", makers())
@pytest.mark.parametrize(
    "part", ["console", "con-", "_con", "com", "com10", "lpt", "nul0", "a", "-", "_", "0", "A" * 64]
)
def test_names_that_only_look_like_devices_are_accepted(field, part):
    assert part in makers()[field](part).parts


@given(parts)
def test_any_part_of_the_alphabet_is_accepted_everywhere(part):
    for make in makers().values():
        assert part in make(part).parts


@given(st.text(max_size=5), parts)
def test_what_is_accepted_is_nothing_but_the_alphabet(text, part):
    try:
        key = StateKey(StateType(text or part, part), text)
    except FormatError:
        assert not text or set(text) - set(ALPHABET) or text.lower() in DEVICES
    else:
        assert set(str(key)) <= {*ALPHABET, "."}


def test_a_key_has_at_most_200_characters():
    state_type = StateType("a" * 64, "b" * 64, ("c" * 5,))
    fits = StateKey(state_type, "d" * 64)
    assert len(str(fits)) == MAX_KEY_LENGTH == 200
    assert StateKey.parse(str(fits)) == fits
    with pytest.raises(FormatError, match="too long"):
        StateKey(StateType("a" * 64, "b" * 64, ("c" * 6,)), "d" * 64)
    with pytest.raises(FormatError, match="too long"):
        StateKey.parse(str(fits).replace("ccccc", "cccccc"))


def test_a_type_leaves_room_for_a_training_id():
    fits = StateType("a" * 64, "b" * 64, ("c" * 64, "d" * 3))
    assert len(str(StateKey(fits, "x"))) == MAX_KEY_LENGTH
    with pytest.raises(FormatError, match="too long"):
        StateType("a" * 64, "b" * 64, ("c" * 64, "d" * 4))


@pytest.mark.parametrize("extra", ["cls1000", "", None, 5])
def test_extra_that_is_no_sequence_of_names_is_refused(extra):
    with pytest.raises(FormatError, match="extra"):
        StateType("pytorch", "resnet18", extra)


def test_extra_may_be_any_sequence_and_becomes_a_tuple():
    expected = StateType("b", "a", ("x", "y"))
    assert StateType("b", "a", ["x", "y"]) == expected
    assert StateType("b", "a", iter(["x", "y"])) == expected
    assert type(StateType("b", "a", ["x", "y"]).extra) is tuple
    assert hash(StateType("b", "a", ["x", "y"])) == hash(expected)


def test_extra_is_empty_by_default():
    assert StateType("b", "a") == StateType("b", "a", ())


@given(state_types)
@example(StateType("pytorch", "resnet18"))
def test_parsing_a_type_is_the_inverse_of_printing_it(state_type):
    assert StateType.parse(str(state_type)) == state_type


@given(state_keys)
@example(StateKey(StateType("pytorch", "resnet18", ("cls1000",)), "imagenet"))
def test_parsing_a_key_is_the_inverse_of_printing_it(key):
    assert StateKey.parse(str(key)) == key
    assert str(key) == ".".join(key.parts)
    assert key.parts == (*key.state_type.parts, key.training_id)


@given(st.text(ALPHABET + "./ \n", max_size=20))
def test_printing_what_was_parsed_gives_the_text_back(text):
    for kind in (StateType, StateKey):
        try:
            parsed = kind.parse(text)
        except FormatError:
            continue
        assert str(parsed) == text


@pytest.mark.parametrize("text", ["", ".", "a", "a.", ".a", "a..b", "a.b\n", "a.b.", "a.con"])
def test_a_text_that_is_no_type_is_refused(text):
    with pytest.raises(FormatError):
        StateType.parse(text)


@pytest.mark.parametrize(
    "text", ["", "a", "a.b", "a.b.", ".a.b", "a..b", "a.b.c\n", "\na.b.c", "a.b.c.", "a.b/c.d"]
)
def test_a_text_that_is_no_key_is_refused(text):
    with pytest.raises(FormatError):
        StateKey.parse(text)


def test_a_key_keeps_where_type_and_training_id_meet():
    key = StateKey.parse("pytorch.resnet18.cls1000.imagenet")
    assert key == StateKey(StateType("pytorch", "resnet18", ("cls1000",)), "imagenet")
    assert key != StateKey(StateType("pytorch", "resnet18"), "imagenet")


def test_a_refusal_is_a_value_error_too():
    for kind in (ValueError, MlstateError):
        with pytest.raises(kind):
            StateType("", "a")


@given(state_types, state_types)
def test_types_are_ordered_by_their_fields(a, b):
    assert (a < b) == ((a.backend, a.architecture, a.extra) < (b.backend, b.architecture, b.extra))


@given(state_keys, state_keys)
def test_keys_are_ordered_by_type_and_then_training_id(a, b):
    assert (a < b) == ((a.state_type, a.training_id) < (b.state_type, b.training_id))


def test_order_is_of_fields_and_not_of_text():
    short = StateKey.parse("p.r.z")
    dashed = StateKey.parse("p.r-x.a")
    extra = StateKey.parse("p.r.a.b")
    assert sorted([dashed, extra, short]) == [short, extra, dashed]


@given(parts, parts, st.lists(parts, max_size=2), st.lists(parts, max_size=2))
def test_types_that_differ_in_extra_alone_are_compatible(backend, architecture, one, other):
    a, b = StateType(backend, architecture, one), StateType(backend, architecture, other)
    assert a.is_compatible_with(b)
    assert b.is_compatible_with(a)


@given(state_types, parts)
def test_types_of_another_backend_or_architecture_are_not_compatible(state_type, part):
    assume(part not in state_type.parts)
    other_backend = StateType(part, state_type.architecture)
    other_architecture = StateType(state_type.backend, part)
    for other in (other_backend, other_architecture):
        assert not state_type.is_compatible_with(other)
        assert not other.is_compatible_with(state_type)


def test_compatible_is_equal_parts_not_equal_beginnings():
    assert not StateType("p", "resnet1").is_compatible_with(StateType("p", "resnet18"))
    assert not StateType("p", "ResNet").is_compatible_with(StateType("p", "resnet"))


@given(state_keys)
def test_keys_are_values(key):
    same = StateKey.parse(str(key))
    assert hash(same) == hash(key)
    assert pickle.loads(pickle.dumps(key)) == copy.deepcopy(key) == key
    assert weakref.ref(key)() is key


@pytest.mark.parametrize("field", ["state_type", "training_id"])
def test_keys_cannot_be_changed(field):
    key = StateKey.parse("a.b.c")
    with pytest.raises(AttributeError):
        setattr(key, field, "x")
