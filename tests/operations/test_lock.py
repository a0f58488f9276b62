"""`lock` finds out what a manifest does not say; `manifest_of` makes one of a store."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    StateKey,
    StateType,
    Store,
    list_pins,
    lock,
    manifest_of,
    remove_pins,
    state_digest,
    with_state_type,
)
from mlstate.errors import (
    FetchError,
    FormatError,
    ManifestError,
    ObjectNotFoundError,
    OfflineError,
    PinMismatchError,
    StateNotFoundError,
    UnpinnedStateError,
)
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from mlstate.operations.enlist import enlist, own_objects
from mlstate.operations.lock import unpinned
from tests.project.test_torchvision_manifest import DENSENETS, densenet_names
from tests.servers.recording import Reply, serve
from tests.support.fetching import check_cache, leftovers
from tests.support.models import net, same, values

SHIPPED = Path(__file__).parents[2] / "manifests" / "torchvision.toml"
A, B, C = (StateKey.parse(f"pytorch.net.{name}") for name in "abc")

TEXT = """\
# Weights of our group. Ask Ada before you change this.
version = 1

# The first one
[states."pytorch.net.b"]   # b before a: as it grew
mirrors = [
  "{base}/gone.safetensors",  # was here until 2024
  '{base}/b.safetensors',
]

[states."pytorch.net.b".meta]
license = "MIT"            # see LICENSE

[states."pytorch.net.a"]
mirrors = ["{base}/a.safetensors"]
later = {{ x = 1, y = [1, 2] }}  # of a version to come

