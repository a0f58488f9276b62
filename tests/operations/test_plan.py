"""Dry runs of fetch and copy: they say what the real ones do, and change nothing."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from mlstate import (
    LocalStateStore,
    ManifestStore,
    MemoryStateStore,
    StateKey,
    copy,
    list_pins,
    manifest_of,
)
from mlstate.errors import CopyError, StateExistsError, UnpinnedStateError
from mlstate.operations.plan import planned_fetch
from tests.support.buckets import bucket_store, contents
from tests.support.models import LINEAR

A, B = StateKey(LINEAR, "a"), StateKey(LINEAR, "b")
BASE = {"w": torch.arange(20_000.0), "v": torch.arange(30_000.0)}
TUNED = {**BASE, "v": torch.zeros(30_000)}


@pytest.fixture
def source(tmp_path):
    store = LocalStateStore(tmp_path / "source")
    store.save_state_dict(BASE, A, files={"labels": b"[1]"})
    store.save_state_dict(TUNED, B)
    return store


def test_a_fetch_says_what_is_missing_before_and_after(source, tmp_path):
    manifest_of(source, objects=["source"]).write(tmp_path / "weights.toml")
    view = ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "cache")
    plan = planned_fetch(view, A)
    assert (plan.missing, plan.nbytes, plan.spared) == (True, 200_000, 0)
    assert plan.digest == source.digest(A)
    assert not (tmp_path / "cache").exists()
    view.fetch(A)
    plan = planned_fetch(view, A)
    assert (plan.missing, plan.nbytes, plan.spared) == (False, 0, 200_000)
    assert view.fetch(A).fetched == 0
    view.fetch(B, names=["w"])  # its state object comes, and its tensor is here
    plan = planned_fetch(view, B)
    assert (plan.missing, plan.spared) == (True, 80_000)
    assert plan.nbytes == view.fetch(B).fetched


def test_a_state_without_a_digest_is_refused(tmp_path):
    (tmp_path / "weights.toml").write_text(f'version = 1\n[states."{A}"]\nmirrors = ["x.pt"]\n')
    with pytest.raises(UnpinnedStateError):
        planned_fetch(ManifestStore(tmp_path / "weights.toml"), A)


def test_a_first_use_is_planned_as_it_is_done(tmp_path):
    save_file(BASE, tmp_path / "x.safetensors")
    digits = hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()[:8]
    manifest = tmp_path / "weights.toml"
    mirror = f'{{url = "x.safetensors", sha256 = "{digits}"}}'
    manifest.write_text(f'version = 1\n[states."{A}"]\nmirrors = [{mirror}]\n')
    view = ManifestStore(manifest)
    plan = planned_fetch(view, A)
    assert (plan.digest, plan.missing, plan.nbytes) == (None, True, None)
    assert list_pins() == []
    with pytest.raises(UnpinnedStateError):
        planned_fetch(ManifestStore(manifest, pins="strict"), A)
    assert view.fetch(A).pinned_now
    assert planned_fetch(view, A).missing is False


@pytest.mark.parametrize("kind", ["memory", "local", "s3"])
def test_a_copy_says_what_it_would_do(kind, source, tmp_path, request):
    if kind == "memory":
        target = MemoryStateStore()
    elif kind == "local":
        target = LocalStateStore(tmp_path / "target")
    else:
        moto = request.getfixturevalue("moto")
        bucket = moto.new_bucket()
        target = bucket_store(moto, bucket, cache=tmp_path / "cache")
    planned = copy(source, target, [A], dry_run=True)
    assert target.get_state_keys() == []
    if kind == "local":
        assert not (tmp_path / "target").exists()
    if kind == "s3":
        assert contents(moto, bucket) == {}
    done = copy(source, target, [A])
    assert (planned.copied, planned.nbytes) == (done.copied, done.nbytes)
    planned = copy(source, target, dry_run=True)
    done = copy(source, target)
    assert (planned.copied, planned.present) == (done.copied, done.present) == ((B,), (A,))
    assert planned.nbytes == done.nbytes


def test_a_copy_that_would_be_refused_is_refused_in_a_dry_run(source):
    target = MemoryStateStore()
    target.save_state_dict({"w": torch.ones(2)}, A)
    with pytest.raises(StateExistsError):
        copy(source, target, [A], dry_run=True)
    with pytest.raises(CopyError) as caught:
        copy(source, target, dry_run=True)
    assert caught.value.copied == (B,)
    planned = copy(source, target, overwrite=True, dry_run=True)
    assert planned.copied == (A, B)
    assert torch.equal(target.load_state_dict(A)["w"], torch.ones(2))
