"""Prunings of buckets beside saves and loads, stopped and killed between any two requests."""

from __future__ import annotations

import random
import time
from itertools import count

import pytest
import torch

import mlstate.stores.prune_bucket
from mlstate import StateKey
from mlstate.buckets.client import BucketClient
from mlstate.buckets.control import BucketControl
from mlstate.errors import FetchError
from mlstate.format import layout
from tests.stores.test_prune_races import KEPT, NEW, OLD, TENSORS, TORTURE
from tests.support.buckets import bucket_store, contents, put
from tests.support.models import same
from tests.support.turns import turns

ALL_OLD = -60.0  # seconds of grace: nothing is young, and only the order of looks keeps a save safe
REQUESTS = [
    *((BucketClient, name) for name in ("head", "read_small", "items", "put", "create", "delete")),
    *((BucketControl, name) for name in ("copy", "freshen")),
]


@pytest.fixture(params=["moto", "ceph"])
def server(request):
    return request.getfixturevalue(request.param)


class Scene:
    """A store in a bucket with a state that is kept and one that was deleted."""

    def __init__(self, server, folder) -> None:
        self.server, self.bucket = server, server.new_bucket()
        self._folder, self._count = folder, count()
        self.saved = {KEPT}
        store = self.store()
        for key in (KEPT, OLD):
            store.save_state_dict(TENSORS[key], key)
        store.delete(OLD)
        for name in contents(server, self.bucket):
            if "/trash/" in name:  # it protects nothing any more
                server.boto.delete_object(Bucket=self.bucket, Key=name)

    def store(self):
        """The store, with an empty cache."""
        cache = self._folder / self.bucket / str(next(self._count))
        return bucket_store(self.server, self.bucket, cache=cache)

    def save(self) -> None:
        self.store().save_state_dict(TENSORS[NEW], NEW)
        self.saved.add(NEW)

    def prune(self):
        return self.store().prune(grace_seconds=ALL_OLD)

    def check(self) -> None:
        """All that is saved loads, into an empty cache."""
        store = self.store()
        for key in self.saved:
            assert same(store.load_state_dict(key), TENSORS[key])

    def check_in_place(self) -> None:
        """All of it is where it belongs."""
        self.check()
        assert not [name for name in contents(self.server, self.bucket) if "/tmp/" in name]
        trash = [name for name in contents(self.server, self.bucket) if "/trash/" in name]
        for name in trash:
            self.server.boto.delete_object(Bucket=self.bucket, Key=name)
        self.check()


def stops_of(work, server, folder):
    """The requests to stop before."""
    with turns(getattr(Scene(server, folder), work), watched=REQUESTS) as (begun,):
        begun.finish()
    steps = range(begun.steps)
    assert len(steps) > 10
    return [*steps] if TORTURE else sorted(random.Random(len(steps)).sample(steps, 3))


@pytest.mark.torture
def test_a_save_between_any_two_requests_of_a_pruning(server, tmp_path):
    """And loads after the requests that follow, from an empty cache."""
    for stop in stops_of("prune", server, tmp_path):
        scene = Scene(server, tmp_path)
        with turns(scene.prune, watched=REQUESTS) as (pruning,):
            for _ in range(stop):
                pruning.step()
            scene.save()
            while not pruning.done:
                pruning.step()
                if TORTURE or pruning.steps % 4 == 0:
                    scene.check()
            assert pruning.error is None
        scene.check_in_place()


