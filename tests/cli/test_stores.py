"""Commands on stores and manifests: each through the installed program."""

from __future__ import annotations

import os
import re
import shutil
import time
import tomllib

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from mlstate import LocalStateStore, StateKey, manifest_of, state_digest
from tests.support.commands import Shell
from tests.support.distributed import grid, write_chunks

BASE = StateKey.parse("pytorch.mlp.cls10.base")
TUNED = StateKey.parse("pytorch.mlp.cls10.tuned")
OTHER = StateKey.parse("pytorch.resnet.small.one")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    store = LocalStateStore(folder / "weights")
    torch.manual_seed(0)
    base = {
        "a.weight": torch.randn(128, 128),
        "b.weight": torch.randn(128, 64),
        "b.bias": torch.ones(3),
    }
    store.save_state_dict(base, BASE, files={"config.json": b"{}"}, meta={"license": "MIT"})
    store.save_state_dict({**base, "b.weight": base["b.weight"] + 0.5}, TUNED)
    store.save_state_dict({"x": torch.randn(64, 128)}, OTHER)
    return folder


@pytest.fixture
def shell(shell, template):
    shutil.copytree(template, shell.folder, dirs_exist_ok=True)
    return shell


@pytest.fixture
def shared(shell):
    """A manifest whose mirror is the store beside it."""
    store = LocalStateStore(shell.folder / "weights")
    manifest_of(store, objects=["weights"]).write(shell.folder / "weights.toml")
    return shell


A, B = 128 * 128 * 4, 128 * 64 * 4
INLINE = 12


def test_ls_says_what_is_own_and_what_is_shared(shell):
    saved = time.time() + 600  # a busy machine may take long from here to the listing
    for state in (shell.folder / "weights" / "states").rglob("*.toml"):
        os.utime(state, (saved, saved))
    lines = shell.lines("ls", "weights")
    assert re.split("  +", lines[0]) == ["KEY", "SIZE", "OWN DISK", "SHARED", "AGE"]
    assert [line.split()[0] for line in lines[1:]] == [str(BASE), str(TUNED), str(OTHER)]
    assert all(line.endswith("just now") for line in lines[1:])
    data = shell.json("ls", "weights")
    base, tuned, other = data["states"]
    assert base["digest"] == LocalStateStore(shell.folder / "weights").digest(BASE)
    assert base["shared"] == tuned["shared"] >= A
    assert B <= tuned["own"] < B + 10_000
    assert other["shared"] == 0
    assert base["cached"] is None


def test_ls_takes_the_store_as_an_option_too_and_from_the_environment(shell):
    listed = shell.lines("ls", "weights")
    assert shell.lines("ls", "--store", "weights") == listed
    assert Shell(shell.folder, {"MLSTATE_STORE": "weights"}).lines("ls") == listed


def test_ls_of_one_type(shell):
    assert len(shell.lines("ls", "weights", "--type", "pytorch.mlp")) == 3
    done = shell("ls", "weights", "--type", "pytorch.none")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no states in" in done.stderr


def test_ls_of_a_manifest_says_what_is_cached(shared):
    assert {state["cached"] for state in shared.json("ls", "weights.toml")["states"]} == {"no"}
    shared.lines("fetch", BASE, "--store", "weights.toml")
    by_key = {s["key"]: s["cached"] for s in shared.json("ls", "weights.toml")["states"]}
    assert by_key == {str(BASE): "yes", str(TUNED): "no", str(OTHER): "no"}


def test_a_damaged_state_file_does_not_hide_the_others(shell):
    path = next(shell.folder.glob("weights/states/**/*small.one.toml"))
    path.chmod(0o644)
    path.write_text("version = [")
    done = shell("ls", "weights")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4
    assert f"{OTHER} cannot be read" in done.stderr


def test_show_tells_all_of_a_state(shell):
    data = shell.json("show", BASE, "--store", "weights")
    tensors = {tensor["name"]: tensor for tensor in data["tensors"]}
    assert tensors["a.weight"]["states"] == [str(TUNED)]
    assert tensors["b.weight"]["states"] == []
    assert tensors["b.bias"]["digest"] is None
    assert tensors["a.weight"]["shape"] == [128, 128]
    assert data["meta"] == {"license": "MIT"}
    assert [file["name"] for file in data["files"]] == ["config.json"]
    text = "\n".join(shell.lines("show", BASE, "--store", "weights"))
    for part in (str(BASE), data["digest"], "config.json", "MIT", "128x128", "F32", str(TUNED)):
        assert part in text


