"""The index gives the answers that reading anew gives."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlstate import LocalStateStore, ManifestStore, StateType, describe, manifest_of, usage
from mlstate.index.database import index_folder
from mlstate.operations.usage import usage_of_states
from tests.support.buckets import bucket_store
from tests.support.indexing import key, save, settle

KEYS = ("net.a", "net.b", "net.x.c", "other.a", "third.a")
TYPES = (StateType("pytorch", "net"), StateType("pytorch", "net", ("x",)))


def answers(store, *, digests_only: bool = False):
    """All that is answered with the index's help."""
    keys = store.get_state_keys()
    pruned = None
    if isinstance(store, LocalStateStore):
        pruned = dataclasses.replace(store.prune(grace_seconds=0, dry_run=True))
    return (
        usage(store),
        [usage_of_states(store, state_type) for state_type in (None, *TYPES)],
        {k: describe(store, k) for k in keys},
        pruned,
    )


def anew(store):
    """The same without what was known before."""
    shutil.rmtree(index_folder(), ignore_errors=True)
    return answers(store)


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("save"),
            st.sampled_from(KEYS),
            st.lists(st.integers(0, 5), min_size=1, max_size=3),
        ),
        st.tuples(st.just("delete"), st.sampled_from(KEYS), st.just([])),
        st.tuples(st.just("look"), st.just(""), st.just([])),
        st.tuples(st.just("settle"), st.just(""), st.just([])),
    ),
    min_size=3,
    max_size=9,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
@pytest.mark.usefixtures("no_fsync")
def test_whatever_was_done_answers_are_those_of_reading_anew(tmp_path_factory, done):
    store = LocalStateStore(tmp_path_factory.mktemp("store") / "s")
    save(store, "net.a", 1)
    for step, name, values in done:
        if step == "save":
            store.save_state_dict(
                {f"w{n}": torch.full((5000,), float(v)) for n, v in enumerate(values)},
                key(name),
                overwrite=True,
                files={"f": bytes(values)} if values else None,
            )
        elif step == "delete" and store.exists(key(name)):
            store.delete(key(name))
        elif step == "look":
            answers(store)
        elif step == "settle":
            settle(store.folder)
    for _ in range(2):
        found = answers(store)
        assert found == answers(store)
        used, (states, *of_types), *_ = found
        assert states == list(used.states)
        for state_type, listed in zip(TYPES, of_types, strict=True):
            assert listed == [s for s in states if state_type.is_compatible_with(s.key.state_type)]
    assert found == anew(store)


def test_what_is_shared_within_and_across_architectures_is_told(related):
    for _ in range(2):
        a, b, c, d = usage(related).states
        sharing = {t.name: t.states for t in describe(related, key("net.a")).tensors}
        assert sharing["w0"] == ("pytorch.net.b", "pytorch.net.big.c")
        assert sharing["w1"] == ("pytorch.net.big.c",)
        assert c.own == 0  # it is the same weights as a
        assert b.own is not None
        assert b.shared == d.shared + a.shared // 2 or b.shared > 0
        (listed,) = usage_of_states(related, StateType("pytorch", "other"))
        assert listed == d


def test_a_state_file_that_was_edited_in_place_is_seen(related):
    first = usage(related).states[0]
    path = related.folder / "states/pytorch/net/a.toml"
    text = path.read_text().replace(first.digest, related.digest(key("net.b")))
    os.chmod(path, 0o644)
    path.write_text(text)
    assert usage(related).states[0].digest != first.digest or usage(related).states[0].error
    assert usage_of_states(related, TYPES[0])[0].digest != first.digest


def test_a_state_that_another_process_saves_or_deletes_is_seen(related):
    answers(related)
    script = (
        "import sys, torch; from mlstate import LocalStateStore, StateKey\n"
        "store = LocalStateStore(sys.argv[1])\n"
        "store.delete(StateKey.parse('pytorch.net.b'))\n"
        "store.save_state_dict({'w': torch.full((5000,), 4.0)}, StateKey.parse('pytorch.net.e'))\n"
    )
    subprocess.run([sys.executable, "-c", script, related.folder], check=True)
    assert [str(state.key) for state in usage(related).states] == [
        "pytorch.net.a",
        "pytorch.net.e",
        "pytorch.net.big.c",
        "pytorch.other.d",
    ]
    sharing = {t.name: t.states for t in describe(related, key("other.d")).tensors}
    assert sharing["w1"] == ("pytorch.net.e",)
    assert answers(related) == anew(related)


def test_a_store_in_the_place_of_another_is_another(related, tmp_path):
    answers(related)
    other = LocalStateStore(tmp_path / "elsewhere")
    save(other, "net.a", 7)
    settle(other.folder)
    related.folder.rename(tmp_path / "away")
    other.folder.rename(related.folder)
    (state,) = usage(LocalStateStore(related.folder)).states
    assert state.own == state.own + state.shared
    assert answers(LocalStateStore(related.folder)) == anew(LocalStateStore(related.folder))


def test_a_missing_object_is_told_the_second_time_too(related):
    usage(related)
    digest = related.digest(key("other.d"))
    (related.folder / "objects" / digest[:2] / digest[2:]).unlink()
    for _ in range(2):
        assert usage(related).states[-1].error is not None
        with pytest.raises(Exception, match="missing"):
            related.prune(dry_run=True)
    assert usage(related) == (shutil.rmtree(index_folder()), usage(related))[1]


def test_a_manifest_and_a_bucket_give_the_same_answers(related, moto, tmp_path):
    view = ManifestStore(manifest_of(related), cache=related)
    bucket = bucket_store(moto, moto.new_bucket(), cache=tmp_path / "cache")
    for k in related.get_state_keys():
        bucket.save_state_dict(related.load_state_dict(k), k)
    for store in (view, bucket):
        first = answers(store)
        second = answers(store)
        assert second == first
        assert second == anew(store)


def test_threads_and_processes_at_once_agree(related):
    expected = usage(related)
    shutil.rmtree(index_folder())
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(usage(related))) for _ in range(4)]
    command = [sys.executable, "-m", "mlstate", "ls", str(related.folder)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outputs = {process.communicate() for process in processes}
    assert found == [expected] * 4
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert {error for _, error in outputs} == {b""}
    assert usage(related) == expected
