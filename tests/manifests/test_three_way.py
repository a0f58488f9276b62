"""The three-way merge of manifests: nothing is lost, and what clashes is marked by itself."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate import Manifest, StateKey
from mlstate.errors import ManifestError
from mlstate.manifests.three_way import Marks, NotMergeableError, merge_manifests
from tests.support.signing import Key, needs_ssh_keygen

D = [f"{number:x}" * 64 for number in range(16)]
HEAD = "# what these are\nversion = 1\n"


def state(name: str, digest: int, *, above: str = "", beside: str = "", more: str = "") -> str:
    return f'\n{above}[states."p.r.{name}"]\nblake3 = "{D[digest]}"{beside}\n{more}'


BASE = HEAD + state("b", 1, above="# of b\n") + state("d", 2, beside="  # of d")


def merged(base: str, ours: str, theirs: str) -> str:
    """A merge without conflicts, the same for both ways round but for the order."""
    result = merge_manifests(base.encode(), ours.encode(), theirs.encode())
    other = merge_manifests(base.encode(), theirs.encode(), ours.encode())
    assert not result.conflicts
    assert not other.conflicts
    assert says(result.data) == says(other.data)
    return result.data.decode()


def clash(base: str, ours: str, theirs: str, marks: Marks | None = None) -> tuple[str, list[str]]:
    """The text of a merge with conflicts, and what they are about."""
    result = merge_manifests(base.encode(), ours.encode(), theirs.encode(), marks)
    assert result.conflicts
    with pytest.raises(ManifestError):
        Manifest.parse(result.data, "merged")
    return result.data.decode(), [conflict.what for conflict in result.conflicts]


def says(data: bytes | str) -> object:
    read = Manifest.parse(data if isinstance(data, bytes) else data.encode(), "")
    top = {name: value for name, value in read.unknown.items() if name != "serial"}
    states = {key: replace(entry, objects=()) for key, entry in read.states.items()}
    return states, sorted(read.objects), top


def side(text: str, number: int) -> str:
    """The text with one side of every conflict."""
    pattern = re.compile(r"<<<<<<< ours\n(.*?)=======\n(.*?)>>>>>>> theirs\n", re.S)
    return pattern.sub(lambda match: match[number], text)


def test_states_that_each_side_adds_are_both_there_with_their_comments_and_in_order():
    ours = BASE.replace("\n# of b", state("a", 3, above="# of a\n", beside=" # in a") + "\n# of b")
    theirs = BASE + state("e", 4, above="# of e\n") + state("f", 5)
    text = merged(BASE, ours, theirs)
    assert text == ours + state("e", 4, above="# of e\n") + state("f", 5)
    between = merged(BASE, ours, BASE.replace("\n[", state("c", 6, above="# of c\n") + "\n[", 1))
    assert re.findall(r'"(p\.r\..)"', between) == ["p.r.a", "p.r.b", "p.r.c", "p.r.d"]
    assert "# of c\n[states" in between


def test_what_one_side_changed_or_removed_is_so():
    theirs = BASE.replace(D[2], D[7]).replace("# of d", "# of d, retrained")
    ours = HEAD + state("d", 2, beside="  # of d")
    assert merged(BASE, ours, theirs) == HEAD + state("d", 7, beside="  # of d, retrained")


def test_what_both_sides_did_alike_is_done_once():
    both = BASE.replace(D[1], D[8]) + state("x", 9)
    assert merged(BASE, both, both + state("y", 3)) == both + state("y", 3)
    assert merged(BASE, both.replace("size", "size"), BASE + state("x", 9)) == both


def test_an_entry_written_differently_that_says_the_same_is_one():
    ours = BASE + '\n[states."p.r.x"]\nmirrors = ["https://h/a"]\nsize = 1\n'
    theirs = BASE + '\n[states."p.r.x"]\nsize = 1\nmirrors = [\n    "https://h/a",\n]\n'
    assert merged(BASE, ours, theirs) == ours


def test_a_comment_of_one_side_and_a_value_of_the_other_go_together():
    ours = BASE.replace("# of b\n", "# of b, trained in May\n")
    theirs = BASE.replace(D[1], D[9])
    assert merged(BASE, ours, theirs) == ours.replace(D[1], D[9])


@pytest.mark.parametrize("with_base", [False, True])
def test_an_entry_that_both_changed_is_a_conflict_of_that_entry_alone(with_base):
    ours = BASE.replace(D[1], D[3]) + state("x", 4)
    theirs = BASE.replace(D[1], D[5]) + state("y", 6)
    text, about = clash(BASE, ours, theirs, Marks(size=9, with_base=with_base))
    assert about == ["p.r.b"]
    old = f'{"|" * 9} base\n# of b\n[states."p.r.b"]\nblake3 = "{D[1]}"\n' if with_base else ""
    assert text == (
        HEAD
        + f'\n{"<" * 9} ours\n# of b\n[states."p.r.b"]\nblake3 = "{D[3]}"\n'
        + old
        + f'{"=" * 9}\n# of b\n[states."p.r.b"]\nblake3 = "{D[5]}"\n{">" * 9} theirs\n'
        + state("d", 2, beside="  # of d")
        + state("x", 4)
        + state("y", 6)
    )


def test_either_side_of_a_conflict_is_a_manifest():
    text, _ = clash(BASE, BASE.replace(D[1], D[3]), BASE.replace(D[1], D[5]))
    assert says(side(text, 1)) == says(BASE.replace(D[1], D[3]))
    assert says(side(text, 2)) == says(BASE.replace(D[1], D[5]))


@pytest.mark.parametrize("turned", [False, True])
def test_one_side_removes_what_the_other_changes(turned):
    sides = [HEAD + state("d", 2, beside="  # of d"), BASE.replace(D[1], D[3])]
    text, about = clash(BASE, *(reversed(sides) if turned else sides))
    assert about == ["p.r.b"]
    assert says(side(text, 2 if turned else 1)) == says(sides[0])
    assert says(side(text, 1 if turned else 2)) == says(sides[1])


def test_comments_that_cannot_both_stand_are_a_conflict():
    ours, theirs = (BASE.replace("# of b", f"# by {who}") for who in ("Ann", "Bob"))
    text, about = clash(BASE, ours, theirs)
    assert about == ["p.r.b"]
    assert "# by Ann" in text
    assert "# by Bob" in text


def test_keys_that_differ_in_case_only_are_a_conflict():
    text, about = clash(BASE, BASE + state("X", 3), BASE + state("x", 4))
    assert about == ["p.r.X"]
    assert says(side(text, 2)) == says(BASE + state("x", 4))


TOP = """\
# ours to keep
version = 1
name = "lab/weights"
serial = 4
objects = [
    "https://one/store",  # the first
    "https://two/store",
]

