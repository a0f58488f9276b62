"""Encoded objects on the wire: fewer bytes travel, plain objects arrive, and nothing is trusted."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlstate import LocalStateStore, StateKey
from mlstate.digests import Digest
from mlstate.errors import FetchError
from mlstate.fetch.plan import LARGE
from mlstate.fetch.progress import Progress
from mlstate.format import layout
from mlstate.format.encoded_index import EncodedForm, EncodedIndex
from mlstate.operations.plan import planned_fetch
from tests.servers.recording import Record, RecordingServer, Reply
from tests.support.encoded_mirrors import (
    encode_object,
    encode_state,
    near,
    read_refs,
    weights,
    write_index,
)
from tests.support.fetching import (
    Published,
    check_cache,
    leftovers,
    manifest_store,
    start_child,
    write_manifest,
)
from tests.support.models import same

BASE, TUNED = StateKey.parse("pytorch.net.base"), StateKey.parse("pytorch.net.tuned")
MB = 1 << 20
COUNT, SIZE = 5, 2 * MB
"""The objects of a state, and the elements of each: 20 MiB in all, so that mirrors are asked."""
TENSORS = weights(count=COUNT, size=SIZE)
TUNED_TENSORS = near(TENSORS)
NBYTES = COUNT * 2 * SIZE


@dataclass
class Scene:
    """A published model with a fine-tune, a server, and an empty cache."""

    folder: Path
    store: LocalStateStore
    server: RecordingServer

    @property
    def web(self) -> Path:
        return self.folder / "web"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def digest(self, key: StateKey) -> Digest:
        return Digest(self.store.digest(key))

    def refs(self, key: StateKey):
        return read_refs(self.web, self.digest(key))

    def manifest(self, key: StateKey, *more: str) -> Path:
        published = Published(self.web, key, {}, self.store.get(key).entry)
        path = self.folder / f"{key.training_id}.toml"
        return write_manifest(path, published, objects=[self.server.url, *more])

    def view(self, key: StateKey, *more: str):
        return manifest_store(self.manifest(key, *more), self.cache)

    def fetch(self, key: StateKey, *more: str):
        """Fetch a state and check it; the report, and what the server was asked for it."""
        self.server.reset()
        report = self.view(key, *more).fetch(key)
        asked = self.server.requests
        loaded = self.view(key).load_state_dict(key)
        same(loaded, TUNED_TENSORS if key == TUNED else TENSORS)
        check_cache(self.cache)
        assert leftovers(self.cache) == {}
        assert not (self.cache / layout.ENCODED).exists()
        return report, list(asked)


@pytest.fixture
def scene(tmp_path: Path, start_recording: Callable[..., RecordingServer]) -> Scene:
    store = LocalStateStore(tmp_path / "web")
    store.save_state_dict(TENSORS, BASE)
    store.save_state_dict(TUNED_TENSORS, TUNED)
    return Scene(tmp_path, store, start_recording(tmp_path / "web"))


def of_kind(requests: list[Record], kind: str) -> list[Record]:
    return [record for record in requests if f"{kind}/" in record.name]


def test_the_difference_comes_where_the_base_is_here(scene: Scene):
    forms = encode_state(scene.web, scene.digest(TUNED), scene.digest(BASE))
    scene.fetch(BASE)
    report, asked = scene.fetch(TUNED)
    sizes = sum(form.size for form in forms.values())
    assert sizes < 0.3 * NBYTES
    assert sizes < report.fetched < sizes + 10_000
    assert len(asked) == COUNT + 2  # the state object, the index, the differences
    assert sum(record.bytes_sent for record in asked) < sizes + 10_000
    assert scene.fetch(TUNED)[0].fetched == 0


def test_progress_counts_what_travels(scene: Scene):
    forms = encode_state(scene.web, scene.digest(TUNED), scene.digest(BASE))
    scene.fetch(BASE)
    told: list[Progress] = []
    view = scene.view(TUNED)
    view.fetcher.on_progress = told.append
    report = view.fetch(TUNED)
    assert told[-1].done == told[-1].total == report.fetched
    assert report.fetched < sum(form.size for form in forms.values()) + 10_000


def test_without_the_base_the_smaller_of_both_ways_is_taken(scene: Scene):
    everything = scene.refs(TUNED)
    encode_state(scene.web, scene.digest(TUNED), scene.digest(BASE), gone=())
    report, asked = scene.fetch(TUNED)  # the base and the differences are more than the objects
    assert report.fetched >= NBYTES
    assert len(of_kind(asked, "objects")) == 1 + len(everything)
    assert [layout.ENCODED in record.name for record in asked].count(True) == 1  # the index


def test_what_was_encoded_since_the_index_was_written_comes_all_the_same(scene: Scene):
    """A compaction is under way, or was killed: the index says that all is there plainly, too."""
    encode_state(scene.web, scene.digest(TUNED), scene.digest(BASE), gone=())
    for ref in scene.refs(TUNED).values():
        (scene.web / layout.object_path(ref.digest)).unlink()
    _, asked = scene.fetch(TUNED)
    assert len([r for r in of_kind(asked, layout.ENCODED) if "/states/" not in r.name]) == COUNT
    assert len([r for r in asked if "/states/" in r.name]) == 1


def test_a_base_is_brought_if_that_is_less(scene: Scene):
    """Of eight fine-tunes of one tensor, in one state."""
    base = TENSORS["layer.0.w"]
    states = {f"t{i}": near({"w": base}, seed=i)["w"] for i in range(8)}
    scene.store.save_state_dict(states, key := StateKey.parse("pytorch.net.many"))
    digest, of_base = scene.digest(key), scene.refs(BASE)["layer.0.w"]
    forms = {
        ref.digest: encode_object(scene.web, ref, of_base.digest)
        for ref in scene.refs(key).values()
    }
    also_plain = {d: EncodedForm(f.size, f.base, f.depth, plain=True) for d, f in forms.items()}
    write_index(scene.web, digest, also_plain)
    report = scene.view(key).fetch(key)
    expected = 2 * SIZE + 4096 + sum(form.size for form in forms.values())
    assert expected <= report.fetched < expected + 10_000 < 0.5 * 8 * 2 * SIZE
    same(scene.view(key).load_state_dict(key), states)
    assert (scene.cache / layout.object_path(of_base.digest)).exists()


def test_a_base_of_the_same_state_comes_once_and_first(scene: Scene):
    tied = {"a": TENSORS["layer.0.w"], **{f"b{i}": TENSORS[f"layer.{i}.w"] for i in range(1, 4)}}
    tied["tuned"] = near({"w": tied["a"]})["w"]
    scene.store.save_state_dict(tied, key := StateKey.parse("pytorch.net.tied"))
    refs = scene.refs(key)
    form = encode_object(scene.web, refs["tuned"], refs["a"].digest)
    alone = encode_object(scene.web, refs["a"])
    (scene.web / layout.object_path(refs["tuned"].digest)).unlink()
    (scene.web / layout.object_path(refs["a"].digest)).unlink()
    write_index(scene.web, scene.digest(key), {refs["tuned"].digest: form, refs["a"].digest: alone})
    report = scene.view(key).fetch(key)
    expected = form.size + alone.size + 3 * (2 * SIZE + 4096)
    assert expected <= report.fetched < expected + 10_000
    same(scene.view(key).load_state_dict(key), tied)


def test_what_is_encoded_alone_comes_so(scene: Scene):
    forms = encode_state(scene.web, scene.digest(BASE))
    report, _ = scene.fetch(BASE)
    sizes = sum(form.size for form in forms.values())
    assert sizes <= report.fetched < sizes + 10_000 < 0.8 * NBYTES


def test_a_chain_of_eight_comes_whole(scene: Scene):
    names, digests = [f"w{i}" for i in range(9)], []
    states = {"w0": TENSORS["layer.0.w"]}
    for before, name in itertools.pairwise(names):
        states[name] = near({"w": states[before]}, seed=len(states))["w"]
    for name in names:
        key = StateKey.parse(f"pytorch.run.{name}")
        scene.store.save_state_dict({"w": states[name], "more": TENSORS["layer.1.w"]}, key)
        digests.append(scene.refs(key)["w"])
    forms = {}
    for depth, (base, ref) in enumerate(itertools.pairwise(digests)):
        forms[ref.digest] = encode_object(scene.web, ref, base.digest, depth)
    for ref in digests[1:]:
        (scene.web / layout.object_path(ref.digest)).unlink()
    key = StateKey.parse("pytorch.run.w8")
    write_index(scene.web, scene.digest(key), forms)
    report = scene.view(key).fetch(key)
    expected = 2 * (2 * SIZE + 4096) + sum(form.size for form in forms.values())
    assert expected <= report.fetched < expected + 10_000
    same(scene.view(key).load_state_dict(key), {"w": states["w8"], "more": TENSORS["layer.1.w"]})


def test_a_mirror_without_encoded_objects_is_asked_once_and_of_small_fetches_not_at_all(
    scene: Scene,
):
    _, asked = scene.fetch(BASE)
    assert len(asked) == COUNT + 2
    assert [r.status for r in asked if layout.ENCODED in r.name] == [404]
    scene.store.save_state_dict({"w": TENSORS["layer.0.w"][:9000]}, key := TUNED, overwrite=True)
    scene.server.reset()
    scene.view(key).fetch(key)
    assert [r.name for r in scene.server.requests if layout.ENCODED in r.name] == []


def test_of_a_small_state_that_is_only_encoded_the_index_is_asked_for_then(scene: Scene):
    small = {"w": TENSORS["layer.0.w"][:100_000]}
    scene.store.save_state_dict(small, key := StateKey.parse("pytorch.net.small"))
    encode_state(scene.web, scene.digest(key))
    scene.view(key).fetch(key)
    names = [record.name for record in scene.server.requests]
    assert [r.status for r in scene.server.requests] == [200, 404, 200, 200]
    assert "encoded/states/" in names[2]
    same(scene.view(key).load_state_dict(key), small)


def index_of(scene: Scene) -> Path:
    return scene.web / layout.encoded_index_path(scene.digest(TUNED))


WRONG_INDEXES = {
    "cut": lambda data: data[:-5],
    "another state": lambda data: EncodedIndex(Digest("0" * 64)).encode(),
    "not text": lambda data: bytes(1000),
    "a newer one": lambda data: data.replace(b'"mlstate":"1"', b'"mlstate":"2"'),
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("way", WRONG_INDEXES)
def test_an_index_that_is_wrong_costs_its_request(scene: Scene, way: str):
    encode_state(scene.web, scene.digest(TUNED), scene.digest(BASE), gone=())
    index_of(scene).write_bytes(WRONG_INDEXES[way](index_of(scene).read_bytes()))
    scene.fetch(BASE)
    report, asked = scene.fetch(TUNED)
    assert report.fetched > NBYTES
    assert len(of_kind(asked, "encoded")) == 1


@pytest.mark.parametrize("status", [403, 410, 500, "page"])
def test_a_mirror_that_refuses_the_index_gives_plain_objects(scene: Scene, status: int | str):
    def refuse(record: Record) -> Reply | None:
        if layout.ENCODED not in record.name:
            return None
        if status == "page":
            return Reply(200, {"Content-Type": "text/html"}, body=b"<html>hello</html>")
        return Reply(int(status), body=b"")

    scene.server.before = refuse
    report, asked = scene.fetch(TUNED)
    assert report.fetched > NBYTES
    assert len(of_kind(asked, "objects")) == COUNT + 1


def damage_middle(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


WRONG_FORMS: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": damage_middle,
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "zeros": lambda data: bytes(len(data)),
    "no depth": lambda data: data[:11] + b"\x00" + data[12:],
    "another base": lambda data: data[:32] + bytes(31) + b"\x07" + data[64:],
    "gone": lambda data: b"",
}


@pytest.mark.parametrize("way", WRONG_FORMS)
def test_an_encoded_object_that_is_wrong_comes_plain(scene: Scene, way: str):
    forms = encode_state(scene.web, scene.digest(TUNED), scene.digest(BASE), gone=())
    victim = scene.refs(TUNED)["layer.1.w"].digest
    path = scene.web / layout.encoded_path(victim)
    path.write_bytes(WRONG_FORMS[way](path.read_bytes()))
    if way == "gone":
        path.unlink()
    scene.fetch(BASE)
    report, asked = scene.fetch(TUNED)
    others = sum(form.size for digest, form in forms.items() if digest != victim)
    assert others + 2 * SIZE < report.fetched < others + 2 * SIZE + forms[victim].size + 15_000
    plain = [record.name for record in of_kind(asked, "objects")]
    assert [name for name in plain if victim[2:] in name] == [layout.object_path(victim)]


def test_one_that_is_wrong_and_nowhere_plain_is_named(scene: Scene):
    encode_state(scene.web, scene.digest(TUNED), scene.digest(BASE))
    victim = scene.refs(TUNED)["layer.1.w"].digest
    path = scene.web / layout.encoded_path(victim)
    path.write_bytes(damage_middle(path.read_bytes()))
    scene.fetch(BASE)
    with pytest.raises(FetchError) as caught:
        scene.view(TUNED).fetch(TUNED)
    address = f"{scene.server.url}/{layout.encoded_path(victim)}"
    assert [reason for place, reason in caught.value.attempts if place == address]
    assert "1 tensor" in str(caught.value.found)
    assert leftovers(scene.cache) == {}


def test_another_mirror_that_has_it_right_goes_on(scene: Scene, start_recording):
    encode_state(scene.web, scene.digest(TUNED), scene.digest(BASE))
    shutil.copytree(scene.web, scene.folder / "copy")
    victim = scene.refs(TUNED)["layer.1.w"].digest
    path = scene.web / layout.encoded_path(victim)
    path.write_bytes(damage_middle(path.read_bytes()))
    other = start_recording(scene.folder / "copy")
    scene.fetch(BASE)
    scene.fetch(TUNED, other.url)
    came = [record.name for record in other.requests if record.status == 200]
    assert came == [layout.encoded_index_path(scene.digest(TUNED)), layout.encoded_path(victim)]


def test_a_damaged_base_is_named_and_what_is_built_on_it_comes_plain(scene: Scene):
    encode_state(scene.web, scene.digest(TUNED), scene.digest(BASE), gone=())
    scene.fetch(BASE)
    victim = scene.cache / layout.object_path(scene.refs(BASE)["layer.2.w"].digest)
    victim.chmod(0o644)
    victim.write_bytes(damage_middle(victim.read_bytes()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scene.view(TUNED).fetch(TUNED)
    assert [str(victim) in str(one.message) for one in caught] == [True]
    same(scene.view(TUNED).load_state_dict(TUNED), TUNED_TENSORS)


def test_an_index_that_would_bring_more_than_twice_as_much_is_not_followed(scene: Scene):
    """Bases that a mirror names are brought as far as that makes sense."""
    refs = list(scene.refs(TUNED).values())
    size = refs[0].spec.nbytes
    forms = {ref.digest: EncodedForm(size, Digest.of(bytes([i])), 1) for i, ref in enumerate(refs)}
    for digest, form in list(forms.items()):
        deeper = Digest.of(digest.encode())
        forms[form.base] = EncodedForm(size, deeper, 1)
        forms[digest] = EncodedForm(size, form.base, 2)
    write_index(scene.web, scene.digest(TUNED), forms)
    report, asked = scene.fetch(TUNED)
    assert report.fetched < NBYTES + 60_000
    assert len(of_kind(asked, "encoded")) == 1


RESUMED = weights(7, count=1, size=60 * MB)


def test_a_large_one_goes_on_where_it_was_stopped(scene: Scene):
    scene.store.save_state_dict(RESUMED, key := StateKey.parse("pytorch.net.large"))
    forms = encode_state(scene.web, scene.digest(key))
    ((digest, form),) = forms.items()
    assert form.size > LARGE
    opened = threading.Event()

    def hold(record: Record) -> Reply | None:
        if (record.range or "").startswith(f"bytes={64 * MB}-"):
            opened.wait(60)
        return None

    scene.server.before = hold
    code = "open_store(sys.argv[1], sys.argv[2]).fetch(StateKey.parse(sys.argv[3]))"
    child = start_child(code, scene.manifest(key), scene.cache, key)

    def marked() -> int:
        marks = list((scene.cache / layout.TEMPORARIES).glob(f"*{layout.DONE_SUFFIX}"))
        return sum(path.read_bytes().count(1) for path in marks)

    end = time.monotonic() + 60
    while marked() < 64 and time.monotonic() < end:
        time.sleep(0.02)
    child.kill()
    child.communicate()
    opened.set()
    scene.server.reset()
    report = scene.view(key).fetch(key)
    assert report.fetched < form.size - 60 * MB
    same(scene.view(key).load_state_dict(key), RESUMED)
    assert leftovers(scene.cache) == {}
    assert check_cache(scene.cache) == 2
    assert digest in scene.refs(key)[next(iter(RESUMED))].digest


@pytest.mark.parametrize("ranges", [True, False])
def test_a_large_one_comes_in_ranges_or_else_plain(scene: Scene, ranges: bool):
    scene.store.save_state_dict(RESUMED, key := StateKey.parse("pytorch.net.large"))
    ((_, form),) = encode_state(scene.web, scene.digest(key), gone=()).items()
    scene.server.ranges = ranges
    report = scene.view(key).fetch(key)
    same(scene.view(key).load_state_dict(key), RESUMED)
    plain = 2 * len(next(iter(RESUMED.values())))
    assert form.size <= report.fetched < form.size + 10_000 if ranges else report.fetched >= plain
    assert leftovers(scene.cache) == {}


def test_a_plan_says_what_would_travel_and_changes_nothing(scene: Scene):
    forms = encode_state(scene.web, scene.digest(TUNED), scene.digest(BASE))
    scene.fetch(BASE)
    before = sorted(scene.cache.rglob("*"))
    plan = planned_fetch(scene.view(TUNED), TUNED)
    assert (plan.missing, plan.nbytes) == (True, sum(form.size for form in forms.values()))
    assert sorted(scene.cache.rglob("*")) == before
    scene.fetch(TUNED)
    assert planned_fetch(scene.view(TUNED), TUNED).missing is False


def test_a_plan_without_mirrors_that_answer_is_that_of_the_manifest(scene: Scene):
    scene.server.before = lambda record: Reply(503)
    plan = planned_fetch(scene.view(BASE), BASE)
    assert (plan.missing, plan.nbytes) == (True, NBYTES)
    scene.server.before = None
    plan = planned_fetch(scene.view(BASE), BASE)  # of a mirror that has nothing encoded
    assert (plan.missing, plan.nbytes) == (True, NBYTES + COUNT * 4096)
