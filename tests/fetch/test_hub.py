"""The Hugging Face hub as a mirror: resolved once, its cache used, its token sent to it alone."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mlstate import Manifest, ManifestStore, StateKey, adopt, lock, state_digest
from mlstate.digests import Digest
from mlstate.errors import FetchError, OfflineError
from mlstate.locations import parse_mirror
from mlstate.manifests import FileEntry, StateEntry
from tests.servers.replies import Reply
from tests.support.fetching import check_cache, leftovers, manifest_store
from tests.support.models import same

pytestmark = pytest.mark.usefixtures("hub_only")
KEY = StateKey.parse("pytorch.bert.a")
CONFIG, TOKENIZER = b'{"model_type": "bert"}', b'{"version": "1.0"}'
BESIDE = {
    "config.json": CONFIG,
    "tokenizer.json": TOKENIZER,
    "1_Pooling/config.json": b"{}",
    "README.md": b"# A model",
    ".gitattributes": b"*.safetensors filter=lfs",
    "onnx/model.onnx": b"onnx",
}


def tensors(seed: int = 0, *, layers: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer in range(layers):
        state[f"{layer}.weight"] = torch.randn(120, 120, generator=generator)
        state[f"{layer}.bias"] = torch.randn(120, generator=generator)
    return state


def single(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {"model.safetensors": save(state)}


def sharded(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    names = sorted(state)
    shards = {
        f"model-0000{n}-of-00002.safetensors": {name: state[name] for name in names[n - 1 :: 2]}
        for n in (1, 2)
    }
    places = {name: shard for shard, content in shards.items() for name in content}
    index = json.dumps({"metadata": {}, "weight_map": places}).encode()
    files = {shard: save(content) for shard, content in shards.items()}
    return {**files, "model.safetensors.index.json": index}


def pickled(state: dict[str, torch.Tensor], tmp_path: Path) -> dict[str, bytes]:
    torch.save(state, tmp_path / "model")
    return {"pytorch_model.bin": (tmp_path / "model").read_bytes()}


def entry_of(state, *mirrors, files=()) -> StateEntry:
    size = sum(tensor.nbytes for tensor in state.values())
    parsed = tuple(parse_mirror(mirror) for mirror in mirrors)
    return StateEntry(KEY, Digest(state_digest(state)), size, parsed, dict(files))


def store_of(folder: Path, entry: StateEntry, cache: str = "cache", **options) -> ManifestStore:
    folder.mkdir(exist_ok=True)
    Manifest({entry.key: entry}).write(folder / "manifest.toml")
    return manifest_store(folder / "manifest.toml", folder / cache, **options)


def check_fetched(store: ManifestStore, state: dict[str, torch.Tensor]) -> None:
    store.fetch(KEY)
    assert same(store.load_state_dict(KEY), state)
    assert check_cache(store.objects.own.root) > 0
    assert leftovers(store.objects.own.root) == {}


def refused(store: ManifestStore) -> str:
    with pytest.raises(FetchError) as caught:
        store.fetch(KEY)
    assert "hf_" not in str(caught.value)
    assert "Signature" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("resolve_cache", [True, False])
@pytest.mark.parametrize(
    "address",
    [
        "hf://org/model@{commit}/model.safetensors",
        "hf://org/model@main/model.safetensors",
        "hf://org/model/model.safetensors",
        "hf://org/model@refs%2Fpr%2F1/model.safetensors",
        "hf://org/model@{commit}",
        "hf://org/model@main",
        "hf://org/model",
    ],
)
def test_a_state_comes_from_every_form_of_address(hub, tmp_path, address, resolve_cache):
    hub.resolve_cache = resolve_cache
    state = tensors()
    hub.add("org/model", {**BESIDE, **single(state)}, revision="refs/pr/1")
    commit = hub.add("org/model", {**BESIDE, **single(state)})
    check_fetched(store_of(tmp_path, entry_of(state, address.format(commit=commit))), state)
    assert len(hub.resolves) == 1
    asked = [record for record in hub.api.requests if record not in hub.resolves]
    assert len(asked) == (0 if "{commit}/" in address else 1)


@pytest.mark.parametrize(
    "address",
    [
        "hf://org/model@{commit}",
        "hf://org/model",
        "hf://org/model/model.safetensors.index.json",
    ],
)
def test_a_sharded_model_comes_by_its_index(hub, tmp_path, address):
    state = tensors()
    commit = hub.add("org/model", {**BESIDE, **sharded(state)})
    check_fetched(store_of(tmp_path, entry_of(state, address.format(commit=commit))), state)
    assert sorted({record.name.rpartition("/")[2] for record in hub.resolves}) == sorted(
        sharded(state)
    )
    assert len(hub.resolves) == 3  # each file once


def test_a_repository_of_a_pickled_model_needs_its_format(hub, tmp_path):
    state = tensors()
    hub.add("org/model", {**BESIDE, **pickled(state, tmp_path)})
    mirror = {"url": "hf://org/model", "format": "torch"}
    check_fetched(store_of(tmp_path / "a", entry_of(state, mirror)), state)
    said = refused(store_of(tmp_path / "b", entry_of(state, "hf://org/model")))
    assert "no weights of this format" in said
    assert "pytorch_model.bin" in said


@pytest.mark.parametrize(
    "address", ["hf://org/model", "hf://org/model/pytorch_model.bin.index.json"]
)
def test_the_shards_of_a_pickled_model_come_by_its_index(hub, tmp_path, address):
    state = tensors()
    names = sorted(state)
    shards = {f"pytorch_model-0000{n}-of-00002.bin": names[n - 1 :: 2] for n in (1, 2)}
    places = {name: shard for shard, inside in shards.items() for name in inside}
    files = {"pytorch_model.bin.index.json": json.dumps({"weight_map": places}).encode()}
    for shard, inside in shards.items():
        files[shard] = pickled({name: state[name] for name in inside}, tmp_path)[
            "pytorch_model.bin"
        ]
    hub.add("org/model", {**BESIDE, **files})
    check_fetched(store_of(tmp_path, entry_of(state, {"url": address, "format": "torch"})), state)


def test_a_signed_address_is_asked_for_once_for_all_ranges(hub, tmp_path):
    state = {f"{n:02}": torch.full((2_500_000,), float(n)) for n in range(8)}
    hub.add("org/model", single(state))
    check_fetched(store_of(tmp_path, entry_of(state, "hf://org/model/model.safetensors")), state)
    assert len(hub.resolves) == 1
    assert len(hub.cdn.requests) == 1 + 8  # the header, and what is too long to be joined


def test_a_signed_address_that_expired_is_asked_for_again(hub, tmp_path):
    state = {f"{n:02}": torch.full((2_500_000,), float(n)) for n in range(8)}
    hub.add("org/model", single(state))
    ended: list[object] = []

    def end(record):
        if len(hub.cdn.requests) == 4 and not ended:
            ended.append(record)
            hub.expire()
        return deliver(record)

    deliver, hub.cdn.before = hub.cdn.before, end
    store = store_of(tmp_path, entry_of(state, "hf://org/model/model.safetensors"), connections=1)
    check_fetched(store, state)
    assert ended
    assert len(hub.resolves) == 2
    assert [record.status for record in hub.cdn.requests].count(403) == 1


def test_a_revision_is_resolved_once_and_all_files_are_of_that_commit(hub, tmp_path):
    state = tensors()
    commit = hub.add("org/model", {**BESIDE, **sharded(state)})
    answer = hub.api.before

    def move_on(record):
        reply = answer(record)
        if "/api/models/" in record.path:  # right after somebody asked what main is
            hub.add("org/model", {**BESIDE, **single(tensors(1))})
        return reply

    hub.api.before = move_on
    check_fetched(store_of(tmp_path, entry_of(state, "hf://org/model@main")), state)
    assert all(f"/resolve/{commit}/" in record.path for record in hub.resolves)
    assert sum("/api/models/" in record.path for record in hub.api.requests) == 1


def test_a_private_repository_needs_the_token_which_goes_to_the_hub_alone(
    hub, tmp_path, monkeypatch
):
    state = tensors()
    hub.add("org/private", {**BESIDE, **single(state)}, private=True)
    store = store_of(tmp_path, entry_of(state, "hf://org/private"))
    assert "HF_TOKEN" in refused(store)
    monkeypatch.setenv("HF_TOKEN", hub.outsider)
    assert "404" in refused(store)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    check_fetched(store, state)
    assert hub.leaked == []
    assert hub.cdn.requests
    assert hub.api.requests[-1].authorization == f"Bearer {hub.token}"


def test_a_gated_repository_says_what_to_do(hub, tmp_path, monkeypatch):
    state = tensors()
    hub.add("org/gated", {**BESIDE, **single(state)}, gated=True)
    store = store_of(tmp_path, entry_of(state, "hf://org/gated/model.safetensors"))
    assert "accept its terms" in refused(store)
    monkeypatch.setenv("HF_TOKEN", hub.outsider)
    assert "accept its terms" in refused(store)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    check_fetched(store, state)


def test_a_hub_that_has_enough_of_us_is_waited_for(hub, tmp_path):
    state = tensors()
    hub.add("org/model", {**BESIDE, **sharded(state)})
    hub.limit, hub.window = 2, 1
    check_fetched(store_of(tmp_path, entry_of(state, "hf://org/model")), state)
    assert [record.status for record in hub.resolves].count(429) >= 1


@pytest.mark.parametrize(
    "address",
    [
        "hf://org/none/model.safetensors",
        "hf://org/model@v9/model.safetensors",
        "hf://org/model/gone.safetensors",
        "hf://org/model@v9",
        "hf://org/none",
        "hf://org",
        "hf://org/model@main/../x",
    ],
)
def test_what_is_not_on_the_hub_is_an_error_and_the_next_mirror_does(hub, tmp_path, address):
    state = tensors()
    hub.add("org/model", single(state))
    assert refused(store_of(tmp_path / "a", entry_of(state, address)))
    store = store_of(tmp_path / "b", entry_of(state, address, "hf://org/model"))
    check_fetched(store, state)


def test_what_the_cache_of_the_hub_has_needs_no_network(hub, tmp_path):
    from huggingface_hub import hf_hub_download

    state = tensors()
    commit = hub.add("org/model", {**BESIDE, **single(state)})
    for name in ("model.safetensors", "config.json"):
        hf_hub_download("org/model", name, endpoint=hub.url, token=False)
    hub.reset()
    address = f"hf://org/model@{commit}"
    file = FileEntry(Digest.of(CONFIG), (parse_mirror(f"{address}/config.json"),))
    entry = entry_of(state, f"{address}/model.safetensors", files={"config.json": file})
    store = store_of(tmp_path, entry, offline=True)
    check_fetched(store, state)
    assert store.files(KEY)["config.json"] == CONFIG
    main = entry_of(state, "hf://org/model@main/model.safetensors")
    check_fetched(store_of(tmp_path / "main", main, offline=True), state)
    assert hub.api.requests == hub.cdn.requests == []
    # Online a branch may have moved on: its name is asked for, and what is there still read here.
    hub.add("org/model", single(tensors(1)), revision="other")
    check_fetched(store_of(tmp_path / "online", main), state)
    assert [record.path for record in hub.api.requests] == ["/api/models/org/model/revision/main"]
    assert hub.cdn.requests == []


@pytest.mark.parametrize("named", ["a file", "the repository"])
def test_an_address_at_a_commit_in_that_cache_is_adopted_offline(hub, tmp_path, named):
    from huggingface_hub import constants

    state, commit = tensors(), "c" * 40
    snapshot = Path(constants.HF_HUB_CACHE) / "models--org--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name, content in {**single(state), "config.json": CONFIG}.items():
        (snapshot / name).write_bytes(content)
    address = f"hf://org/model@{commit}" + ("/model.safetensors" if named == "a file" else "")
    report = adopt(address, KEY, tmp_path / "m.toml", mirror=True, offline=True)
    assert report.digest == state_digest(state)
    assert report.files == (() if named == "a file" else ("config.json",))
    assert hub.api.requests == []


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_of_another_mirror_is_found_in_that_cache_by_its_sum(
    hub, tmp_path, start_recording, damaged
):
    from huggingface_hub import constants

    state = tensors()
    content = save(state)
    digits = hashlib.sha256(content).hexdigest()
    blob = Path(constants.HF_HUB_CACHE) / "models--org--model" / "blobs" / digits
    blob.parent.mkdir(parents=True)
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damaged else content)
    server = start_recording({"x.safetensors": content})
    mirror = {"url": server.url + "/x.safetensors", "sha256": digits}
    check_fetched(store_of(tmp_path, entry_of(state, mirror)), state)
    assert bool(server.requests) == damaged


def test_offline_without_that_cache_is_an_error_of_its_own(hub, tmp_path, monkeypatch):
    state = tensors()
    commit = hub.add("org/model", single(state))
    for address in (f"hf://org/model@{commit}/model.safetensors", "hf://org/model"):
        with pytest.raises(OfflineError):
            store_of(tmp_path, entry_of(state, address), offline=True).fetch(KEY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError):
        store_of(tmp_path, entry_of(state, address)).fetch(KEY)
    assert hub.api.requests == []


@pytest.mark.parametrize("shape", [single, sharded])
def test_lock_pins_commit_weights_and_what_lies_beside_them(hub, tmp_path, shape):
    state = tensors()
    commit = hub.add("org/model", {**BESIDE, **shape(state)})
    path = tmp_path / "manifest.toml"
    head = "# Ours\nversion = 1\n\n"
    path.write_text(head + f'[states."{KEY}"]\nmirrors = ["hf://org/model"]  # from the hub\n')
    [pinned] = lock(path, cache=tmp_path / "first").values()
    assert pinned.digest == state_digest(state)
    assert pinned.size == sum(tensor.nbytes for tensor in state.values())
    [mirror] = pinned.mirrors
    weights = "model.safetensors" if shape is single else "model.safetensors.index.json"
    assert mirror.urls == (f"hf://org/model@{commit}/{weights}",)
    beside = {**BESIDE, **{name: data for name, data in shape(state).items() if "index" in name}}
    beside = {name: beside[name] for name in pinned.files}
    assert beside.keys() == {
        "README.md",
        "config.json",
        "tokenizer.json",
        "1_Pooling/config.json",
        *([weights] if shape is sharded else []),  # of which a folder of shards is made again
    }
    assert path.read_text().startswith(head)
    # The branch moves on; another machine gets what was pinned, with its files.
    hub.add("org/model", {"config.json": b"{}", **shape(tensors(1))})
    hub.reset()
    store = manifest_store(path, tmp_path / "second")
    check_fetched(store, state)
    assert dict(store.files(KEY)) == beside
    assert all(commit in record.path for record in hub.api.requests)
    asked = len(hub.api.requests)
    again = ManifestStore(path, cache=tmp_path / "second", offline=True)
    assert same(again.load_state_dict(KEY), state)
    assert dict(again.files(KEY)) == beside
    assert len(hub.api.requests) == asked


def test_lock_of_one_file_adds_no_others(hub, tmp_path):
    state = tensors()
    commit = hub.add("org/model", {**BESIDE, **single(state)})
    path = tmp_path / "manifest.toml"
    path.write_text(
        f'version = 1\n[states."{KEY}"]\nmirrors = ["hf://org/model/model.safetensors"]\n'
    )
    [pinned] = lock(path, cache=tmp_path / "cache").values()
    assert pinned.mirrors[0].urls == (f"hf://org/model@{commit}/model.safetensors",)
    assert pinned.files == {}


def test_lock_keeps_the_files_that_somebody_chose(hub, tmp_path):
    state = tensors()
    hub.add("org/model", {**BESIDE, **single(state)})
    path = tmp_path / "manifest.toml"
    file = FileEntry(Digest.of(CONFIG), (parse_mirror("hf://org/model/config.json"),))
    unpinned = StateEntry(KEY, None, None, (parse_mirror("hf://org/model"),), {"c.json": file})
    Manifest({KEY: unpinned}).write(path)
    [pinned] = lock(path, cache=tmp_path / "cache").values()
    assert pinned.files == {"c.json": file}


def test_a_lock_that_the_hub_cut_off_goes_on_where_it_was(hub, tmp_path):
    """By its commit a file can never change, so what an earlier run left is used."""
    state = {f"{n:02}": torch.full((2_500_000,), float(n)) for n in range(8)}
    hub.add("org/model", single(state))
    path = tmp_path / "manifest.toml"
    path.write_text(f'version = 1\n[states."{KEY}"]\nmirrors = ["hf://org/model"]\n')
    deliver = hub.cdn.before

    def refuse_the_last(record):
        if len(hub.cdn.requests) < 7:
            return deliver(record)
        time.sleep(0.5)  # so long, the others come
        return Reply(404)

    hub.cdn.before = refuse_the_last
    with pytest.raises(FetchError):
        lock(path, cache=tmp_path / "cache")
    hub.cdn.before = deliver
    hub.reset()
    [pinned] = lock(path, cache=tmp_path / "cache").values()
    assert pinned.digest == state_digest(state)
    assert hub.cdn.bytes_sent < 0.8 * pinned.size
    assert leftovers(tmp_path / "cache") == {}