def test_show_of_what_is_not_here_fetches_no_more_than_the_state_object(shared):
    data = shared.json("show", BASE, "--store", "weights.toml")
    assert {tensor["name"] for tensor in data["tensors"]} == {"a.weight", "b.weight", "b.bias"}
    cached = (shared.folder / "cache").glob("objects/*/*")
    assert max(path.stat().st_size for path in cached) < A


def test_du_adds_up(shell):
    data = shell.json("du", "weights")
    on_disk = sum(p.stat().st_size for p in shell.folder.glob("weights/objects/*/*"))
    assert data["bytes"] == on_disk
    assert data["unnamed"] == 0
    assert {part["type"] for part in data["architectures"]} == {"pytorch.mlp", "pytorch.resnet"}
    text = "\n".join(shell.lines("du", "weights"))
    assert "ARCHITECTURE" in text
    assert "on disk" in text
    every = [
        path.stat().st_size for path in (shell.folder / "weights").rglob("*") if path.is_file()
    ]
    assert data["disk"].pop("bytes") == sum(every) == sum(data["disk"].values())
    shell.lines("rm", OTHER, "--store", "weights")
    done = shell("du", "weights")
    assert "in no state" in done.stdout
    assert "mlstate prune" in done.stderr


def test_fetch_says_what_came_and_what_was_spared(shared):
    first = shared.json("fetch", BASE, "--store", "weights.toml")["states"][0]
    assert first["fetched"] > A + B
    second = shared.json("fetch", TUNED, "--store", "weights.toml")["states"][0]
    assert second["spared"] >= A
    assert second["fetched"] < A
    again = shared.lines("fetch", BASE, TUNED, "--store", "weights.toml")
    assert all("in the cache" in line for line in again)


def test_fetch_by_pattern_and_all(shared):
    lines = shared.lines("fetch", "pytorch.mlp.*", "--store", "weights.toml")
    assert [line.split()[0] for line in lines] == [str(BASE), str(TUNED)]
    assert len(shared.lines("fetch", "--all", "--store", "weights.toml")) == 3


def test_fetching_all_goes_on_past_a_state_that_cannot_be_had(shared):
    (shared.folder / "weights").rename(shared.folder / "elsewhere")
    done = shared("fetch", "--all", "--store", "weights.toml", "--json")
    assert done.returncode == 5
    assert done.stderr.count("error:") == 3


def test_fetch_from_a_folder_says_that_there_is_nothing_to_do(shell):
    assert "mlstate copy" in shell.complaint("fetch", "--all", "--store", "weights", code=2)


def test_verify_finds_a_flipped_bit_and_repairs_it_from_a_mirror(shared):
    shared.lines("fetch", "--all", "--store", "weights.toml")
    assert shared.json("verify", "--all", "--store", "weights.toml")["ok"] is True
    big = max((shared.folder / "cache").glob("objects/*/*"), key=lambda p: p.stat().st_size)
    big.chmod(0o644)
    data = bytearray(big.read_bytes())
    data[-1] ^= 1
    big.write_bytes(data)
    found = shared.json("verify", "--all", "--store", "weights.toml", code=1)
    (finding,) = found["findings"]
    assert finding["kind"] == "damaged"
    assert finding["digest"] == big.parent.name + big.name
    assert finding["tensors"] == ["a.weight"]
    assert finding["keys"] == [str(BASE), str(TUNED)]
    text = "\n".join(shared.lines("verify", BASE, "--store", "weights.toml", code=1))
    assert "damaged" in text
    assert "a.weight" in text
    repaired = shared.json("verify", "--all", "--repair", "--store", "weights.toml")
    assert [finding["repaired"] for finding in repaired["findings"]] == [True]
    assert shared.json("verify", "--all", "--store", "weights.toml")["findings"] == []


