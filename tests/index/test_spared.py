"""What is not read the second time: files that are opened and requests that are made, counted."""

from __future__ import annotations

import os

import pytest

from mlstate import ManifestStore, StateType, describe, manifest_of, usage
from mlstate.operations.usage import usage_of_states
from tests.servers.forwarding import Forwarding
from tests.support.buckets import bucket_store
from tests.support.indexing import key, save, settle


@pytest.fixture
def opened(monkeypatch):
    """The names of the files of a store that are opened, and of the folders that are listed."""
    seen: list[str] = []
    real = os.open

    def opening(path, *arguments, **options):
        seen.append(os.fspath(path))
        return real(path, *arguments, **options)

    def listing(real):
        def call(path="."):
            seen.append(f"list {os.fspath(path)}")
            return real(path)

        return call

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "listdir", listing(os.listdir))
    return seen


def states_and_objects(seen):
    opened = [path for path in seen if not path.startswith("list ")]
    return [path for path in opened if "/objects/" in path or "/states/" in path]


def test_neither_state_files_nor_state_objects_are_opened_again(related, opened):
    usage(related)
    assert len(states_and_objects(opened)) >= 7  # four state files, three state objects
    opened.clear()
    usage(related)
    usage_of_states(related, StateType("pytorch", "net"))
    related.prune(dry_run=True)
    assert states_and_objects(opened) == []


def test_a_new_state_costs_its_own_files_alone(related, opened):
    usage(related)
    save(related, "net.new", 1, 9)
    settle(related.folder)
    opened.clear()
    usage(related)
    assert len(states_and_objects(opened)) == 2


def test_one_state_is_shown_without_looking_at_others(related, opened):
    usage(related)
    opened.clear()
    assert describe(related, key("net.a")).tensors is not None
    digest = related.digest(key("net.a"))
    assert {path.rpartition("/")[2] for path in states_and_objects(opened)} == {
        "a.toml",
        digest[2:],
    }
    assert not [path for path in opened if path.startswith("list ") and path.endswith("/net")]


def test_of_one_type_no_other_folder_is_listed(related, opened):
    usage(related)
    opened.clear()
    usage_of_states(related, StateType("pytorch", "net"))
    listed = [path for path in opened if path.startswith("list ")]
    assert any(path.endswith("/net") for path in listed)
    assert not any(path.endswith("/other") for path in listed)


def test_states_of_a_manifest_are_read_once(related, opened):
    view = ManifestStore(manifest_of(related), cache=related)
    usage(view)
    opened.clear()
    usage(view)
    assert states_and_objects(opened) == []


def test_a_bucket_is_listed_and_nothing_is_got(related, moto, tmp_path):
    with Forwarding(moto.url) as proxy:
        store = bucket_store(moto, moto.new_bucket(), url=proxy.url, cache=tmp_path / "cache")
        for k in related.get_state_keys():
            store.save_state_dict(related.load_state_dict(k), k, files={"labels.json": b"[]"})
        store = bucket_store(
            moto, store.places[0].split("/")[2], url=proxy.url, cache=tmp_path / "c"
        )
        usage(store, disk=False)
        proxy.reset()
        usage(store, disk=False)
        lists = [r for r in proxy.requests if "list-type" in r.path and "states" in r.path]
        others = [r for r in proxy.requests if "list-type" not in r.path]
        assert len(lists) == 1
        assert [r.path for r in others if "mlstate.toml" not in r.path] == []
