"""The report: which layers a state changed, what came of what, and the page of it."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlstate import (
    LocalStateStore,
    ManifestStore,
    MemoryStateStore,
    StateKey,
    describe,
    diff,
    manifest_of,
    report,
    settings,
    usage,
    verify,
)
from mlstate.digests import Digest
from mlstate.errors import FormatError, StateExistsError, StateNotFoundError
from mlstate.format import layout
from mlstate.operations.report.findings import read_findings
from mlstate.operations.report.lineage import Lineage
from mlstate.operations.report.page import page_of
from mlstate.operations.report.page_data import page_data
from mlstate.operations.report.statistics import ChangeStatistics, Numbers
from mlstate.operations.reports import to_json
from tests.support.buckets import bucket_store
from tests.support.reports import HOSTILE, hostile_store, key, save

LARGE = (64, 64)  # just large enough for an object of its own


def large(value: float) -> torch.Tensor:
    return torch.full(LARGE, float(value))


@pytest.fixture
def family(store):
    """A base, a fine-tune of its last layer, one of that, and a model around the encoder."""
    base = {f"layer.{n}.weight": large(n + 1) for n in (2, 10)} | {"norm.bias": torch.ones(4)}
    save(store, "net.base", base, 1)
    tuned = {**base, "layer.10.weight": large(12.0)}
    save(store, "net.tuned", tuned, 2)
    save(store, "net.again", {**tuned, "norm.bias": torch.zeros(4)}, 3, meta={"note": "x"})
    around = {f"encoder.{name}": tensor for name, tensor in base.items()}
    save(store, "classifier.head", {**around, "head.weight": torch.ones(2, 2)}, 4)
    return store


def columns(found):
    return {state.key: state for part in found.architectures for state in part.states}


def test_it_says_which_layers_each_state_changed_against_which_base(family):
    found = report(family)
    net = next(part for part in found.architectures if str(part.state_type) == "pytorch.net")
    assert [layer.name for layer in net.layers] == [
        "layer.2.weight",
        "layer.10.weight",
        "norm.bias",
    ]
    assert [(s.key, s.base, s.marks) for s in net.states] == [
        (key("net.base"), None, "+++"),
        (key("net.tuned"), key("net.base"), "=~="),
        (key("net.again"), key("net.tuned"), "==~"),
    ]
    assert net.states[2].meta == {"note": "x"}
    # A model around an encoder has its tensors under other names; small ones, too.
    head = columns(found)[key("classifier.head")]
    assert (head.base, head.marks) == (key("net.base"), "===+")
    assert head.removed == ("layer.2.weight", "layer.10.weight", "norm.bias")


def test_its_numbers_are_those_of_diff(family):
    tuned = columns(report(family))[key("net.tuned")]
    expected = diff((family, key("net.base")), (family, key("net.tuned"))).changed[0]
    (change,) = tuned.changes
    assert change.layer == 1
    assert change.relative == pytest.approx(expected.relative, rel=1e-5)
    assert (change.max_abs, change.differing) == (expected.max_abs, expected.differing)
    assert change.nonfinite == 0


def test_its_space_is_that_of_usage(family):
    assert report(family).usage == usage(family)


def test_it_links_states_by_the_bytes_that_they_share(family):
    nbytes = 4 * 64 * 64
    assert [(link.older, link.newer, link.nbytes) for link in report(family).links] == [
        (key("net.base"), key("net.tuned"), nbytes),
        (key("net.tuned"), key("net.again"), 2 * nbytes),
        (key("net.base"), key("classifier.head"), 2 * nbytes),
    ]


def test_a_state_that_shares_nothing_is_compared_with_the_first_of_its_architecture(store):
    save(store, "net.base", {"w": large(1.0)}, 1)
    save(store, "net.other", {"w": large(2.0)}, 2)
    save(store, "net.full", {"w": large(3.0)}, 3)
    found = columns(report(store))[key("net.full")]
    assert (found.base, found.marks) == (key("net.base"), "~")
    assert found.changes[0].relative == 2.0


def test_of_some_states_the_bases_are_found_among_all(family):
    found = report(family, [key("net.again")])
    assert list(columns(found)) == [key("net.again")]
    assert columns(found)[key("net.again")].base == key("net.tuned")
    assert [state.key for state in found.usage.states] == [key("net.again")]
    assert [link.newer for link in found.links] == [key("net.again")]
    with pytest.raises(StateNotFoundError):
        report(family, [key("net.absent")])


def test_what_has_no_numbers_says_so(store):
    save(store, "net.base", {"a": large(1.0), "b": large(0.0)}, 1)
    save(store, "net.tuned", {"a": torch.ones(65, 64), "b": large(1.0)}, 2)
    found = columns(report(store))[key("net.tuned")]
    assert found.marks == "~~"
    assert found.changes[0].differing is None  # another shape
    assert (found.changes[1].relative, found.changes[1].max_abs) == (None, 1.0)  # all zeros before
    assert found.unread == ()


def test_without_values_nothing_but_state_objects_is_read_and_torch_stays_out(family):
    for path in family.folder.glob("objects/*/*"):
        if path.stat().st_size >= 4 * 64 * 64:
            path.chmod(0o644)
            path.write_bytes(b"\0" * path.stat().st_size)
    program = (
        "import sys, mlstate; found = mlstate.report(mlstate.LocalStateStore(sys.argv[1]), "
        "values=False); assert 'torch' not in sys.modules; "
        "print(*(s.marks + str(len(s.unread)) for p in found.architectures for s in p.states))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(family.folder)], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout == "===+0 +++0 =~=0 ==~0\n"


def test_damaged_and_missing_tensors_are_named_and_the_rest_is_told(family):
    digests = {t.name: t.digest for t in describe(family, key("net.tuned")).tensors}
    path = family.folder / layout.object_path(digests["layer.10.weight"])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    found = columns(report(family))
    assert found[key("net.tuned")].unread == ("layer.10.weight",)
    assert found[key("net.tuned")].changes[0].relative is None
    assert found[key("net.again")].changes[0].differing == 4
    path.unlink()
    assert columns(report(family))[key("net.tuned")].unread == ("layer.10.weight",)


def test_a_damaged_state_is_left_out_of_the_layers_and_told_with_its_error(family):
    path = family.folder / layout.object_path(family.digest(key("net.again")))
    path.chmod(0o644)
    path.write_bytes(b"junk")
    found = report(family)
    assert key("net.again") not in columns(found)
    errors = {state.key: state.error for state in found.usage.states}
    assert "damaged" in errors[key("net.again")]
    assert [k for k, error in errors.items() if error] == [key("net.again")]
    assert "damaged" in page_of(found)


def test_a_view_fetches_nothing_and_knows_what_is_here(family, tmp_path):
    manifest_of(family, objects=[str(family.folder)]).write(tmp_path / "all.toml")
    view = ManifestStore(tmp_path / "all.toml", cache=tmp_path / "view")
    assert report(view).architectures == ()
    view.fetch(key("net.base"))
    view.fetch(key("net.tuned"), names=["norm.bias"])  # its state object comes, its tensor not
    before = sorted(path.name for path in (tmp_path / "view").rglob("*"))
    found = report(view)
    assert not found.timed
    # By their keys, since nobody knows how old they are.
    assert {k: (s.marks, s.unread) for k, s in columns(found).items()} == {
        key("net.base"): ("+++", ()),
        key("net.tuned"): ("=~=", ()),
    }
    assert columns(found)[key("net.tuned")].changes[0].relative is None
    assert sorted(path.name for path in (tmp_path / "view").rglob("*")) == before


def test_of_a_bucket_state_objects_come_and_no_tensors(moto, tmp_path):
    bucket = moto.new_bucket()
    writer = bucket_store(moto, bucket, cache=tmp_path / "writer")
    writer.save_state_dict({"a": large(1), "b": large(2)}, key("net.base"))
    writer.save_state_dict({"a": large(1), "b": large(3)}, key("net.tuned"))
    reader = bucket_store(moto, bucket, cache=tmp_path / "reader")
    found = columns(report(reader))
    marks = sorted((state.marks, state.unread) for state in found.values())
    assert marks == [("++", ()), ("=~", ())]
    assert [c.relative for state in found.values() for c in state.changes] == [None]
    kept = {path.parent.name + path.name for path in tmp_path.glob("reader/objects/*/*")}
    assert kept == {str(writer.digest(k)) for k in found}
    for k in found:
        reader.fetch(k)
    changes = [c for state in columns(report(reader)).values() for c in state.changes]
    assert [change.differing for change in changes] == [64 * 64]


def test_stores_of_any_kind_can_be_empty_or_hold_one_state():
    store = MemoryStateStore()
    assert report(store).architectures == ()
    store.save_state_dict({"w": torch.ones(2)}, key("net.one"))
    (part,) = report(store).architectures
    assert (part.states[0].base, part.states[0].marks) == (None, "+")


def kept_files():
    return sorted((settings.cache_folder() / "changes").glob("*"))


def test_statistics_are_computed_once(family):
    first = report(family)
    assert kept_files()
    for path in family.folder.glob("objects/*/*"):
        if path.stat().st_size >= 4 * 64 * 64:
            path.chmod(0o644)
            path.write_bytes(b"\0" * path.stat().st_size)  # whoever read it would notice
    assert report(family).architectures == first.architectures


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-3],
        lambda data: data.replace(b"12", b"13"),
        lambda data: b"[" * 100_000,
        lambda data: b"\xff" * 200,
        lambda data: Digest.of(b'{"a":[1]}').encode() + b'\n{"a":[1]}',
        lambda data: Digest.of(b"[]").encode() + b"\n[]",
    ],
)
def test_damaged_statistics_are_computed_anew(family, damage):
    first = report(family)
    kept = {path: path.read_bytes() for path in kept_files()}
    for path, data in kept.items():
        path.chmod(0o644)
        path.write_bytes(damage(data))
    assert report(family).architectures == first.architectures
    assert {path: path.read_bytes() for path in kept_files()} == kept


def test_statistics_that_cannot_be_kept_are_no_error(family, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "file"))
    assert columns(report(family))[key("net.tuned")].changes[0].differing == 64 * 64


def test_others_statistics_stay_when_new_ones_are_kept():
    one, other = Digest.of(b"1"), Digest("1" + Digest.of(b"2")[1:])
    pairs = [(Digest(f"1{one[1:]}"), other), (other, one)]
    first, second = ChangeStatistics(), ChangeStatistics()
    assert first.get(*pairs[0]) is second.get(*pairs[1]) is None
    for statistics, pair in zip((first, second), pairs, strict=True):
        statistics.put(*pair, Numbers(1, 0, 0.5, None))
        statistics.save()
    assert [ChangeStatistics().get(*pair) for pair in pairs] == [Numbers(1, 0, 0.5, None)] * 2


def test_progress_counts_the_bytes_that_are_compared(family):
    told = []
    report(family, progress=told.append)
    assert told[-1].ended
    assert told[-1].done == told[-1].total == 2 * (4 * 64 * 64) + 2 * 16


tensors = st.dictionaries(st.integers(0, 8), st.integers(0, 5), max_size=6)


@given(st.lists(tensors, min_size=1, max_size=8))
def test_every_shared_byte_is_in_one_link_as_far_as_links_go(states):
    """Against counting by hand: the first link has most, and no tensor counts twice."""
    lineage, before = Lineage(), []
    for number, state in enumerate(states):
        sizes = {Digest.of(bytes([name])): name + 1 for name in state}
        links = lineage.add(key(f"net.s{number}"), sizes)
        left = dict(sizes)
        for link in links:
            counts = [sum(n for d, n in left.items() if d in older) for older in before]
            assert link.nbytes == counts[link.older] == max(counts) > 0
            assert link.older == counts.index(max(counts))
            left = {d: n for d, n in left.items() if d not in before[link.older]}
        assert len(links) == 3 or not any(d in older for d in left for older in before)
        before.append(sizes)


def test_of_equal_relatives_that_of_its_own_architecture_is_the_base():
    lineage, size = Lineage(), {Digest.of(b"x"): 5}
    lineage.add(key("other.first"), size)
    lineage.add(key("net.second"), size)
    lineage.add(key("net.third"), size)
    assert lineage.add(key("net.fourth"), size)[0].older == 1


def test_findings_come_from_a_verification_or_from_its_json(family):
    path = family.folder / layout.object_path(family.digest(key("net.again")))
    path.chmod(0o644)
    path.write_bytes(b"junk")
    findings = verify(family).findings
    assert report(family, findings=findings).findings == findings
    text = json.dumps({"schema": "mlstate.verify/1", **to_json(verify(family))}).encode()
    read = read_findings(text)
    assert to_json(read) == to_json(findings)
    assert report(family).findings is None


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "{}",
        '{"schema": "mlstate.ls/1", "findings": []}',
        '{"schema": "mlstate.verify/1"}',
        '{"schema": "mlstate.verify/1", "findings": [1]}',
        '{"schema": "mlstate.verify/1", "findings": [{"kind": "odd", "keys": []}]}',
        '{"schema": "mlstate.verify/1", "findings": [{"kind": "missing", "keys": "abc"}]}',
        '{"schema": "mlstate.verify/1", "findings": [{"kind": "missing", "keys": ["a"]}]}',
    ],
)
def test_what_is_no_verification_is_refused(text):
    with pytest.raises(FormatError):
        read_findings(text.encode())


def test_a_page_is_written_whole_and_replaces_only_pages(family, tmp_path):
    found = report(family)
    page = tmp_path / "new" / "report.html"
    found.write(page)
    found.write(page)
    assert page.read_text() == page_of(found)
    assert os.listdir(page.parent) == ["report.html"]
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"precious")
    with pytest.raises(StateExistsError, match="overwrite=True"):
        found.write(other)
    assert other.read_bytes() == b"precious"
    found.write(other, overwrite=True)
    assert other.read_text() == page_of(found)


def test_texts_of_a_store_are_no_part_of_the_pages_own(store):
    hostile_store(store)
    page = page_of(report(store))
    assert page.count("</script>") == page.count("<script") == 3
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    data = re.search(r'id="data">(.*?)</script>', page, re.S)[1]
    names = [layer[0] for part in json.loads(data)["maps"] for layer in part["layers"]]
    assert HOSTILE.encode("unicode_escape").decode() in names


def test_the_page_names_no_address_and_lets_nothing_run_but_its_scripts(family):
    page = page_of(report(family))
    policy = html.unescape(re.search(r'Security-Policy" content="(.*?)"', page)[1])
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-\S+' 'sha256-\S+'$", policy)
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", page))
    assert addresses <= {"https://d3js.org/d3-hierarchy/", "http://www.w3.org/2000/svg"}
    assert "Mike Bostock" in page  # the licence of d3 asks for that
    assert "Permission to use, copy, modify" in page


def test_a_notebook_shows_it_in_a_frame_that_cannot_reach_out(family):
    found = family.report([key("net.base")], values=False)
    shown = found._repr_html_()
    assert re.search(r'<iframe [^>]*sandbox="allow-scripts"', shown)
    assert html.unescape(re.search(r'srcdoc="(.*)"></iframe>', shown, re.S)[1]) == page_of(found)
    assert repr(found) == f"<report on 1 states of {family.folder}>"


def test_signed_addresses_in_notes_are_cut_on_the_page(store):
    meta = {"from": "https://host/a?X-Amz-Signature=SECRET"}
    save(store, "net.base", {"w": torch.ones(2)}, 1, meta=meta)
    assert "SECRET" not in page_of(report(store))


def test_it_is_the_same_for_a_copy_of_the_folder(family, tmp_path):
    subprocess.run(["cp", "-a", str(family.folder), str(tmp_path / "copy")], check=True)
    assert report(LocalStateStore(tmp_path / "copy")).architectures == report(family).architectures


def test_keys_are_state_keys(family):
    with pytest.raises(FormatError):
        report(family, ["pytorch.net.base"])
    assert isinstance(next(iter(columns(report(family)))), StateKey)


def test_the_data_of_the_page_are_the_json_of_the_report(family):
    found = report(family)
    told = json.loads(json.dumps(to_json(found)))
    data = page_data(found)
    for part, shown in zip(told["architectures"], data["maps"], strict=True):
        assert [layer["name"] for layer in part["layers"]] == [row[0] for row in shown["layers"]]
        for state, column in zip(part["states"], shown["states"], strict=True):
            assert state["marks"] == column["marks"]
            assert [list(c.values()) for c in state["changes"]] == column["changes"]