def test_add_export_digest_and_materialize_go_round(shell):
    tensors = {"w": torch.arange(20_000.0), "v": torch.ones(2, 2)}
    save_file(tensors, shell.folder / "in.safetensors")
    torch.save(tensors, shell.folder / "in.pt")
    digests = shell.json("digest", "in.safetensors", "in.pt")["files"]
    assert digests[0]["digest"] == digests[1]["digest"]
    added = shell.json("add", "pytorch.t.one", "in.safetensors", "--store", "new", "--meta", "a=b")
    assert added["digest"] == digests[0]["digest"]
    assert added["existed"] is False
    again = shell.json("add", "pytorch.t.one", "in.pt", "--store", "new", "--meta", "a=b")
    assert again["existed"] is True
    written = shell.json("export", "pytorch.t.one", "out.safetensors", "--store", "new")
    assert (written["path"], written["states"]) == ("out.safetensors", ["pytorch.t.one"])
    shell.lines("export", "pytorch.t.one", "out.pth", "--torch", "--store", "new")
    out = load_file(shell.folder / "out.safetensors")
    assert all(torch.equal(out[name], tensors[name]) for name in tensors)
    out = torch.load(shell.folder / "out.pth", weights_only=True)
    assert all(torch.equal(out[name], tensors[name]) for name in tensors)
    assert shell.lines("materialize", "pytorch.t.one", "plain", "--store", "new") == ["plain"]
    assert (shell.folder / "plain" / "model.safetensors").exists()
    assert "--overwrite" in shell.complaint(
        "export", "pytorch.t.one", "out.safetensors", "--store", "new", code=6
    )


def test_add_to_a_manifest_keeps_the_source_as_the_mirror(shell):
    save_file({"w": torch.arange(20_000.0)}, shell.folder / "in.safetensors")
    manifest = shell.folder / "mine.toml"
    shell.lines("add", "pytorch.t.one", "in.safetensors", "--store", "mine.toml", "--mirror")
    entry = tomllib.loads(manifest.read_text())["states"]["pytorch.t.one"]
    assert entry["mirrors"] == ["in.safetensors"]
    assert entry["blake3"] == shell.json("digest", "in.safetensors")["files"][0]["digest"]
    refused = shell.complaint(
        "add", "pytorch.t.two", "in.safetensors", "--store", "mine.toml", code=2
    )
    assert "--mirror" in refused
    assert "say where to" in shell.complaint("add", "pytorch.t.two", "in.safetensors", code=2)


def test_copy_into_a_new_folder_with_a_manifest(shell):
    copied = Shell(shell.folder, {**shell.environment, "MLSTATE_STORE": "weights"}).json(
        "copy", "--all", "--to", "copies", "--manifest", "copies.toml"
    )
    assert copied["copied"] == [str(BASE), str(TUNED), str(OTHER)]
    again = shell.lines("copy", BASE, "--from", "weights", "--to", "copies")
    assert again == [f"{BASE}  there already"]
    assert tomllib.loads((shell.folder / "copies.toml").read_text())["objects"] == ["copies"]
    assert len(shell.lines("fetch", "--all", "--store", "copies.toml")) == 3


def test_lock_pins_what_is_not_pinned(shell):
    save_file({"w": torch.arange(20_000.0)}, shell.folder / "in.safetensors")
    manifest = shell.folder / "mine.toml"
    manifest.write_text(
        '# mine\nversion = 1\n\n[states."pytorch.t.one"]\nmirrors = ["in.safetensors"]\n'
    )
    assert "mlstate lock" in shell.complaint("fetch", "pytorch.t.one", "--store", manifest, code=4)
    (pinned,) = shell.json("lock", "mine.toml")["pinned"]
    assert pinned["digest"] == shell.json("digest", "in.safetensors")["files"][0]["digest"]
    assert manifest.read_text().startswith("# mine\n")
    assert shell.lines("lock", "mine.toml") == []