# The last line
"""


@pytest.fixture
def site(tmp_path, recording_server):
    """A server with plain files of a and b, and a manifest that lists them unpinned."""
    recording_server.files = tmp_path / "web"
    recording_server.files.mkdir()
    for seed, name in enumerate("ab"):
        save_file(values(net(seed)), recording_server.files / f"{name}.safetensors")
    return recording_server


@pytest.fixture
def manifest(tmp_path, site):
    path = tmp_path / "manifest.toml"
    path.write_text(TEXT.format(base=site.url))
    return path


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "locked"


def expected(seed: int) -> tuple[str, int]:
    state = values(net(seed))
    return state_digest(state), sum(tensor.nbytes for tensor in state.values())


def pins(digest: str, size: int) -> str:
    return f'blake3 = "{digest}"\nsize = {size}\n'


def without_pins(text: str) -> str:
    return re.sub(r'^(blake3 = "[0-9a-f]{64}"|size = \d+)\n', "", text, flags=re.M)


def check_pinned(manifest: Path, cache: Path, *seeds: tuple[StateKey, int]) -> None:
    store = ManifestStore(manifest, cache=cache, offline=True)
    for key, seed in seeds:
        assert store.manifest.states[key].digest, store.manifest.states[key].size == expected(seed)
        assert same(store.load_state_dict(key), values(net(seed)))


def test_it_writes_digests_and_sizes_and_leaves_all_else_byte_for_byte(manifest, cache):
    before = manifest.read_text()
    found = lock(manifest, cache=cache)
    assert {key: (e.digest, e.size) for key, e in found.items()} == {A: expected(0), B: expected(1)}
    after = manifest.read_text()
    assert without_pins(after) == before
    assert all(pins(*expected(seed)) in after for seed in (0, 1))
    assert {key: Manifest.read(manifest).states[key] for key in (A, B)} == found
    check_pinned(manifest, cache, (A, 0), (B, 1))
    assert leftovers(cache) == {}


def test_what_is_pinned_is_not_asked_for_again(manifest, cache, site):
    lock(manifest, cache=cache)
    before, written = manifest.read_bytes(), manifest.stat()
    site.reset()
    assert lock(manifest, cache=cache) == {}
    assert site.requests == []
    assert (manifest.read_bytes(), manifest.stat()) == (before, written)


def test_only_the_chosen_keys_are_pinned(manifest, cache, site):
    assert lock(manifest, [A], cache=cache).keys() == {A}
    assert {record.name for record in site.requests} == {"a.safetensors"}
    states = Manifest.read(manifest).states
    assert (states[A].digest, states[B].digest) == (expected(0)[0], None)
    assert lock(manifest, [], cache=cache) == {}


@pytest.mark.parametrize("keys", [[C], [A, C]])
def test_an_unknown_key_is_an_error_before_anything_is_done(manifest, cache, site, keys):
    before = manifest.read_bytes()
    with pytest.raises(StateNotFoundError) as caught:
        lock(manifest, keys, cache=cache)
    assert caught.value.key == C
    assert manifest.read_bytes() == before
    assert site.requests == []
    assert not cache.exists()


def test_a_key_as_text_is_refused_with_the_remedy(manifest, cache):
    with pytest.raises(FormatError, match="StateKey") as caught:
        lock(manifest, ["pytorch.net.a"], cache=cache)
    assert "StateKey.parse" in caught.value.remedy


def test_a_folder_of_manifests_is_pinned_each_in_its_file(tmp_path, site, cache):
    folder = tmp_path / "manifests"
    (folder / "deep").mkdir(parents=True)
    for name, key in {"one.toml": A, "deep/two.toml": B}.items():
        mirrors = f'mirrors = ["{site.url}/{key.training_id}.safetensors"]'
        (folder / name).write_text(f'# {name}\nversion = 1\n\n[states."{key}"]\n{mirrors}\n')
    assert lock(folder, cache=cache).keys() == {A, B}
    assert (folder / "one.toml").read_text().startswith("# one.toml\n")
    check_pinned(folder / "one.toml", cache, (A, 0))
    check_pinned(folder / "deep" / "two.toml", cache, (B, 1))
    assert sorted(path.name for path in folder.rglob("*.*")) == ["one.toml", "two.toml"]


def test_one_that_fails_does_not_stop_the_others(manifest, cache, site):
    with manifest.open("a") as file:
        file.write(f'[states."pytorch.net.c"]\nmirrors = ["{site.url}/c.safetensors"]\n')
    with pytest.raises(FetchError) as caught:
        lock(manifest, cache=cache)
    assert caught.value.key == C
    check_pinned(manifest, cache, (A, 0), (B, 1))
    assert Manifest.read(manifest).states[C].digest is None
    (site.files / "a.safetensors").unlink()
    (site.files / "b.safetensors").unlink()
    manifest.write_text(without_pins(manifest.read_text()))
    with pytest.raises(FetchError, match="3 states could not be pinned; 0 were") as caught:
        lock(manifest, cache=cache)
    assert sorted(key for key, _ in caught.value.attempts) == [str(key) for key in (A, B, C)]
    assert all("404" in said for _, said in caught.value.attempts)


def test_a_state_that_somebody_edits_meanwhile_is_not_written(manifest, cache, site):
    def edit(record):
        if record.name == "a.safetensors":
            text = manifest.read_text().replace("x = 1", "x = 2")
            manifest.write_text("# Bob was here\n" + text)

    site.before = edit
    with pytest.raises(StateNotFoundError, match="changed meanwhile") as caught:
        lock(manifest, cache=cache)
    assert caught.value.key == A
    states = Manifest.read(manifest).states
    assert states[A].digest is None
    assert states[A].unknown["later"]["x"] == 2
    assert states[B].digest == expected(1)[0]
    assert "# Bob was here\n" in manifest.read_text()
    site.before = None
    assert lock(manifest, cache=cache).keys() == {A}


def test_interrupted_and_run_again_it_goes_on(manifest, cache, site):
    site.before = lambda record: Reply(404) if record.name == "a.safetensors" else None
    with pytest.raises(FetchError):
        lock(manifest, cache=cache)
    site.before = None
    site.reset()
    assert lock(manifest, cache=cache).keys() == {A}
    assert {record.name for record in site.requests} == {"a.safetensors"}
    check_pinned(manifest, cache, (A, 0), (B, 1))


def test_a_state_with_a_digest_gets_its_size(manifest, cache):
    lock(manifest, cache=cache)
    whole = manifest.read_text()
    manifest.write_text(re.sub(r"^size = \d+\n", "", whole, flags=re.M))
    assert lock(manifest, cache=cache).keys() == {A, B}
    assert manifest.read_text() == whole


def test_a_digest_that_is_not_what_the_mirror_has_stays_and_is_an_error(manifest, cache):
    text = manifest.read_text()
    wrong = text.replace(
        '[states."pytorch.net.a"]\n', f'[states."pytorch.net.a"]\nblake3 = "{"0" * 64}"\n'
    )
    manifest.write_text(wrong)
    with pytest.raises(FetchError, match="could not be fetched"):
        lock(manifest, [A], cache=cache)
    assert manifest.read_text() == wrong


def test_offline_it_says_so_and_changes_nothing(manifest, cache, site, monkeypatch):
    before = manifest.read_bytes()
    with pytest.raises(OfflineError):
        lock(manifest, [A], cache=cache, offline=True)
    monkeypatch.setenv("MLSTATE_OFFLINE", "1")
    with pytest.raises(OfflineError):
        lock(manifest, [A], cache=cache)
    assert manifest.read_bytes() == before
    assert site.requests == []


def test_more_than_allowed_is_not_taken(manifest, cache, site):
    with pytest.raises(FetchError, match="unpinned") as caught:
        lock(manifest, [A], cache=cache, max_size=10_000)
    assert "max_size" in str(caught.value)
    assert site.bytes_sent < 100_000
    assert check_cache(cache) == 0


def test_a_state_without_mirrors_cannot_be_pinned(tmp_path, cache):
    path = tmp_path / "manifest.toml"
    Manifest({A: StateEntry(A, None)}).write(path)
    with pytest.raises(ObjectNotFoundError, match="no mirrors"):
        lock(path, cache=cache)
    with pytest.raises(ManifestError, match="no manifest here"):
        lock(tmp_path / "none", cache=cache)


def test_what_is_still_to_be_pinned(manifest, cache):
    assert unpinned(manifest) == [B, A]
    lock(manifest, [A], cache=cache)
    assert unpinned(manifest) == [B]
    manifest.write_text(re.sub(r"^size = \d+\n", "", manifest.read_text(), flags=re.M))
    assert unpinned(manifest) == [B, A]


def test_states_are_taken_over_from_another_store(tmp_path, manifest, cache):
    theirs = ManifestStore(manifest, cache=cache)
    own = tmp_path / "own.toml"
    assert lock(own, [A], source=theirs, cache=cache).keys() == {A}
    assert Manifest.read(own).states.keys() == {A}
    check_pinned(own, cache, (A, 0))
    text = own.read_text()
    assert lock(own, [A], source=theirs, cache=cache) == {}
    assert own.read_text() == text
    assert lock(own, [A, B], source=theirs, cache=cache).keys() == {B}
    with pytest.raises(StateNotFoundError):
        lock(own, [C], source=theirs, cache=cache)
    assert unpinned(manifest) == [B, A]  # the other store stays as it is


def test_what_cannot_be_pinned_is_not_taken_over(tmp_path, manifest, cache, site):
    theirs, own = ManifestStore(manifest, cache=cache), tmp_path / "own.toml"
    (site.files / "a.safetensors").unlink()
    (site.files / "b.safetensors").unlink()
    with pytest.raises(FetchError):
        lock(own, [A], source=theirs, cache=cache)
    assert not own.exists()
    Manifest({}).write(own)
    before = own.read_bytes()
    with pytest.raises(FetchError):
        lock(own, [A, B], source=theirs, cache=cache)
    assert own.read_bytes() == before


def test_a_manifest_names_the_folder_of_a_store_as_seen_from_there(tmp_path):
    store = LocalStateStore(tmp_path / "deep" / "weights")
    store.save_state_dict(values(net(0)), A)
    assert own_objects(store, tmp_path / "m.toml") == ["deep/weights"]
    assert own_objects(store, tmp_path / "deep" / "m.toml") == ["weights"]
    assert own_objects(store, tmp_path / "other" / "m.toml") == [str(store.folder.resolve())]
    assert own_objects(Store(), tmp_path / "m.toml") == []
    enlist(tmp_path / "m.toml", store, objects=None)
    assert Manifest.read(tmp_path / "m.toml").objects == ("deep/weights",)
    enlist(tmp_path / "none.toml", store)
    assert Manifest.read(tmp_path / "none.toml").objects == ()


# Nobody could tell a mixture


@pytest.fixture
def two_versions(tmp_path):
    """Two versions of a state, each with many large tensors, as the bytes of plain files."""
    versions = [{f"w{n:02}": torch.full((20_000,), float(v)) for n in range(20)} for v in (1, 2)]
    found = []
    for state in versions:
        save_file(state, tmp_path / "version")
        found.append(((tmp_path / "version").read_bytes(), state_digest(state)))
    return found


def broken_off(content: bytes):
    """Half of a file, and nothing more, from a server without ranges."""
    seen = count()

    def answer(record):
        head = {"Content-Length": str(len(content))}
        replies = [
            serve(record, content, ranges=False),  # to the question for its header
            Reply(200, head, content[: len(content) // 2], close=True),
        ]
        number = next(seen)
        return replies[number] if number < len(replies) else Reply(404)

    return answer


def unpinned_manifest(path: Path, *mirrors: object) -> Path:
    parsed = tuple(parse_mirror(mirror) for mirror in mirrors)
    Manifest({A: StateEntry(A, None, mirrors=parsed)}).write(path)
    return path


@pytest.mark.parametrize("summed", [True, False])
def test_what_a_mirror_sent_before_it_failed_is_not_mixed_with_the_next(
    tmp_path, recording_server, two_versions, cache, summed
):
    (old, _), (new, digest) = two_versions
    broken = broken_off(old)
    recording_server.before = lambda record: broken(record) if record.name == "old" else None
    recording_server.files["new"] = new
    mirror = {"url": f"{recording_server.url}/new"}
    if summed:
        mirror["sha256"] = hashlib.sha256(new).hexdigest()
    path = unpinned_manifest(tmp_path / "m.toml", f"{recording_server.url}/old", mirror)
    assert lock(path, cache=cache)[A].digest == digest
    assert sum(r.bytes_sent for r in recording_server.requests if r.name == "old") > len(old) // 3
    assert leftovers(cache) == {}


@pytest.mark.parametrize("summed", [True, False])
def test_what_an_earlier_run_left_is_not_mixed_with_a_newer_file(
    tmp_path, recording_server, two_versions, cache, summed
):
    (old, _), (new, digest) = two_versions
    mirror = {"url": f"{recording_server.url}/m"}
    if summed:
        mirror["sha256"] = hashlib.sha256(new).hexdigest()
    path = unpinned_manifest(tmp_path / "m.toml", mirror)
    recording_server.before = broken_off(old)
    with pytest.raises(FetchError):
        lock(path, cache=cache)
    recording_server.before, recording_server.files["m"] = None, new
    assert lock(path, cache=cache)[A].digest == digest
    assert check_cache(cache) == 1 + 1  # all 20 tensors are the same


@pytest.mark.parametrize("format_", ["safetensors", "torch"])
def test_a_file_with_another_sum_is_not_pinned(tmp_path, site, cache, format_):
    torch.save(values(net(0)), site.files / "a.pth")
    name = {"safetensors": "a.safetensors", "torch": "a.pth"}[format_]
    right = hashlib.sha256((site.files / name).read_bytes()).hexdigest()
    mirror = {"url": f"{site.url}/{name}", "format": format_}
    path = unpinned_manifest(tmp_path / "m.toml", mirror | {"sha256": "0" + right[1:8]})
    if not right.startswith("0"):
        with pytest.raises(FetchError, match="SHA-256"):
            lock(path, cache=cache)
        assert check_cache(cache) == 0
        assert leftovers(cache) == {}
    path.unlink()
    assert (
        lock(unpinned_manifest(path, mirror | {"sha256": right}), cache=cache)[A].digest
        == expected(0)[0]
    )


# What is shipped


class Shaped(nn.Module):
    """A module whose state has these names, as torchvision's model of them would."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            module.register_buffer(last, torch.zeros_like(tensor))


