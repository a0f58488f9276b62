"""`verify(mirrors=True)`: each mirror of each state has what it should, or its fault is named."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from mlstate import LocalStateStore, Manifest, MemoryStateStore, StateKey, describe, verify
from mlstate.digests import Digest
from mlstate.errors import FormatError, OfflineError
from mlstate.locations import UnusableMirror, parse_mirror
from mlstate.manifests import FileEntry, StateEntry
from mlstate.operations.verify.report import VerifyReport
from tests.servers.ports import free_port
from tests.servers.recording import Reply
from tests.support.buckets import bucket_store, contents, put
from tests.support.fetching import FILES, KEY, TENSORS, manifest_store, publish
from tests.support.github_stores import TAG, data_names, github_store

OTHER = StateKey.parse("pytorch.net.b")


@pytest.fixture
def published(tmp_path):
    """Two states with a tensor in common, as a store; the first also as files of many kinds."""
    found = publish(tmp_path / "web", KEY, TENSORS, FILES)
    torch.save(TENSORS, found.folder / "model.pt")
    for number, name in enumerate(TENSORS):
        save_file({name: TENSORS[name]}, found.folder / f"part-{number}.safetensors")
    store = LocalStateStore(found.folder / "store")
    store.save_state_dict({**TENSORS, "l1.w": TENSORS["l1.w"] + 1}, OTHER)
    return found


def entries(published) -> dict[StateKey, StateEntry]:
    store = LocalStateStore(published.folder / "store")
    return {key: store.catalog.recorded(key) for key in (KEY, OTHER)}


def view_of(published, *states: StateEntry, **options):
    folder = published.folder.parent
    path = folder / f"{len(list(folder.iterdir()))}.toml"
    Manifest({entry.key: entry for entry in states}).write(path)
    return manifest_store(path, folder / "cache", **options)


def with_mirrors(published, *mirrors: object, **changes: object) -> StateEntry:
    parsed = tuple(map(parse_mirror, mirrors))
    return replace(entries(published)[KEY], mirrors=parsed, **changes)


def reasons(report: VerifyReport) -> list[str | None]:
    return [check.reason for check in report.mirrors]


def test_objects_are_asked_for_once_and_by_size_alone(published, start_recording):
    server = start_recording(published.folder)
    states = [replace(e, objects=(f"{server.url}/store",)) for e in entries(published).values()]
    view = view_of(published, *states)
    report = verify(view, mirrors=True)
    assert (report.ok, reasons(report), report.states) == (True, [None, None], (KEY, OTHER))
    tensors = sum(path.stat().st_size for path in (published.folder / "store").rglob("objects/*/*"))
    assert server.bytes_sent < tensors / 10
    asked = Counter(record.path for record in server.requests)
    assert max(asked.values()) <= 2  # a state object is read, and its size compared
    assert len(asked) == 6  # two state objects, three tensors, a file
    assert not (published.folder.parent / "cache").exists()
    server.reset()
    deep = verify(view, mirrors=True, deep=True)
    assert (deep.ok, deep.nbytes > tensors) == (True, True)
    assert server.bytes_sent >= tensors


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_what_a_copy_of_a_store_lacks_or_has_wrong_is_named(published, how, deep):
    states = [replace(e, objects=("web/store",)) for e in entries(published).values()]
    view = view_of(published, *states)
    path = published.folder / published.path_of(_digest(published))
    path.chmod(0o644)
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if how == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    report = verify(view, mirrors=True, deep=deep)
    if how == "flipped" and not deep:
        assert report.ok  # which is what deep is for
        return
    (finding,) = report.findings
    assert (finding.keys, finding.kind, finding.path) == ((KEY,), "faulty", "web/store")
    assert "tensor 'l1.w'" in finding.found
    assert verify(view, [OTHER], mirrors=True, deep=deep).ok


def _digest(published) -> Digest:
    found = describe(LocalStateStore(published.folder / "store"), KEY).tensors
    return Digest(next(tensor.digest for tensor in found if tensor.name == "l1.w"))


KINDS = {
    "safetensors": "web/model.safetensors",
    "torch": {"url": "web/model.pt", "format": "torch"},
    "parts": {"urls": [f"web/part-{number}.safetensors" for number in range(len(TENSORS))]},
}


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_weights(published, kind, deep):
    entry = with_mirrors(published, KINDS[kind], files={})
    view = view_of(published, entry)
    assert verify(view, [KEY], mirrors=True, deep=deep).ok
    for path in published.folder.glob("*.pt" if kind == "torch" else "*.safetensors"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    report = verify(view, [KEY], mirrors=True, deep=deep)
    assert [finding.kind for finding in report.findings] == ["faulty"]
    known = replace(entry, objects=("web/store",))
    (faulty,) = verify(view_of(published, known), mirrors=True, deep=deep).findings
    assert faulty.path.startswith("web/")  # the copy of the store is right, and says how long


def test_a_server_without_ranges_is_asked_for_no_more_than_the_size(published, start_recording):
    server = start_recording(published.folder, ranges=False)
    entry = with_mirrors(published, f"{server.url}/model.safetensors", files={})
    known = replace(entry, objects=("web/store",))
    assert verify(view_of(published, known), mirrors=True).ok
    save_file({"l1.w": torch.ones(2)}, published.folder / "model.safetensors")
    (finding,) = verify(view_of(published, known), mirrors=True).findings
    assert "it is cut short" in finding.found


def test_a_checkpoint_of_another_state_is_told_by_its_structure(published):
    torch.save({**TENSORS, "l1.w": torch.ones(2)}, published.folder / "model.pt")
    entry = with_mirrors(published, KINDS["torch"], files={}, objects=("web/store",))
    (finding,) = verify(view_of(published, entry), mirrors=True).findings
    assert "tensor 'l1.w' is another" in finding.found


def test_a_file_of_another_state_is_told_by_its_header(published):
    save_file({"l1.w": torch.ones(2)}, published.folder / "other.safetensors")
    entry = with_mirrors(published, "web/other.safetensors", files={})
    (finding,) = verify(view_of(published, entry), mirrors=True).findings
    assert "another state" in finding.found
    entry = replace(entry, objects=("web/store",))
    (finding,) = verify(view_of(published, entry), mirrors=True).findings
    assert "it lacks tensor 'l2.w'" in finding.found


def test_flipped_bytes_of_a_file_are_found_by_reading_all(published):
    path = published.folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    view = view_of(published, with_mirrors(published, "web/model.safetensors", files={}))
    assert verify(view, mirrors=True).ok
    (finding,) = verify(view, mirrors=True, deep=True).findings
    assert finding.kind == "faulty"


def test_a_dead_server_is_waited_for_once_and_named_for_each_state(published, start_recording):
    server = start_recording(published.folder, before=lambda record: Reply(503))
    dead = f"http://127.0.0.1:{free_port()}/store"
    states = [
        replace(entry, objects=(dead, "web/store", f"{server.url}/store"))
        for entry in entries(published).values()
    ]
    report = verify(view_of(published, *states, attempts=1), mirrors=True)
    assert [check.reason is None for check in report.mirrors] == [False, True, False] * 2
    assert {check.mirror: check.reason for check in report.mirrors}[dead] == (
        "the server cannot be reached"
    )
    assert [finding.path for finding in report.findings].count(dead) == 2


def test_files_beside_the_weights_have_mirrors_of_their_own(published):
    (published.folder / "labels.json").write_bytes(FILES["labels.json"])
    mirror = parse_mirror("web/labels.json")
    digest = Digest.of(FILES["labels.json"])
    entry = with_mirrors(published, files={"labels.json": FileEntry(digest, (mirror,))})
    view = view_of(published, entry)
    report = verify(view, mirrors=True, deep=True)
    assert [(check.what, check.reason) for check in report.mirrors] == [("labels.json", None)]
    (published.folder / "labels.json").write_bytes(b"[1, 3]")
    assert verify(view, mirrors=True).ok
    assert not verify(view, mirrors=True, deep=True).ok
    (published.folder / "labels.json").unlink()
    assert not verify(view, mirrors=True).ok


def test_what_lists_no_mirror_is_a_finding_where_it_is_asked_for(published, tmp_path):
    view = view_of(published, with_mirrors(published))
    assert verify(view, mirrors=True).unmirrored == (KEY,)
    assert verify(view, mirrors=True).ok
    for named in (verify(view, [KEY], mirrors=True), verify(view, mirrors=True, strict=True)):
        assert [finding.kind for finding in named.findings] == ["unchecked"]
    memory = MemoryStateStore()
    memory.save_state_dict(TENSORS, KEY)
    assert verify(memory, mirrors=True).unmirrored == (KEY,)


def test_a_mirror_that_this_version_does_not_know_is_named(published):
    entry = with_mirrors(published, "ftp://example.org/a.safetensors", files={})
    assert isinstance(entry.mirrors[0], UnusableMirror)
    (finding,) = verify(view_of(published, entry), mirrors=True).findings
    assert "unknown scheme" in finding.found


def test_an_unpinned_state_is_looked_for(published):
    entry = with_mirrors(published, "web/model.safetensors", digest=None, size=None, files={})
    report = verify(view_of(published, entry), mirrors=True)
    assert (reasons(report), report.unpinned) == ([None], (KEY,))
    (published.folder / "model.safetensors").unlink()
    assert not verify(view_of(published, entry), mirrors=True).ok


def test_offline_is_an_error_unless_all_is_on_this_machine(published, monkeypatch):
    monkeypatch.setenv("MLSTATE_OFFLINE", "1")
    here = replace(entries(published)[KEY], objects=("web/store",))
    there = replace(entries(published)[KEY], objects=("https://example.org/store",))
    assert verify(view_of(published, here, offline=True), mirrors=True).ok
    with pytest.raises(OfflineError):
        verify(view_of(published, there, offline=True), mirrors=True)


def test_arguments_that_contradict_each_other(published):
    for wrong in ({"deep": True}, {"mirrors": True, "repair": True}):
        with pytest.raises(FormatError):
            verify(MemoryStateStore(), **wrong)


def test_a_bucket_and_a_release_are_asked_for_their_own(moto, github, tmp_path):
    bucket = moto.new_bucket()
    remote = bucket_store(moto, bucket, cache=tmp_path / "one")
    remote.save_state_dict(TENSORS, KEY, files=FILES)
    for deep in (False, True):
        assert verify(remote, [KEY], mirrors=True, deep=deep).ok
    gone = max(contents(moto, bucket).items(), key=lambda item: len(item[1]))[0]
    moto.boto.delete_object(Bucket=bucket, Key=gone)
    (finding,) = verify(remote, [KEY], mirrors=True).findings
    assert finding.path == f"s3://{bucket}/models"
    many = {f"t{number}": torch.full((5000,), float(number)) for number in range(20)}
    remote.save_state_dict(many, OTHER)  # so many that the bucket is listed
    assert verify(remote, [OTHER], mirrors=True).ok
    (name, data) = min(contents(moto, bucket).items(), key=lambda item: abs(len(item[1]) - 24_096))
    put(moto, bucket, name, data[:-1])
    (finding,) = verify(remote, [OTHER], mirrors=True).findings
    assert "another size" in finding.found
    release = github_store(tmp_path / "two")
    release.save_state_dict(TENSORS, KEY, files=FILES)
    for deep in (False, True):
        assert verify(release, [KEY], mirrors=True, deep=deep).ok
    (name,) = [name for name in data_names(github, KEY) if name.endswith(".safetensors")]
    asset = github.repos["org/models"].tagged(TAG).named(name)
    asset.data = asset.data[:-1]
    assert not verify(release, [KEY], mirrors=True).ok


def test_nothing_is_left_behind(published, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    view = view_of(published, with_mirrors(published, "web/model.safetensors", files={}))
    verify(view, mirrors=True, deep=True)
    assert list((tmp_path / "temporary").iterdir()) == []