def test_bundles_bring_states_to_machines_without_a_network(shell):
    written = shell.json("bundle", "--all", "--store", "weights", "-o", "all.tar")
    assert written["path"] == "all.tar"
    assert len(written["states"]) == 3
    assert shell.json("unbundle", "all.tar", "--store", "there")["states"] == [
        str(BASE),
        str(TUNED),
        str(OTHER),
    ]
    shell.lines("verify", "--all", "--store", "there")
    (shell.folder / "all.tar").write_bytes((shell.folder / "all.tar").read_bytes()[:-5000])
    assert "cut short" in shell.complaint("unbundle", "all.tar", "--store", "no", code=4)
    assert not list((shell.folder / "no").glob("states/**/*.toml"))


def test_rm_and_prune(shell):
    assert shell.lines("rm", TUNED, "--store", "weights") == [f"{TUNED}  removed"]
    assert shell.json("rm", OTHER, "--store", "weights")["removed"] == [str(OTHER)]
    assert len(shell.lines("ls", "weights")) == 2
    dry = shell.json("prune", "--dry-run", "--older-than", "0s", "--store", "weights")
    assert dry["dry_run"] is True
    assert dry["trashed"]["objects"] == 4
    done = shell.json("prune", "--older-than", "0s", "--store", "weights")
    assert done["trashed"] == dry["trashed"]
    assert (
        shell.json("prune", "--older-than", "0s", "--store", "weights")["deleted"]["objects"] == 4
    )
    assert "--max-size is for a cache" in shell.complaint(
        "prune", "--max-size", "1GB", "--store", "weights", code=2
    )


def test_rm_of_a_manifest_takes_the_entry_out_and_leaves_the_rest_alone(shared):
    path = shared.folder / "weights.toml"
    path.write_text("# ours\n" + path.read_text())
    assert shared.lines("rm", TUNED, "--store", "weights.toml") == [f"{TUNED}  no longer listed"]
    assert path.read_text().startswith("# ours\n")
    assert tomllib.loads(path.read_text())["states"].keys() == {str(BASE), str(OTHER)}
    assert "several manifests" in shared.complaint(
        "rm", "pytorch.resnet18.cls1000.imagenet", code=6
    )


def test_prune_makes_room_in_the_cache(shared):
    shared.lines("fetch", "--all", "--store", "weights.toml")
    left = shared.json("prune", "--max-size", "1B", "--grace", "0s", "--store", "weights.toml")
    assert left["states"] == [str(BASE), str(TUNED), str(OTHER)]
    assert left["kept"] == []
    assert {one["cached"] for one in shared.json("ls", "weights.toml")["states"]} == {"no"}


def test_prune_tells_of_folders_for_frameworks(shared):
    old, new = (shared.folder / "cache" / "folders" / (name * 32) for name in "ab")
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(1000))
    os.utime(old, (0, 0))
    assert "- folders for frameworks  2.0 kB" in shared("du", "weights.toml").stdout
    dry = shared.json("prune", "-n", "--max-size", "1B", "--store", "weights.toml")
    assert dry["folders"] == [{"path": str(old), "bytes": 1000}]
    assert dry["kept"] == [{"reason": "recent folders", "states": [], "objects": 1, "bytes": 1000}]
    done = shared("prune", "--max-size", "1B", "--store", "weights.toml")
    assert done.stdout.startswith(f"{old}  1.0 kB, deleted\n")
    assert "1 folder, 1.0 kB: used by frameworks a short while ago (--grace)" in done.stderr
    assert "1.0 kB stay, more than 1 B" in done.stderr
    assert (old.exists(), new.exists()) == (False, True)
    shared.lines("prune", "--max-size", "1B", "--grace", "0s", "--store", "weights.toml")
    assert not new.exists()


def test_prune_says_what_is_dated_in_the_future(shell):
    left = shell.folder / "weights" / "tmp" / ("f" * 32)
    left.write_bytes(b"left by a crash")
    then = time.time() + 7200
    os.utime(left, (then, then))
    assert shell.json("prune", "--store", "weights")["future"] == [str(left)]
    done = shell("prune", "--store", "weights")
    assert "dated in the future" in done.stderr
    assert left.exists()