def resnet_names() -> list[str]:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    blocks = [f"layer{layer}.{block}" for layer in range(1, 5) for block in range(2)]
    names = ["conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{entry}" for entry in norm)]
    for block in blocks:
        names += [f"{block}.conv{n}.weight" for n in (1, 2)]
        names += [f"{block}.bn{n}.{entry}" for n in (1, 2) for entry in norm]
    return names


def published(key: StateKey, *, old: bool) -> dict[str, torch.Tensor]:
    """A state with the names of torchvision's model: as its file has them, or as the model."""
    name = key.state_type.architecture
    names = densenet_names(DENSENETS[name], old=old) if name in DENSENETS else resnet_names()
    generator = torch.Generator().manual_seed(len(str(key)))
    return {name: torch.randn(5, 5, generator=generator) for name in names}


def test_the_shipped_states_of_torchvision_are_pinned_from_files_of_their_shape(
    tmp_path, recording_server, cache
):
    text = SHIPPED.read_text()
    shipped = Manifest.read(SHIPPED)
    for key, entry in shipped.states.items():
        name = entry.mirrors[0].urls[0].rpartition("/")[2]
        content = published(key, old=True)
        torch.save(
            content, tmp_path / "file.pth", _use_new_zipfile_serialization=len(name) % 2 == 0
        )
        data = (tmp_path / "file.pth").read_bytes()
        recording_server.files[f"models/{name}"] = data
        text = text.replace(
            f'"{entry.mirrors[0].sha256}"', f'"{hashlib.sha256(data).hexdigest()[:8]}"'
        )
    text = text.replace("https://download.pytorch.org", recording_server.url)
    text = text.replace("version = 1\n", "version = 1  # one\n\n# Dense ones first\n", 1)
    path = tmp_path / "torchvision.toml"
    path.write_text(text)
    densenet = StateKey.parse("pytorch.densenet121.cls1000.imagenet")
    with pytest.raises(UnpinnedStateError) as caught:
        ManifestStore(path, cache=cache, pins="strict").load_state_dict(densenet)
    assert "mlstate.lock(" in caught.value.remedy
    found = lock(path, cache=cache)
    assert found.keys() == shipped.states.keys()
    after = path.read_text()
    assert re.sub(r"\n+", "\n", without_pins(after)) == re.sub(r"\n+", "\n", text)
    assert "# Dense ones first" in after
    store = ManifestStore(path, cache=cache, offline=True)
    assert store.get_state_keys() == sorted(shipped.states)
    for key in (densenet, StateKey.parse("pytorch.resnet50.cls1000.imagenet-v2")):
        state = published(key, old=False)
        model = with_state_type(Shaped(state), key.state_type)
        result = store.load(model, key)
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        assert result.digest == state_digest(state) == found[key].digest
        assert same(values(model), state)


