"""A publisher's tensor names are translated to those of the state: literal texts, in one order."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import FormatError
from mlstate.fetch.names import translate, translate_all
from mlstate.locations import Mirror

NAMES = st.text(max_size=20)
DOTTED = st.lists(st.sampled_from(["a", "b", "module", "norm", "1"]), min_size=1).map(".".join)
PAIRS = st.lists(st.tuples(st.text(min_size=1, max_size=3), st.text(max_size=3)), max_size=3)


def mirror(
    strip: str = "", rename: tuple[tuple[str, str], ...] | list[tuple[str, str]] = (), add: str = ""
) -> Mirror:
    return Mirror(("x.pth",), strip_prefix=strip, rename=tuple(rename), add_prefix=add)


@pytest.mark.parametrize(
    ("rules", "name", "expected"),
    [
        (mirror("module."), "module.conv.weight", "conv.weight"),
        (mirror("module."), "conv.weight", "conv.weight"),  # without the prefix it stays
        (mirror("module."), "module.module.a", "module.a"),  # once
        (mirror("module."), "a.module.b", "a.module.b"),  # at the front only
        (mirror(add="dense."), "linear.bias", "dense.linear.bias"),
        (mirror("a.", add="b."), "a.c", "b.c"),
        (mirror("a.", add="b."), "c", "b.c"),
        (mirror(rename=[("norm.1", "norm1")]), "l.norm.1.bias", "l.norm1.bias"),
        (mirror(rename=[("a", "b"), ("b", "c")]), "ab", "cc"),  # in order
        (mirror(rename=[("b", "c"), ("a", "b")]), "ab", "bc"),
        (mirror(rename=[("x", "")]), "axbx", "ab"),  # everywhere
        (mirror(rename=[("a.c", "z")]), "abc.a.c", "abc.z"),  # a dot is a dot
        (mirror("m.", [("m.", "n.")], "p."), "m.m.a", "p.n.a"),  # strip, rename, add
        (mirror("m.", [("p.", "q.")], "p."), "m.a", "p.a"),  # what is added is not renamed
        (mirror("n.", [("m.", "n.")]), "m.a", "n.a"),  # what is renamed is not stripped
    ],
)
def test_strip_then_rename_then_add(rules, name, expected):
    assert translate(rules, name) == expected


@given(NAMES)
def test_a_mirror_without_rules_changes_nothing(name):
    assert translate(mirror(), name) == name


@given(NAMES, NAMES, PAIRS, NAMES)
def test_the_three_steps_are_one_after_the_other(name, strip, pairs, add):
    step = translate(mirror(strip), name)
    for pair in pairs:
        step = translate(mirror(rename=[pair]), step)
    assert translate(mirror(strip, pairs, add), name) == translate(mirror(add=add), step)


@given(NAMES, NAMES)
def test_what_is_added_can_be_stripped_and_the_other_way_round(name, prefix):
    assert translate(mirror(strip=prefix), translate(mirror(add=prefix), name)) == name
    assert translate(mirror(strip=prefix, add=prefix), prefix + name) == prefix + name


@given(st.sets(DOTTED), PAIRS)
def test_all_names_are_there_once_or_the_clash_is_named(names, pairs):
    rules = mirror("module.", pairs, "x.")
    ours = {name: translate(rules, name) for name in names}
    if len(set(ours.values())) == len(names):
        found = translate_all(rules, names)
        assert found == {translated: name for name, translated in ours.items()}
        assert sorted(found.values()) == sorted(names)
        return
    with pytest.raises(FormatError) as caught:
        translate_all(rules, names)
    clashing = [name for name in names if ours[name] == caught.value.tensor]
    assert sum(repr(name) in caught.value.found.split(" and ") for name in clashing) == 2


def test_two_names_that_become_one_are_refused_by_name():
    with pytest.raises(FormatError) as caught:
        translate_all(mirror("module."), ["conv.weight", "bias", "module.conv.weight"])
    assert caught.value.tensor == "conv.weight"
    assert caught.value.found == "'conv.weight' and 'module.conv.weight'"
    assert "strip_prefix" in caught.value.remedy


def test_translating_needs_no_torch():
    modules = "mlstate.fetch.file_mirror, mlstate.fetch.download"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