def test_diff_tells_which_tensors_differ_and_by_how_much(shell):
    found = shell.json("diff", BASE, TUNED, "--store", "weights", code=1)
    (change,) = found["changed"]
    assert change["name"] == "b.weight"
    assert change["differing"] == 128 * 64
    assert change["max_abs"] == pytest.approx(0.5, abs=1e-6)
    assert found["equal"] == ["a.weight", "b.bias"]
    text = shell.lines("diff", BASE, TUNED, "--store", "weights", code=1)
    assert text[0] == "equal on 2 of 3 shared names"
    assert any("0.5" in line for line in text)
    same = shell.lines("diff", BASE, BASE, "--store", "weights")
    assert same == ["the same weights: equal on all 3 names"]


def test_diff_of_a_state_and_a_file(shell):
    shell.lines("export", BASE, "base.safetensors", "--store", "weights")
    assert shell.json("diff", BASE, "base.safetensors", "--store", "weights")["same_weights"]
    tensors = load_file(shell.folder / "base.safetensors")
    tensors["extra"] = torch.ones(2)
    save_file(tensors, shell.folder / "more.safetensors")
    text = shell.lines("diff", "base.safetensors", "more.safetensors", code=1)
    assert text == ["equal on all 3 shared names", "only in more.safetensors: extra"]


def test_diff_of_a_file_without_the_names_of_tied_weights(shell):
    weight = torch.randn(100, 60)
    save_file({"embed.weight": weight}, shell.folder / "saved.safetensors")
    torch.save({"embed.weight": weight, "head.weight": weight}, shell.folder / "live.pt")
    found = shell.json("diff", "saved.safetensors", "live.pt", code=1)
    assert (found["same_weights"], found["same_but_for_ties"]) == (False, True)
    assert found["tied"] == [{"name": "head.weight", "other": "embed.weight"}]
    assert shell.lines("diff", "saved.safetensors", "live.pt", code=1) == [
        "equal on all 1 shared names",
        "the same but for tied names: a model that has them tied is the same with both",
        "only in live.pt: head.weight (the same tensor as embed.weight)",
    ]