def test_an_unpinned_state_names_lock_as_the_remedy(manifest, cache):
    for use in ("digest", "load_state_dict", "fetch"):
        with pytest.raises(UnpinnedStateError) as caught:
            getattr(ManifestStore(manifest, cache=cache), use)(A)
        assert "mlstate.lock(" in caught.value.remedy
        assert caught.value.path == str(manifest)
    resnet = StateType("pytorch", "resnet18", ("cls1000",))
    [key] = Store().get_state_keys(resnet)
    with pytest.raises(UnpinnedStateError) as caught:
        Store(pins="strict").load(with_state_type(nn.Linear(1, 1), resnet), key)
    assert "mlstate.lock(" in caught.value.remedy


# And back


def test_a_manifest_of_a_store_is_all_that_another_machine_needs(tmp_path, recording_server, cache):
    store = LocalStateStore(tmp_path / "web" / "weights")
    for seed, key in enumerate((A, B)):
        meta = {"license": "MIT", "epoch": seed}
        store.save_state_dict(
            values(net(seed)), key, files={"labels.json": b"[%d]" % seed}, meta=meta
        )
    recording_server.files = tmp_path / "web"
    manifest_of(store, objects=[f"{recording_server.url}/weights"]).write(tmp_path / "m.toml")
    assert lock(tmp_path / "m.toml", cache=cache) == {}  # it is
    there = ManifestStore(tmp_path / "m.toml", cache=cache)
    assert there.get_state_keys(A.state_type) == [A, B]
    for seed, key in enumerate((A, B)):
        model = net(7)
        assert there.load(model, key).digest == store.digest(key)
        assert same(values(model), values(net(seed)))
        assert there.files(key)["labels.json"] == b"[%d]" % seed
        assert there.meta(key) == {"license": "MIT", "epoch": seed}
    recording_server.close()
    shutil.rmtree(tmp_path / "web")
    again = ManifestStore(tmp_path / "m.toml", cache=cache, offline=True)
    assert same(again.load_state_dict(B), values(net(1)))


