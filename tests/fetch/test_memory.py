"""Fetching holds a bounded window of a state in memory, however large it is, however it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlstate import Manifest, StateKey
from mlstate.digests import Digest, Hasher
from mlstate.format import layout, tensor_object
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from tests.servers.nginx import Nginx
from tests.support.fetching import start_child
from tests.support.machine import PEAK

KEY = StateKey.parse("pytorch.large.a")
MB = 1 << 20
LARGE, SMALL = (2, 400 * MB), (100, 3 * MB // 2)
MOST = 128 * MB  # of which the interpreter's own need, before the fetch, is no part

# Anonymous memory alone: pages of files, mapped or cached, can be taken away at any time.
FETCH = """
store = open_store(sys.argv[1], sys.argv[2])
store.fetcher.durable = False
import mlstate.transport.http
with Peak() as peak:
    report = store.fetch(StateKey.parse(sys.argv[3]))
assert "torch" not in sys.modules
print(report.fetched, peak.before, peak.most)
"""


def blocks(index: int) -> bytes:
    """A tensor begins with its number; the rest is zeros, and no block of a disk."""
    return index.to_bytes(4096, "little")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StateEntry]:
    """A store and a plain file of a large state, as sparse files, made without torch."""
    folder = tmp_path_factory.mktemp("web")
    sizes = [size for count, size in (LARGE, SMALL) for _ in range(count)]
    specs = {f"t{i:03}": TensorSpec("U8", (size,)) for i, size in enumerate(sizes)}
    refs, zeros = {}, bytes(MB)
    for index, (name, spec) in enumerate(specs.items()):
        hasher = Hasher(2)
        hasher.update(tensor_object.header(spec) + blocks(index))
        left = spec.nbytes - len(blocks(index))
        while left:
            hasher.update(zeros[:left])
            left -= min(left, MB)
        refs[name] = TensorRef(spec, hasher.digest())
        path = folder / "store" / layout.object_path(refs[name].digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(tensor_object.header(spec) + blocks(index))
            file.truncate(tensor_object.object_size(spec))
    state = StateObject({}, refs)
    digest = Digest.of(state.encode())
    path = folder / "store" / layout.object_path(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(state.encode())
    write_plain(folder / "model.safetensors", specs)
    return folder, StateEntry(KEY, digest, state.nbytes)


def write_plain(path: Path, specs: dict[str, TensorSpec]) -> None:
    header, position = {}, 0
    for name, spec in specs.items():
        offsets = [position, position + spec.nbytes]
        header[name] = {"dtype": spec.dtype, "shape": [*spec.shape], "data_offsets": offsets}
        position += spec.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for index, name in enumerate(specs):
            file.seek(start + header[name]["data_offsets"][0])
            file.write(blocks(index))
        file.truncate(start + position)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed at once: so much should not wait for others."""
    yield tmp_path / "cache"
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["objects", "ranges", "alone", "whole"])
def test_memory_is_bounded_however_large_the_state_is(
    state: tuple[Path, StateEntry],
    start_nginx: Callable[..., Nginx],
    cache: Path,
    record_property: Callable[[str, object], None],
    way: str,
):
    folder, entry = state
    nginx = start_nginx(folder)
    file = nginx.url("model.safetensors")
    at = f"store/{layout.object_path(entry.pinned_digest)}"
    mirrors: dict[str, list[Any]] = {
        "objects": [],
        "ranges": [{"url": file, "state": nginx.url(at)}],
        "alone": [file],
        "whole": [nginx.url("model.safetensors", "no-ranges")],
    }
    parsed = tuple(parse_mirror(mirror) for mirror in mirrors[way])
    objects = (nginx.url("store"),) if way == "objects" else ()
    manifest = cache.with_name("m.toml")
    Manifest({KEY: StateEntry(KEY, entry.digest, entry.size, parsed)}, objects).write(manifest)
    child = start_child(PEAK + FETCH, manifest, cache, KEY)
    out, errors = child.communicate(timeout=120)
    assert (child.returncode, errors) == (0, "")
    fetched, before, peak = map(int, out.split())
    assert entry.size is not None
    assert fetched >= entry.size
    record_property("grown", peak - before)
    print(f"{way}: {peak / MB:.0f} MB of anonymous memory, {(peak - before) / MB:.0f} MB of it new")
    assert peak - before < MOST