def test_add_says_what_it_took_and_left_and_takes_what_is_asked_for(shell):
    folder = shell.folder / "trained"
    folder.mkdir()
    state = {"module.w": torch.ones(2), "module.b": torch.zeros(2)}
    torch.save({"model": state, "ema": state | {"module.c": torch.ones(1)}}, folder / "last.ckpt")
    torch.save({"step": torch.ones(1)}, folder / "head.pth")
    (folder / "config.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"")
    (shell.folder / "notes.txt").write_text("mine")
    add = ("add", "pytorch.net.t", "trained", "--store", "weights")
    assert "--weights head.pth" in shell.complaint(*add, code=2)
    options = ("--weights", "last.ckpt", "--select", "model", "--strip-prefix", "module.")
    more = ("--rename", "w=weight", "--add-prefix", "net.", "--include", "opt*", "--exclude", "*.x")
    assert "no file beside" in shell.complaint(*add, *options, *more, code=2)
    done = shell(*add, *options, *more[:-2], "--file", "notes.txt")
    assert "with config.json, notes.txt, optimizer.pt" in done.stderr
    assert done.stderr.splitlines()[-1] == "not taken: head.pth"
    store = LocalStateStore(shell.folder / "weights")
    names = store.load_state_dict(StateKey.parse("pytorch.net.t")).keys()
    assert names == {"net.weight", "net.b"}
    again = ("add", "pytorch.net.u", "trained/last.ckpt", "--store", "weights")
    report = shell.json(*again, "--select", "model", "--select", "ema")
    assert (report["taken"], report["skipped"]) == (["last.ckpt"], [])
    names = store.load_state_dict(StateKey.parse("pytorch.net.u")).keys()
    assert {"ema.module.c", "model.module.w"} < {*names}


def test_adding_the_weights_of_a_wrapped_model_is_told(shell):
    torch.save({"module.a": torch.ones(3), "module.b": torch.ones(3)}, shell.folder / "ddp.pt")
    report = shell.json("add", "pytorch.net.ddp", "ddp.pt", "--store", "weights")
    assert report["prefix"] == "module."
    done = shell("add", "pytorch.net.ddp", "ddp.pt", "--store", "weights")
    assert "all names begin with module. as those of a wrapped model do" in done.stderr
    averaged = {"module.a": torch.ones(3), "n_averaged": torch.tensor(2)}
    torch.save(averaged, shell.folder / "ema.pt")
    added = ("add", "pytorch.net.ema", "ema.pt", "--store", "weights", "--strip-prefix", "module.")
    assert "without n_averaged: no tensors of the model" in shell(*added).stderr


def test_arrays_and_distributed_checkpoints_are_added_and_compared(shell):
    numpy.savez_compressed(shell.folder / "x.npz", w=numpy.ones((2, 2), ">f4"))
    parts = grid((2, 2), [[1], []])
    write_chunks(shell.folder / "ck", {"w": torch.ones(2, 2)}, {"w": parts})
    digests = {shell("digest", name).stdout.split()[0] for name in ("x.npz", "ck")}
    assert digests == {state_digest({"w": torch.ones(2, 2)})}
    assert "the same weights" in shell("diff", "x.npz", "ck").stdout
    for number, name in enumerate(("x.npz", "ck")):
        report = shell.json("add", f"pytorch.net.n{number}", name, "--store", "weights")
        assert {report["digest"]} == digests


def test_keys_that_are_nearly_right_are_told(shell):
    told = shell.complaint("show", "pytorch.mlp.cls10.tunde", "--store", "weights", code=3)
    assert f"did you mean {TUNED}" in told
    told = shell.complaint("show", "pytorch.mpl.cls10.tuned", "--store", "weights", code=3)
    assert f"did you mean {TUNED}" in told
    assert "mlstate ls" in shell.complaint("show", "x.y.z", "--store", "weights", code=3)
    assert "no state fits" in shell.complaint("verify", "jax.*", "--store", "weights", code=3)


@pytest.mark.parametrize(
    ("store", "code", "says"),
    [
        ("nowhere", 3, "there is no store here"),
        ("nowhere.toml", 3, "there is no manifest here"),
        ("https://example.org/weights", 2, "this address is none of a store"),
        ("github:nobody", 2, "this address is none of a store"),
        (".", 3, "there is no store here"),
    ],
)
def test_a_store_that_is_none(tmp_path, store, code, says):
    assert says in Shell(tmp_path).complaint("ls", store, code=code)


def test_what_is_typed_wrong_shows_the_usage(shell):
    for arguments in (["ls", "--bogus"], ["bogus"], ["fetch"], ["fetch", "--all", "x.y.z"]):
        told = shell.complaint(*arguments, code=2)
        assert "Usage: mlstate" in told


def test_a_store_within_a_folder_is_safe_from_commands_on_that_folder(shell):
    before = shell.lines("ls", "weights", "--json")
    assert "there is no store here" in shell.complaint("rm", BASE, "--store", ".", code=3)
    (shell.folder / "m.toml").write_text("version = 1\n")
    assert "no such state" in shell.complaint("rm", BASE, "--store", ".", code=3)
    assert shell.lines("ls", ".") == []
    assert "a store" in shell.complaint("lock", "weights", code=2)
    assert shell.lines("ls", "weights", "--json") == before


def test_a_copy_with_a_conflict_tells_what_was_done(shell):
    other = LocalStateStore(shell.folder / "there")
    other.save_state_dict({"x": torch.zeros(2)}, OTHER)
    copied = shell.json(
        "copy", "--all", "--from", "weights", "--to", "there", "--manifest", "there.toml", code=6
    )
    assert copied["copied"] == [str(BASE), str(TUNED)]
    assert [failure["key"] for failure in copied["failed"]] == [str(OTHER)]
    listed = tomllib.loads((shell.folder / "there.toml").read_text())["states"]
    assert listed.keys() == {str(BASE), str(TUNED)}
    done = shell("copy", "--all", "--from", "weights", "--to", "there")
    assert f"error: {OTHER}: " in done.stderr
    assert f"{BASE}  there already" in done.stdout


def test_a_damaged_store_is_mended_by_bringing_the_state_again(shell):
    shell.lines("copy", "--all", "--from", "weights", "--to", "there")
    big = max((shell.folder / "there").glob("objects/*/*"), key=lambda p: p.stat().st_size)
    big.chmod(0o644)
    big.write_bytes(b"x" * big.stat().st_size)
    found = "\n".join(shell.lines("verify", "--all", "--store", "there", code=1))
    assert "bring the state again with --verify" in found
    shell.lines("copy", "--all", "--from", "weights", "--to", "there", "--verify")
    shell.lines("verify", "--all", "--store", "there")


def test_one_bad_file_does_not_hide_the_digests_of_the_others(shell):
    save_file({"w": torch.ones(2)}, shell.folder / "a.safetensors")
    (shell.folder / "b.safetensors").write_bytes(b"<!DOCTYPE html>")
    done = shell("digest", "a.safetensors", "b.safetensors", "none.pt", "a.safetensors")
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.count("error:") == 2


def test_lock_takes_states_over_from_the_default_store(shell):
    save_file({"w": torch.arange(20_000.0)}, shell.folder / "in.safetensors")
    shipped = shell.folder / "shipped.toml"
    address = (shell.folder / "in.safetensors").as_uri()
    shipped.write_text(
        f'version = 1\n[states."pytorch.t.one"]\nmirrors = ["{address}"]\n'
        '[states."pytorch.t.two"]\nmirrors = ["nowhere.safetensors"]\n'
    )
    with_default = Shell(shell.folder, {**shell.environment, "MLSTATE_MANIFESTS": str(shipped)})
    (pinned,) = with_default.json("lock", "mine.toml", "pytorch.t.one")["pinned"]
    listed = tomllib.loads((shell.folder / "mine.toml").read_text())["states"]
    assert listed["pytorch.t.one"]["blake3"] == pinned["digest"]
    assert len(shell.lines("fetch", "--all", "--store", "mine.toml")) == 1
    # What was pinned is told, whatever else fails.
    done = with_default("lock", "shipped.toml")
    assert done.returncode == 5
    assert done.stdout.startswith("pytorch.t.one  ")


def test_nan_is_not_hidden_in_a_difference(shell):
    store = LocalStateStore(shell.folder / "weights")
    tensors = store.load_state_dict(BASE)
    tensors["b.bias"][0] = float("nan")
    store.save_state_dict(tensors, StateKey(BASE.state_type, "broken"))
    lines = shell.lines("diff", BASE, "pytorch.mlp.cls10.broken", "--store", "weights", code=1)
    assert lines[2].split()[-3:] == ["NAN", "OR", "INF"]
    assert lines[3].split()[-1] == "1"


def test_a_cache_that_keeps_what_is_new_says_so(shared):
    shared.lines("fetch", "--all", "--store", "weights.toml")
    done = shared("prune", "--older-than", "0d", "--max-size", "1B", "--store", "weights.toml")
    assert done.stdout.count("stays: it was used or fetched a short while ago (--grace)") == 3
    assert "left the cache" not in done.stdout
    assert "stay, more than 1 B" in done.stderr
    assert {one["cached"] for one in shared.json("ls", "weights.toml")["states"]} == {"yes"}
    assert "--max-size" in shared("prune", "--store", "weights.toml").stderr


def test_what_unbundle_brought_stays_and_counts_towards_the_limit(shared):
    shared.lines("bundle", BASE, "--store", "weights", "-o", "base.tar")
    shared.lines("unbundle", "base.tar")
    done = shared("prune", "--max-size", "1B", "--store", "weights.toml")
    assert f"{BASE}  stays: it was saved in this folder" in done.stdout
    assert f"mlstate rm KEY --store {shared.folder / 'cache'}" in done.stderr
    (kept,) = shared.json("prune", "--max-size", "1B", "--store", "weights.toml")["kept"]
    on_disk = [path.stat().st_size for path in shared.folder.glob("cache/objects/*/*")]
    assert (kept["reason"], kept["states"]) == ("saved", [str(BASE)])
    assert (kept["objects"], kept["bytes"]) == (len(on_disk), sum(on_disk))
    shared.lines("rm", BASE, "--store", "cache")  # what the report says to do
    for _ in range(2):
        shared.lines("prune", "--grace", "0s", "--store", "cache")
    assert not list(shared.folder.glob("cache/objects/*/*"))


def test_prune_of_a_store_says_what_the_grace_period_keeps(shell):
    shell.lines("rm", OTHER, "--store", "weights")
    for more in ((), ("--dry-run",)):
        done = shell("prune", "--store", "weights", *more)
        assert "2 objects" in done.stderr
        assert "--grace" in done.stderr
        by_reason = {one["reason"]: one for one in shell.json("prune", "-s", "weights")["kept"]}
        assert by_reason["young"]["objects"] == 2
        assert by_reason["unfinished"]["objects"] == 1  # its state file
    moved = shell.json("prune", "--grace", "0s", "--store", "weights")
    assert (moved["trashed"]["objects"], moved["kept"]) == (2, [])
    assert "give one of both" in shell.complaint(
        "prune", "--grace", "0s", "--older-than", "1d", "--store", "weights", code=2
    )


def test_verify_finds_what_was_named_and_is_not_here(shared):
    """Nothing is green that checked nothing."""
    view = ("--store", "weights.toml")
    absent = shared.json("verify", BASE, *view, code=1)
    assert (absent["ok"], absent["checked"], absent["absent"]) == (False, [], [str(BASE)])
    (finding,) = absent["findings"]
    assert (finding["kind"], finding["keys"]) == ("unchecked", [str(BASE)])
    assert "0 states checked, 1 not here" in shared.lines("verify", BASE, *view, code=1)[-1]
    assert shared.lines("verify", "--all", *view)[-1].endswith("nothing was checked")
    shared.lines("fetch", TUNED, *view)
    for plain in (("--all",), ()):
        said = shared.lines("verify", *plain, *view)[-1]
        assert said.startswith("1 state checked, 2 not here;")
        assert shared.json("verify", *plain, *view)["ok"] is True
        assert len(shared.json("verify", *plain, "--strict", *view, code=1)["findings"]) == 2
    repaired = shared.json("verify", BASE, OTHER, "--repair", *view)
    assert [one["remedy"] for one in repaired["findings"]] == ["it was fetched"] * 2
    assert repaired["checked"] == [str(BASE), str(OTHER)]
    assert shared.json("verify", "--strict", *view)["findings"] == []


def test_verify_names_what_is_missing_of_a_state_that_is_here_in_part(shared):
    shared.lines("fetch", BASE, "--store", "weights.toml")
    tensors = shared.json("show", BASE, "-s", "weights")["tensors"]
    (gone,) = [one["digest"] for one in tensors if one["name"] == "b.weight"]
    (shared.folder / "cache" / "objects" / gone[:2] / gone[2:]).unlink()
    found = shared.json("verify", BASE, "--store", "weights.toml", code=1)
    (finding,) = found["findings"]
    assert (finding["what"], finding["tensors"]) == ("tensor 'b.weight'", ["b.weight"])
    assert (found["partial"], found["checked"]) == ([str(BASE)], [])
    mended = shared.json("verify", BASE, "--repair", "--store", "weights.toml")
    assert (mended["ok"], mended["checked"]) == (True, [str(BASE)])


def test_verify_asks_mirrors_and_keeps_nothing(shared):
    view = ("--store", "weights.toml")
    asked = shared.json("verify", "--mirrors", *view)
    assert [one["reason"] for one in asked["mirrors"]] == [None] * 3
    assert not (shared.folder / "cache").exists()
    big = max((shared.folder / "weights").glob("objects/*/*"), key=lambda p: p.stat().st_size)
    big.chmod(0o644)
    data = bytearray(big.read_bytes())
    data[-1] ^= 1
    big.write_bytes(data)
    assert shared.json("verify", "--mirrors", *view)["ok"] is True  # it has the right size
    deep = shared.json("verify", "--mirrors", "--deep", *view, code=1)
    assert [one["keys"] for one in deep["findings"]] == [[str(BASE)], [str(TUNED)]]
    assert {one["kind"] for one in deep["findings"]} == {"faulty"}
    big.write_bytes(data[:-1])
    assert len(shared.json("verify", "--mirrors", *view, code=1)["findings"]) == 2
    assert "--mirrors" in shared.complaint("verify", "--deep", *view, code=2)
    assert shared.complaint("verify", "--mirrors", "--repair", *view, code=2)