def test_a_manifest_of_some_states_has_these_alone(tmp_path):
    store = LocalStateStore(tmp_path / "weights")
    for key in (A, B):
        store.save_state_dict(values(net(1)), key)
    found = manifest_of(store, [B], objects=("weights",))
    assert found.states.keys() == {B}
    found.write(tmp_path / "m.toml")
    got = ManifestStore(tmp_path / "m.toml", cache=tmp_path / "cache").load_state_dict(B)
    assert same(got, values(net(1)))
    with pytest.raises(StateNotFoundError):
        manifest_of(store, [C])


# From the pins of first uses


@pytest.fixture
def used(site, tmp_path):
    """A manifest whose states have whole sums; the first use has pinned a, and not b."""
    said = []
    for name in "ab":
        path = site.files / f"{name}.safetensors"
        digits = hashlib.sha256(path.read_bytes()).hexdigest()
        mirror = f'{{url = "{site.url}/{path.name}", sha256 = "{digits}"}}'
        said.append(f'[states."pytorch.net.{name}"]  # {name}\nmirrors = [{mirror}]\n')
    manifest = tmp_path / "used.toml"
    manifest.write_text("version = 1\n\n" + "\n".join(said))
    assert ManifestStore(manifest, cache=tmp_path / "cache").fetch(A).pinned_now
    site.reset()
    return manifest


