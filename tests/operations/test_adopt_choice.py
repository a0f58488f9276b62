"""What `adopt` takes of a folder or a checkpoint: nothing silently, and under which names."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save, save_file

from mlstate import (
    LocalStateStore,
    ManifestStore,
    StateKey,
    adopt,
    file_digest,
    lock,
    state_digest,
)
from mlstate.errors import FetchError, FormatError
from tests.support.models import net, same, values

DATA = Path(__file__).parents[1] / "data"
KEY, OTHER = StateKey.parse("pytorch.net.a"), StateKey.parse("pytorch.net.b")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "cache"))


def folder_of(path: Path, *names: str) -> Path:
    """A folder with files of weights, each of one tensor of its own."""
    for number, name in enumerate(names):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        state = {f"w{number}": torch.full((3,), float(number))}
        if name.endswith(".safetensors"):
            save_file(state, file)
        elif name.endswith(".gz"):
            import gzip
            import io

            plain = io.BytesIO()
            torch.save(state, plain)
            file.write_bytes(gzip.compress(plain.getvalue()))
        elif name.endswith((".json", ".md", ".txt", "LICENSE", ".py")):
            file.write_text("{}")
        else:
            torch.save(state, file)
    return path


def refused(*arguments: object, **options: object) -> FormatError:
    with pytest.raises(FormatError) as caught:
        adopt(*arguments, **options)  # type: ignore[arg-type]
    return caught.value


def refused_anywhere(*arguments: object, **options: object) -> str:
    """As `refused`; into a manifest it is the reason of the attempt at the mirror."""
    with pytest.raises((FormatError, FetchError)) as caught:
        adopt(*arguments, **options)  # type: ignore[arg-type]
    return str(caught.value)


# Which file.


@pytest.mark.parametrize(
    "names",
    [
        ("last.ckpt", "head.pth"),
        ("model.pth.tar", "ema.pt"),
        ("a.safetensors", "b.safetensors"),
        ("model.safetensors", "head.pth"),
        ("model.safetensors", "model_1.safetensors"),  # two models of accelerate
        ("adapter_model.safetensors", "model.safetensors"),
        ("model.fp16.safetensors", "model.bf16.safetensors"),
        ("x.pt.gz", "y.pt"),
    ],
)
def test_several_candidates_are_refused_and_one_can_be_chosen(tmp_path, store, names):
    folder = folder_of(tmp_path / "f", *names)
    error = refused(folder, KEY, store)
    assert error.found == ", ".join(sorted(names))
    assert f"weights={min(names)!r}" in str(error.remedy)
    with pytest.raises(FormatError, match="several"):
        file_digest(folder)
    for number, name in enumerate(names):
        report = adopt(folder, KEY, store, weights=name, overwrite=True)
        assert store.load_state_dict(KEY).keys() == {f"w{number}"}
        assert report.taken == (name,)
        assert report.skipped == tuple(sorted({*names} - {name}))


@pytest.mark.parametrize("name", ["last.ckpt", "model.pth.tar", "model.pt.gz", "x.bin", "x.pth"])
def test_every_container_alone_in_a_folder_is_its_weights(tmp_path, store, name):
    report = adopt(folder_of(tmp_path / "f", name), KEY, store)
    assert (report.taken, report.skipped) == ((name,), ())


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("pytorch_model.bin", "model.safetensors"), "model.safetensors"),
        (("model.fp16.safetensors", "model.safetensors"), "model.safetensors"),
        (("model.fp16.safetensors",), "model.fp16.safetensors"),
        (
            ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"),
            "diffusion_pytorch_model.bin",
        ),
        (
            ("model.safetensors", "optimizer.pt", "rng_state_0.pth", "training_args.bin"),
            "model.safetensors",
        ),
    ],
)
def test_what_stands_for_the_same_model_is_told_and_not_taken(tmp_path, store, names, chosen):
    report = adopt(folder_of(tmp_path / "f", *names), KEY, store)
    assert report.taken == (chosen,)
    assert report.skipped == tuple(sorted({*names} - {chosen}))


def test_the_state_of_a_training_alone_is_no_model(tmp_path, store):
    folder = folder_of(tmp_path / "f", "optimizer.pt", "scheduler.pt")
    error = refused(folder, KEY, store)
    assert "no weights" in error.message
    assert error.found == "optimizer.pt, scheduler.pt"
    assert adopt(folder, KEY, store, weights="optimizer.pt").taken == ("optimizer.pt",)


def test_a_name_that_is_not_there_is_refused_with_those_that_are(tmp_path, store):
    folder = folder_of(tmp_path / "f", "a.pt", "b.pt")
    assert refused(folder, KEY, store, weights="c.pt").found == "a.pt, b.pt"
    assert "one file" in refused(folder / "a.pt", KEY, store, weights="a.pt").message


# Complete, or refused.


def sharded(folder: Path, index: str, names: list[str]) -> None:
    folder.mkdir()
    places = {}
    for number, name in enumerate(names):
        save_file({f"w{number}": torch.full((2,), float(number))}, folder / name)
        places[f"w{number}"] = name
    (folder / index).write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_an_index_that_names_what_is_not_there_is_refused_by_name(tmp_path, store, variant):
    middle = f".{variant}" if variant else ""
    names = [f"model{middle}-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    folder = tmp_path / "f"
    sharded(folder, f"model.safetensors.index{middle}.json", names)
    report = adopt(folder, KEY, store)
    assert {*names} < {*report.taken}
    assert len(store.load_state_dict(KEY)) == 3
    assert "one shard" in refused(folder / names[0], OTHER, store).message
    assert "one shard" in refused(folder, OTHER, store, weights=names[1]).message
    for name in names[1:]:
        (folder / name).unlink()
    error = refused(folder, OTHER, store)
    assert error.found == f"missing: {names[1]}, {names[2]}"
    with pytest.raises(FormatError, match="missing"):
        file_digest(folder)


def test_shards_without_an_index_are_all_there_or_refused(tmp_path, store):
    names = [f"consolidated-{number}-of-3.safetensors" for number in (1, 2, 3)]
    folder = folder_of(tmp_path / "f", *names)
    assert adopt(folder, KEY, store).taken == tuple(names)
    assert len(store.load_state_dict(KEY)) == 3
    (folder / names[1]).unlink()
    assert refused(folder, OTHER, store).found == f"missing: {names[1]}"


# What lies beside.

BESIDE = ("config.json", "README.md", "LICENSE", "merges.txt", "1_Pooling/config.json")


def checkpoint_500(path: Path) -> Path:
    return folder_of(
        path,
        *("model.safetensors", *BESIDE, "optimizer.pt", "rng_state.pth", "modeling.py"),
        *("checkpoint-1/model.safetensors", "checkpoint-1/config.json", ".hidden.json"),
    )


SKIPPED = (
    "checkpoint-1/config.json",
    "checkpoint-1/model.safetensors",
    "modeling.py",
    "optimizer.pt",
    "rng_state.pth",
)


def test_the_report_says_what_was_taken_and_left(tmp_path, store):
    folder = checkpoint_500(tmp_path / "f")
    report = adopt(folder, KEY, store)
    assert report.files == tuple(sorted(BESIDE))
    assert report.taken == tuple(sorted((*BESIDE, "model.safetensors")))
    assert report.skipped == SKIPPED
    manifest = tmp_path / "m.toml"
    listed = adopt(folder, KEY, manifest, mirror=True)
    assert (listed.files, listed.taken, listed.skipped) == (
        report.files,
        report.taken,
        report.skipped,
    )
    assert {**ManifestStore(manifest).files(KEY)} == {**store.files(KEY)}


def test_patterns_choose_and_a_given_file_is_added(tmp_path, store):
    folder = checkpoint_500(tmp_path / "f")
    (tmp_path / "notes").write_text("mine")
    for target in (store, tmp_path / "m.toml"):
        report = adopt(
            folder,
            KEY,
            target,
            mirror=target is not store,
            include=["optimizer.pt", "checkpoint-*"],
            exclude="*.md",
            files={"notes": tmp_path / "notes"},
        )
        wanted = {*BESIDE, "optimizer.pt", "notes", *SKIPPED[:2]} - {"README.md"}
        assert {*report.files} == wanted
        assert report.skipped == ("README.md", "modeling.py", "rng_state.pth")
    content = store.files(KEY)
    assert content["optimizer.pt"] == (folder / "optimizer.pt").read_bytes()
    assert adopt(folder, OTHER, store, files={}).files == ()
    error = refused(folder, OTHER, store, include="optimiser.pt")
    assert "optimizer.pt" in str(error.found)


def test_the_parts_of_a_sentence_transformer_are_not_left_without_a_word(tmp_path, store):
    folder = folder_of(
        tmp_path / "f",
        *("model.safetensors", "config.json", "1_Pooling/config.json"),
        *("2_Dense/model.safetensors", "2_Dense/config.json"),
    )
    paths = ("", "1_Pooling", "2_Dense")
    (folder / "modules.json").write_text(json.dumps([{"path": path} for path in paths]))
    report = adopt(folder, KEY, store)
    assert {"1_Pooling/config.json", "2_Dense/config.json"} <= {*report.files}
    assert report.skipped == ()
    assert "2_Dense/model.safetensors" in report.taken
    assert any(name.startswith("2_Dense/") for name in store.load_state_dict(KEY))
    again = adopt(folder, OTHER, store, include="2_Dense/*")
    assert again.skipped == ()
    assert "2_Dense/model.safetensors" in again.taken


@pytest.mark.parametrize("target", ["folder", "manifest"])
def test_of_a_repository_of_the_hub_the_same_is_told_and_chosen(tmp_path, hub_only, target):
    content = {name: name.encode() for name in ("config.json", "README.md", "run.py")}
    content["optimizer.pt"] = b"opt"
    one, two = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    content |= {"model.safetensors": save(one), "ema/other.safetensors": save(two)}
    hub_only.add("org/model", content)
    into = LocalStateStore(tmp_path / "s") if target == "folder" else tmp_path / "m.toml"
    options = {"mirror": target == "manifest"}
    report = adopt("hf://org/model", KEY, into, **options)
    assert report.taken == ("README.md", "config.json", "model.safetensors")
    assert report.skipped == ("ema/other.safetensors", "optimizer.pt", "run.py")
    options |= {
        "include": "optimizer.pt",
        "exclude": "README.md",
        "weights": "ema/other.safetensors",
    }
    report = adopt("hf://org/model", OTHER, into, **options)
    assert report.digest == state_digest(two)
    assert report.files == ("config.json", "optimizer.pt")
    assert report.skipped == ("README.md", "model.safetensors", "run.py")
    opened = into if target == "folder" else ManifestStore(into, offline=True)
    assert dict(opened.files(OTHER)) == {name: content[name] for name in report.files}


# Checkpoints of trainers.


def of_a_trainer(state: dict[str, torch.Tensor]) -> dict[str, object]:
    return {
        "state_dict": state,
        "args": argparse.Namespace(lr=0.1, path=Path("x")),
        "epoch": numpy.int64(3),
        "best": numpy.float32(0.5),
        "history": numpy.arange(4.0),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1}]},
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("select", ["state_dict", None])
def test_a_checkpoint_of_a_trainer_gives_its_state_dict(tmp_path, store, zipped, select):
    state = values(net(0))
    path = tmp_path / "x.pth"
    torch.save(of_a_trainer(state), path, _use_new_zipfile_serialization=zipped)
    report = adopt(path, KEY, store, select=select)
    assert report.digest == state_digest(state)
    assert report.select == (None if select else "state_dict")
    listed = adopt(path, KEY, tmp_path / "m.toml", mirror=True, select=select)
    assert listed.digest == report.digest


def test_configs_of_omegaconf_and_numbers_of_numpy_are_names(store):
    # tests/data/README.md says how it was written.
    source = DATA / "trainer-omegaconf.ckpt"
    report = adopt(source, KEY, store)
    state = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}
    assert (report.digest, report.select) == (state_digest(state), "state_dict")
    assert "omegaconf" not in sys.modules


@pytest.mark.parametrize("name", ["lpips/alex.pth", "facenet/pnet.pt"])
def test_real_legacy_files_are_what_torch_reads(store, name):
    report = adopt(DATA / name, KEY, store)
    real = torch.load(DATA / name, map_location="cpu", weights_only=True)
    assert report.digest == state_digest(real)
    assert same(store.load_state_dict(KEY), real)


def averaged_in(folder, around="", form="pth"):
    """An AveragedModel, and a file with its state, torch.compile around it or not."""
    averaged = torch.optim.swa_utils.AveragedModel(net(0))
    tensors = {around + name: value for name, value in averaged.state_dict().items()}
    folder.mkdir()
    source = folder / f"x.{form}"
    save = torch.save if form == "pth" else save_file
    save(tensors, source)
    return averaged, source


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("place", ["here", "web"])
@pytest.mark.parametrize("around", ["", "_orig_mod."])
def test_the_count_of_an_averaged_model_goes_with_its_prefix(  # noqa: PLR0917
    tmp_path, store, start_nginx, place, around, form
):
    averaged, source = averaged_in(tmp_path / "web", around, form)
    address = start_nginx(tmp_path / "web").url(source.name) if place == "web" else source
    report = adopt(address, KEY, store, strip_prefix=f"{around}module.")
    assert report.digest == state_digest(averaged.module.state_dict())
    assert (report.prefix, report.passed_over) == (None, (f"{around}n_averaged",))
    model = net(1)
    assert store.load(model, KEY) == ([], [])
    assert same(values(model), values(averaged.module))


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("place", ["here", "web"])
def test_a_mirror_without_the_count_is_refused_with_the_ways_out(
    tmp_path, store, start_nginx, place, form
):
    averaged, source = averaged_in(tmp_path / "web", form=form)
    address = start_nginx(tmp_path / "web").url(source.name) if place == "web" else source
    manifest = tmp_path / "m.toml"
    error = refused(address, KEY, manifest, mirror=True, strip_prefix="module.")
    assert error.tensor == "n_averaged"
    assert error.remedy == "adopt it into a store, without mirror=True; or leave strip_prefix out"
    assert not manifest.exists()
    # Both ways out.
    report = adopt(address, KEY, store, strip_prefix="module.")
    assert report.digest == state_digest(averaged.module.state_dict())
    assert adopt(address, KEY, manifest, mirror=True).prefix == "module."
    other = torch.optim.swa_utils.AveragedModel(net(1))
    assert ManifestStore(manifest, cache=tmp_path / "fresh").load(other, KEY) == ([], [])
    assert same(values(other), values(averaged))


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_a_mirror_of_a_manifest_keeps_every_name(tmp_path, form):
    """The format takes the prefix off the names that have it: what was pinned so is fetched so."""
    averaged, source = averaged_in(tmp_path / "web", form=form)
    tensors = averaged.module.state_dict() | {"n_averaged": averaged.n_averaged}
    manifest = tmp_path / "m.toml"
    mirror = f'{{url = "{source}", strip_prefix = "module."'
    mirror += ', format = "torch"}' if form == "pth" else "}"
    pinned = f'blake3 = "{state_digest(tensors)}"\n'
    for digest in (pinned, ""):
        manifest.write_text(
            f'version = 1\n[states."{KEY}"]\n{digest}mirrors = [{mirror}]\n', encoding="utf-8"
        )
        if not digest:
            lock(manifest)
        opened = ManifestStore(manifest, cache=tmp_path / f"fresh{len(digest)}")
        assert same(opened.load_state_dict(KEY), tensors)
        assert opened.digest(KEY) == state_digest(tensors)


@pytest.mark.parametrize(
    "names", [["module.w", "n_averaged", "head"], ["module.w", "n_averaged.x"]]
)
def test_what_is_not_plainly_the_count_of_a_wrapper_stays(tmp_path, store, names):
    save_file({name: torch.ones(1) for name in names}, tmp_path / "x.safetensors")
    adopt(tmp_path / "x.safetensors", KEY, store, strip_prefix="module.")
    assert store.load_state_dict(KEY).keys() == {n.removeprefix("module.") for n in names}
    adopt(tmp_path / "x.safetensors", OTHER, store, rename={"module.": ""})
    assert len(store.load_state_dict(OTHER)) == len(names)


@pytest.mark.parametrize("mirror", [False, True])
def test_an_option_that_changes_no_name_warns(tmp_path, store, mirror):
    save_file({"module.w": torch.ones(3)}, tmp_path / "x.safetensors")
    target = tmp_path / "m.toml" if mirror else store
    with pytest.warns(UserWarning, match="strip_prefix='modul-' changes nothing: no name"):
        adopt(tmp_path / "x.safetensors", KEY, target, mirror=mirror, strip_prefix="modul-")
    with pytest.warns(UserWarning, match="rename of 'v' changes nothing"):
        adopt(tmp_path / "x.safetensors", OTHER, target, mirror=mirror, rename={"v": "w"})


def test_names_that_begin_with_a_dot_are_warned_of(tmp_path, store):
    save_file({"module.w": torch.ones(3)}, tmp_path / "x.safetensors")
    with pytest.warns(UserWarning, match=r"with a dot now; strip_prefix='module\.'"):
        adopt(tmp_path / "x.safetensors", KEY, store, strip_prefix="module")
    adopt(tmp_path / "x.safetensors", OTHER, store, strip_prefix="module.")
    assert list(store.load_state_dict(OTHER)) == ["w"]
