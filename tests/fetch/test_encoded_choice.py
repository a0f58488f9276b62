"""Which objects come encoded: laws, and the cases that decide."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.fetch.encoded_choice import choose
from mlstate.format.encoded_index import EncodedForm
from mlstate.format.encoded_object import DEPTH_LIMIT

NAMES = [Digest.of(bytes([i])) for i in range(12)]
A, B, C, BASE, OTHER = NAMES[:5]


def nothing(digest: Digest, size: int) -> bool:
    return False


@st.composite
def scenes(draw):
    """Objects of one size that are missing, forms of some objects, and what is here."""
    sizes = st.integers(64, 1200)
    forms: dict[Digest, EncodedForm] = {}
    for digest in draw(st.lists(st.sampled_from(NAMES), unique=True)):
        lower = [d for d, f in forms.items() if f.depth < DEPTH_LIMIT]
        free = [name for name in NAMES if name not in forms and name != digest]
        base = draw(st.sampled_from([None, *lower, *free[:2]]))
        depth = 0 if base is None else (forms[base].depth if base in forms else 0) + 1
        forms[digest] = EncodedForm(draw(sizes), base, depth, draw(st.booleans()))
    # A base that was free above may have a form of its own by now, of any depth: as an index.
    for digest, form in list(forms.items()):
        if form.base in forms and forms[form.base].depth >= form.depth:
            del forms[digest]
    wanted = dict.fromkeys(draw(st.lists(st.sampled_from(NAMES), unique=True)), 1000)
    here = set(draw(st.lists(st.sampled_from(NAMES)))) - wanted.keys()
    return wanted, forms, here


@given(scene=scenes())
def test_each_object_comes_in_one_way_after_what_it_is_built_on(scene):
    wanted, forms, here = scene
    choice = choose(wanted, forms, lambda digest, size: digest in here and size == 1000)
    assert choice.encoded.keys() | choice.plain.keys() >= wanted.keys()
    assert not choice.encoded.keys() & choice.plain.keys()
    assert choice.plain.keys() <= wanted.keys()
    assert not (choice.encoded.keys() | choice.bases.keys()) & here
    before = here | choice.bases.keys() | choice.plain.keys()
    for digest, form in choice.encoded.items():
        assert form == forms[digest]
        assert form.base is None or form.base in before or form.base in wanted
        before = before | {digest}
    total = [form.size for form in choice.encoded.values()]
    assert choice.nbytes == sum(total) + 1000 * (len(choice.plain) + len(choice.bases))


@given(scene=scenes())
def test_it_is_never_more_than_the_plain_objects_where_these_can_be_had(scene):
    wanted, forms, here = scene
    plain = {d: EncodedForm(f.size, f.base, f.depth, plain=True) for d, f in forms.items()}
    choice = choose(wanted, plain, lambda digest, size: digest in here)
    assert choice.nbytes <= sum(wanted.values())


@given(scene=scenes())
def test_what_is_nowhere_plain_comes_encoded(scene):
    wanted, forms, here = scene
    choice = choose(wanted, forms, lambda digest, size: digest in here)
    only = {digest for digest in wanted if digest in forms and not forms[digest].plain}
    assert only <= choice.encoded.keys()


def test_a_base_for_several_is_paid_once():
    forms = {one: EncodedForm(400, BASE, 1, plain=True) for one in (A, B, C)}
    one = choose({A: 1000}, forms, nothing)
    assert (one.encoded, one.bases, one.plain) == ({}, {}, {A: 1000})
    three = choose(dict.fromkeys((A, B, C), 1000), forms, nothing)
    assert (set(three.encoded), three.bases, three.plain) == ({A, B, C}, {BASE: 1000}, {})
    assert three.nbytes == 1000 + 3 * 400


def test_a_base_that_is_encoded_alone_comes_so():
    forms = {A: EncodedForm(100, BASE, 1, plain=True), BASE: EncodedForm(650)}
    choice = choose({A: 1000}, forms, nothing)
    assert list(choice.encoded) == [BASE, A]
    assert choice.nbytes == 750


def test_what_would_be_larger_comes_plain_even_with_the_base_here():
    forms = {A: EncodedForm(1000, BASE, 1, plain=True)}
    assert choose({A: 1000}, forms, lambda *_: True).plain == {A: 1000}


def test_a_base_is_asked_about_by_its_size():
    forms = {A: EncodedForm(100, BASE, 1, plain=True)}
    asked = []
    choice = choose({A: 1000}, forms, lambda *given: asked.append(given))
    assert asked == [(BASE, 1000)]
    assert choice.plain == {A: 1000}
