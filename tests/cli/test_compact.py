"""`compact`, and what `du`, `ls` and `show` say afterwards."""

from __future__ import annotations

import pytest

from mlstate import LocalStateStore, StateKey
from tests.operations.compact.states import KEYS, digests, noise, save_all, weights


@pytest.fixture
def store(tmp_path) -> LocalStateStore:
    store = LocalStateStore(tmp_path / "weights")
    save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:4])})
    return store


def test_a_store_is_compacted_and_its_commands_say_so(shell, store):
    before = digests(store)
    assert shell.json("du", "weights")["encoded"] is None
    planned = shell.json("compact", "weights", "--dry-run")
    assert (planned["dry_run"], planned["estimated"], planned["objects"]) == (True, True, 3)
    lines = shell.lines("compact", "weights", "--dry-run")
    assert lines[-1].startswith("3 of 4 objects would be encoded")
    assert "about" in lines[-1]
    done = shell.json("compact", "weights")
    assert (done["objects"], done["looked_at"], done["unread"]) == (3, 4, [])
    assert done["saved"] == done["before"] - done["after"] > 0
    used = shell.json("du", "weights")
    assert used["encoded"] == {
        "objects": 3,
        "bytes": done["after"],
        "saved": done["saved"],
    }
    assert any(line.startswith("saved by that") for line in shell.lines("du", "weights"))
    assert "ENCODED" in "\n".join(shell.lines("show", KEYS[1], "-s", "weights"))
    assert "ENCODED" not in "\n".join(shell.lines("show", KEYS[0], "-s", "weights"))
    listed = {state["key"]: state for state in shell.json("ls", "weights")["states"]}
    assert listed[str(KEYS[1])]["own"] < listed[str(KEYS[1])]["bytes"] / 2
    assert shell.lines("compact", "weights")[-1].startswith("0 of 1 object encoded")
    undone = shell.json("compact", "weights", "--undo")
    assert (undone["undone"], undone["objects"]) == (True, 3)
    assert shell.json("du", "weights")["encoded"] is None
    assert digests(store) == before


def test_keys_and_patterns_choose(shell, store):
    done = shell.json("compact", "weights", KEYS[1])
    assert [state["key"] for state in done["states"]] == [str(KEYS[1])]
    done = shell.json("compact", "pytorch.net.*2", "--store", "weights")
    assert [state["key"] for state in done["states"]] == [str(KEYS[2])]
    assert "no such state" in shell.complaint("compact", "weights", "pytorch.net.nope", code=3)


def test_a_chain_is_in_the_order_of_the_keys(shell, store):
    chained = shell.json("compact", "weights", KEYS[3], KEYS[0], KEYS[1], "--chain")
    bases = {state["key"]: state["bases"] for state in chained["states"]}
    assert bases == {str(KEYS[3]): [str(KEYS[0])], str(KEYS[0]): [str(KEYS[1])]}


def test_what_is_near_to_nothing_is_encoded_alone_if_asked_for(shell, tmp_path):
    import torch

    store = LocalStateStore(tmp_path / "one")
    store.save_state_dict({"w": noise(1, torch.float32)}, StateKey.parse("pytorch.net.one"))
    assert shell.json("compact", "one")["objects"] == 0
    assert shell.json("compact", "one", "--alone")["objects"] == 1


def test_what_cannot_be_read_is_named_and_ends_with_the_code_of_damage(shell, store):
    path = max((store.folder / "objects").glob("*/*"), key=lambda path: path.stat().st_size)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = shell("compact", "weights")
    assert done.returncode == 4
    assert "cannot be read, and stays as it is" in done.stderr


def test_undo_says_why_older_versions_still_refuse_the_store(shell, store):
    shell.json("compact", "weights")
    undone = shell("compact", "weights", KEYS[1], "--undo")
    assert "2 objects still encoded, and older versions refuse the store" in undone.stderr
    assert "still encoded" not in shell("compact", "weights", "--undo").stderr


def test_wrong_words_are_refused(shell, store):
    assert "--chain" in shell.complaint("compact", "weights", "--undo", "--chain", code=2)
    shell.complaint("compact", "nowhere", code=3)