# names that move
[aliases]
best = "p.r.b"
"""


def test_lists_and_tables_outside_of_states_are_joined_item_by_item():
    ours = TOP.replace(
        '    "https://two/store",\n', '    "https://two/store",\n    "https://ours",\n'
    )
    ours = ours.replace('best = "p.r.b"', 'best = "p.r.b"\nlatest = "p.r.b"').replace("= 4", "= 5")
    theirs = TOP.replace("\n]", '\n    "https://theirs",\n]')
    theirs = theirs.replace("best =", 'good = "p.r.b"\nbest =').replace("= 4", "= 7")
    text = merged(TOP, ours, theirs)
    read = Manifest.parse(text.encode(), "")
    assert sorted(read.objects) == [
        "https://one/store",
        "https://ours",
        "https://theirs",
        "https://two/store",
    ]
    assert read.aliases == dict.fromkeys(("best", "latest", "good"), StateKey.parse("p.r.b"))
    assert read.unknown["serial"] == 7
    for comment in ("# ours to keep", "# the first", "# names that move"):
        assert comment in text


def test_what_one_side_takes_out_of_a_list_is_out_and_what_the_other_puts_in_is_in():
    top = HEAD + 'objects = ["https://a", "https://b"]\n'
    text = merged(
        top, top.replace(', "https://b"', ', "https://c"'), top.replace('"https://a", ', "")
    )
    assert Manifest.parse(text.encode(), "").objects == ("https://c",)


def test_an_alias_that_both_moved_is_a_conflict_of_its_table():
    ours, theirs = (TOP.replace('best = "p.r.b"', f'best = "p.r.{name}"') for name in "xy")
    text, about = clash(TOP, ours, theirs)
    assert about == ["[aliases]"]
    assert Manifest.parse(side(text, 2).encode(), "").aliases == {"best": StateKey.parse("p.r.y")}


def test_new_files_on_both_sides_are_joined():
    ours, theirs = HEAD + state("a", 1), HEAD + state("b", 2)
    assert merged("", ours, theirs) == HEAD + state("a", 1) + state("b", 2)


def test_line_ends_and_a_byte_order_mark_stay_those_of_ours():
    ours = b"\xef\xbb\xbf" + (BASE + state("x", 3)).replace("\n", "\r\n").encode()
    result = merge_manifests(BASE.encode(), ours, (BASE + state("y", 4)).encode())
    assert result.data == ours + state("y", 4).replace("\n", "\r\n").encode()


@pytest.mark.parametrize(
    "text",
    [
        f'version = 1\nstates = {{"p.r.a" = {{blake3 = "{D[1]}"}}}}\n',
        f'version = 1\n[states]\n"p.r.a" = {{blake3 = "{D[1]}"}}\n',
        HEAD + state("a", 1) + state("b", 2) + '\n[states."p.r.a".meta]\nx = 1\n',
        "version = 2\n",
        "<<<<<<< ours\nversion = 1\n",
        "[",
    ],
)
def test_what_is_not_written_state_by_state_is_not_merged_so(text):
    with pytest.raises(NotMergeableError):
        merge_manifests(text.encode(), f"# x\n{text}".encode(), f"{text}# y\n".encode())


@needs_ssh_keygen
def test_a_signature_within_is_left_out_of_what_nobody_signed(tmp_path):
    from mlstate.signatures.inline import is_signed, join_signature

    key = Key.make(tmp_path, "alice@example.org")

    def signed(text: str) -> bytes:
        return join_signature(text.encode(), key.sign(text.encode()))

    base, ours = signed(HEAD + state("a", 1)), signed(HEAD + state("a", 1) + state("b", 2))
    result = merge_manifests(base, ours, signed(HEAD + state("a", 1) + state("c", 3)))
    assert result.unsigned
    assert not is_signed(result.data)
    assert len(Manifest.parse(result.data, "").states) == 3
    again = signed(HEAD + state("a", 1))
    alone = merge_manifests(base.replace(b"# what", b"# That"), ours, again)
    assert alone.data == ours  # whose signature is good
    assert not alone.unsigned


NAMES = st.sampled_from(["a", "b", "c", "d", "E"])
ENTRIES = st.fixed_dictionaries(
    {"digest": st.integers(1, 3), "note": st.sampled_from(["", "# note\n", "# other\n"])},
    optional={"license": st.sampled_from(["MIT", "BSD # of 1999"])},
)
LISTS = st.dictionaries(NAMES, ENTRIES, max_size=4)
PLACES = st.lists(st.sampled_from(["https://a", "https://b", "https://c"]), unique=True)
MANIFESTS = st.builds(
    lambda states, objects, apart: text_of(states, objects, apart), LISTS, PLACES, st.booleans()
)


def text_of(states, objects, apart) -> str:
    text = HEAD + (f"objects = {objects}\n".replace("'", '"') if objects else "")
    for name, entry in states.items():
        more = ""
        if "license" in entry:
            more = f'\n[states."p.r.{name}".meta]\nlicense = "{entry["license"]}"\n'
        text += state(name, entry["digest"], above=entry["note"], more=more)[0 if apart else 1 :]
    return text


@given(base=MANIFESTS, ours=MANIFESTS)
def test_a_merge_with_what_did_not_change_is_the_other_side(base, ours):
    for args in ((base, ours, base), (base, base, ours), (base, ours, ours)):
        result = merge_manifests(*(text.encode() for text in args))
        assert result.data.decode() == ours
        assert not result.conflicts


@given(base=MANIFESTS, ours=MANIFESTS, theirs=MANIFESTS)
def test_each_state_is_as_the_rule_says_and_the_ways_round_agree(base, ours, theirs):
    sides = [text.encode() for text in (base, ours, theirs)]
    result, other = merge_manifests(*sides), merge_manifests(sides[0], sides[2], sides[1])
    assert {c.what for c in result.conflicts} == {c.what for c in other.conflicts}
    old, mine, their = (Manifest.parse(data, "").states for data in sides)
    conflicting = {conflict.what for conflict in result.conflicts}
    if result.conflicts:
        with pytest.raises(ManifestError):
            Manifest.parse(result.data, "")
        return
    assert says(result.data) == says(other.data)
    said = Manifest.parse(result.data, "").states
    for key in {*old, *mine, *their}:
        assert str(key) not in conflicting
        wanted = their.get(key) if same(old.get(key), mine.get(key)) else mine.get(key)
        assert same(said.get(key), wanted), key
    if base != ours:  # otherwise it is theirs, to the byte
        assert [key for key in said if key in mine] == [key for key in mine if key in said]
    for text in (ours, theirs):
        for comment in set(re.findall(r"# .*", text)) - set(re.findall(r"# .*", base)):
            assert comment in result.data.decode()


def same(one, other) -> bool:
    blank = {"objects": ()}
    return (one and {**vars(one), **blank}) == (other and {**vars(other), **blank})


@given(base=MANIFESTS, ours=MANIFESTS, theirs=MANIFESTS)
def test_states_that_only_one_side_has_are_kept(base, ours, theirs):
    sides = [text.encode() for text in (base, ours, theirs)]
    text = merge_manifests(*sides).data.decode()
    old, mine, their = (set(Manifest.parse(data, "").states) for data in sides)
    for key in (mine ^ their) - old:
        assert f'[states."{key}"]' in text
    assert StateKey.parse("p.r.z") not in mine