def test_pins_become_entries_that_do_where_pins_are_not_asked(used, site, tmp_path):
    [(key, entry)] = lock(used, from_pins=True).items()
    assert (key, entry.digest) == (A, state_digest(values(net(0))))
    assert site.requests == []
    assert "# a\n" in used.read_text()
    assert Manifest.read(used).states[A] == entry
    strict = ManifestStore(used, cache=tmp_path / "cache", pins="strict", offline=True)
    model = net(3)
    assert not strict.load(model, A).pinned_now
    assert same(values(model), values(net(0)))
    assert unpinned(used) == [B]
    assert lock(used, from_pins=True) == {}


def test_a_key_without_a_pin_is_refused_and_nothing_is_written(used, site):
    before = used.read_bytes()
    with pytest.raises(UnpinnedStateError, match="no pin") as caught:
        lock(used, [A, B], from_pins=True)
    assert caught.value.key == B
    assert used.read_bytes() == before
    with pytest.raises(StateNotFoundError):
        lock(used, [C], from_pins=True)
    assert site.requests == []


def test_states_of_another_store_are_taken_over_with_their_pins(used, site, tmp_path):
    new = tmp_path / "new.toml"
    source = ManifestStore(used, cache=tmp_path / "cache")
    assert list(lock(new, source=source, from_pins=True)) == [A]
    assert list(Manifest.read(new).states) == [A]
    assert lock(new, source=source, from_pins=True) == {}
    assert site.requests == []


def test_lock_refuses_other_weights_than_those_that_are_pinned(used, site, tmp_path):
    pins = Path(os.environ["XDG_CONFIG_HOME"]) / "mlstate" / "pins.toml"
    [pin] = list_pins()
    pins.write_text(pins.read_text().replace(pin.digest, "0" * 64))  # as if these were others
    before = used.read_bytes()
    with pytest.raises(PinMismatchError) as caught:
        lock(used, [A], cache=tmp_path / "another")
    assert (caught.value.path, caught.value.line) == (str(pins), pin.line)
    assert used.read_bytes() == before
    remove_pins([A])  # as the remedy has it
    assert list(lock(used, [A], cache=tmp_path / "another")) == [A]


def test_what_is_taken_over_without_from_pins_is_fetched_and_compared(used, site, tmp_path):
    source = ManifestStore(used, cache=tmp_path / "cache")
    [(key, entry)] = lock(
        tmp_path / "new.toml", [A], source=source, cache=tmp_path / "another"
    ).items()
    assert (key, entry.digest) == (A, list_pins()[0].digest)
    assert site.bytes_sent > 0