@pytest.mark.torture
def test_a_pruning_that_is_killed_between_any_two_requests(server, tmp_path):
    for stop in stops_of("prune", server, tmp_path):
        scene = Scene(server, tmp_path)
        with turns(scene.prune, watched=REQUESTS) as (pruning,):
            for _ in range(stop // 2):
                pruning.step()
            scene.save()
            for _ in range(stop - stop // 2):
                pruning.step()
            pruning.kill()
        scene.check()
        scene.prune()
        scene.check_in_place()


@pytest.mark.torture
def test_prunings_between_any_two_requests_of_a_save(server, tmp_path, monkeypatch):
    monkeypatch.setattr("mlstate.objects.saving._QUICK", -1)  # or with a grace of a minute
    for stop in stops_of("save", server, tmp_path):
        scene = Scene(server, tmp_path)
        with turns(scene.save, watched=REQUESTS) as (saving,):
            for _ in range(stop):
                saving.step()
            for _ in range(2):
                scene.prune()
            scene.check()
            saving.finish()
        scene.check_in_place()


@pytest.mark.torture
def test_a_pruning_between_any_two_requests_of_another(server, tmp_path):
    for stop in stops_of("prune", server, tmp_path):
        scene = Scene(server, tmp_path)
        with turns(scene.prune, watched=REQUESTS) as (first,):
            for _ in range(stop):
                first.step()
            scene.prune()
            first.finish()
        scene.check_in_place()


def test_what_a_save_reuses_is_young_before_a_pruning_comes(server, tmp_path, monkeypatch):
    """As 13 hours and 12 are, but in seconds."""
    scene = Scene(server, tmp_path)
    limit = time.time() + 1.5
    time.sleep(3.5)  # a bucket gives times in whole seconds
    monkeypatch.setattr("mlstate.objects.bucket._FRESH_SECONDS", 0)
    monkeypatch.setattr("mlstate.stores.prune_bucket._server_time", lambda place: limit)
    store, reports = scene.store(), []
    create = store.saver.files.create

    def pruned_before(key, data):
        reports.append(scene.store().prune(grace_seconds=0))
        return create(key, data)

    monkeypatch.setattr(store.saver.files, "create", pruned_before)
    store.save_state_dict(TENSORS[NEW], NEW)
    (report,) = reports
    assert len(report.trashed) == 2  # the old state, and the tensor that it alone had
    assert not report.restored
    scene.saved.add(NEW)
    scene.check_in_place()


def test_what_lies_in_the_trash_is_loaded_and_nothing_is_written(server, tmp_path):
    scene = Scene(server, tmp_path)
    for name, data in contents(server, scene.bucket).items():
        if "/objects/" in name:
            digest = "".join(name.split("/")[-2:])
            put(server, scene.bucket, f"models/trash/{digest}.{'0' * 32}", data)
            server.boto.delete_object(Bucket=scene.bucket, Key=name)
    before = contents(server, scene.bucket)
    scene.check()
    store = scene.store()
    assert store.fetch(KEPT).digest == store.digest(KEPT)
    assert contents(server, scene.bucket) == before
    for name in before:
        if "/trash/" in name:
            put(server, scene.bucket, name, b"damaged")
    with pytest.raises(FetchError):
        scene.store().load_state_dict(KEPT)


@pytest.mark.parametrize("hours", [-30, 30])
def test_a_pruning_goes_by_the_clock_of_the_bucket(moto, tmp_path, hours, monkeypatch):
    scene = Scene(moto, tmp_path)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + hours * 3600)
    report = scene.store().prune(grace_seconds=12 * 3600)
    assert (report.trashed, report.future) == ({}, [])
    assert scene.store().prune(grace_seconds=ALL_OLD).trashed


def test_what_a_bucket_dates_in_the_future_stays_and_is_named(moto, tmp_path, monkeypatch):
    """Its clock was wrong when these were written, or is wrong now."""
    scene = Scene(moto, tmp_path)
    left = f"models/{layout.TEMPORARIES}/{'f' * 32}"
    put(moto, scene.bucket, left, b"")
    server_time = mlstate.stores.prune_bucket._server_time
    monkeypatch.setattr(
        "mlstate.stores.prune_bucket._server_time", lambda place: server_time(place) - 7200
    )
    report = scene.prune()
    assert report.trashed == {}
    assert f"s3://{scene.bucket}/{left}" in report.future
    assert len(report.future) == 1 + 3  # the old state, and what it alone had
    scene.check()
    monkeypatch.undo()
    report = scene.prune()
    assert report.future == []
    assert report.swept == [f"s3://{scene.bucket}/{left}"]


def test_an_unchanged_save_of_what_is_young_asks_for_no_copy(moto, tmp_path, monkeypatch):
    scene = Scene(moto, tmp_path)
    asked = []
    monkeypatch.setattr(BucketControl, "freshen", lambda self, item: asked.append(item) or True)
    scene.store().save_state_dict(TENSORS[KEPT], KEPT)
    scene.store().save_state_dict({"a": TENSORS[KEPT]["a"]}, StateKey.parse("pytorch.net.part"))
    assert asked == []
    assert torch.equal(scene.store().load_state_dict(KEPT)["a"], TENSORS[KEPT]["a"])
