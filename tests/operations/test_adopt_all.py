"""`adopt_all`: what is found below a folder, its keys, and what one failure does to the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlstate import LocalStateStore, Manifest, StateKey, adopt, adopt_all, manifest_of
from mlstate.errors import FormatError, StateExistsError, WeightsNotFoundError
from mlstate.operations.adopt_all import AdoptAllReport
from tests.operations.test_adopt import shard

SHARED = torch.randn(100, 100)


def state(number: float = 0.0) -> dict[str, torch.Tensor]:
    return {"shared": SHARED, "own": torch.full((100, 60), number), "small": torch.ones(3)}


@pytest.fixture
def runs(tmp_path):
    """Files, a folder of a model, shards, a pipeline, and what is none of these."""
    top = tmp_path / "runs"
    for number, name in enumerate(("first/epoch1.pt", "first/epoch2.pt", "second/epoch1.pth.tar")):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state(float(number)), top / name)
    torch.save({"step": 1}, top / "first" / "optimizer.pt")
    (top / "hf").mkdir()
    save_file(state(7.0), top / "hf" / "model.safetensors")
    torch.save(state(7.0), top / "hf" / "pytorch_model.bin")
    (top / "hf" / "config.json").write_text("{}")
    shard(top / "sharded", state(8.0))
    for part in ("unet", "vae"):
        (top / "pipe" / part).mkdir(parents=True)
        save_file(state(9.0), top / "pipe" / part / "model.safetensors")
    parts = {part: ["torch", "Linear"] for part in ("unet", "vae")}
    (top / "pipe" / "model_index.json").write_text(json.dumps(parts))
    (top / "readme.txt").write_text("x")
    (top / ".hidden").mkdir()
    torch.save(state(), top / ".hidden" / "x.pt")
    LocalStateStore(top / "a-store").save_state_dict(state(), StateKey.parse("pytorch.net.a"))
    return top


KEYS = {
    "first/epoch1.pt": "pytorch.net.first.epoch1",
    "first/epoch2.pt": "pytorch.net.first.epoch2",
    "hf": "pytorch.net.hf.model",
    "pipe": "pytorch.net.pipe.model",
    "second/epoch1.pth.tar": "pytorch.net.second.epoch1",
    "sharded": "pytorch.net.sharded.model",
}
TEMPLATE = "pytorch.net.{parent}.{stem}"


def results(report: AdoptAllReport) -> dict[str, str]:
    return {each.source: each.result for each in report.states}


@pytest.mark.parametrize("jobs", [1, 4])
def test_each_file_and_each_model_folder_is_a_state(runs, store, jobs):
    report = adopt_all(runs, store, TEMPLATE, jobs=jobs, meta={"licence": "MIT"})
    assert {each.source: each.key for each in report.states} == KEYS
    assert set(results(report).values()) == {"stored"}
    assert sorted(map(str, store.get_state_keys())) == sorted(KEYS.values())
    for source, text in KEYS.items():
        key = StateKey.parse(text)
        other = LocalStateStore(runs.parent / "other")
        assert store.digest(key) == adopt(runs / source, key, other).digest
        assert store.meta(key) == {"licence": "MIT"}
    assert list(store.files(StateKey.parse(KEYS["hf"]))) == ["config.json"]
    again = adopt_all(runs, store, TEMPLATE, jobs=jobs, meta={"licence": "MIT"})
    assert set(results(again).values()) == {"existed"}
    assert again.added == 0


def test_new_and_shared_bytes_are_told(runs, store):
    first = adopt(runs / "first/epoch1.pt", StateKey.parse("pytorch.net.x"), store)
    assert (first.size, first.added, first.spared) == (64_012, 64_012, 0)
    second = adopt(runs / "first/epoch2.pt", StateKey.parse("pytorch.net.y"), store)
    assert (second.added, second.spared) == (24_012, 40_000)
    again = adopt(runs / "first/epoch2.pt", StateKey.parse("pytorch.net.y"), store)
    assert (again.existed, again.added, again.spared) == (True, 0, 64_012)
    tied = {"a": SHARED + 1, "b": SHARED + 1}  # which are one object
    torch.save(tied, runs / "tied.pt")
    report = adopt(runs / "tied.pt", StateKey.parse("pytorch.net.z"), store)
    assert (report.size, report.added, report.spared) == (80_000, 40_000, 0)
    whole = adopt_all(runs / "first", store, "pytorch.net.{stem}")  # the same under other keys
    assert (whole.added, whole.spared) == (0, 2 * 64_012)


def test_a_dry_run_changes_nothing(runs, tmp_path):
    target = tmp_path / "new"
    report = adopt_all(runs, LocalStateStore(target), TEMPLATE, dry_run=True)
    assert {each.source: each.key for each in report.states} == KEYS
    assert set(results(report).values()) == {"planned"}
    assert not target.exists()


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("template", ["pytorch.net.{stem}", "pytorch.net.{stem}.x"])
def test_two_with_one_key_are_refused_before_anything_is_stored(runs, tmp_path, template, dry_run):
    target = tmp_path / "new"
    with pytest.raises(FormatError, match="same key") as caught:
        adopt_all(runs, LocalStateStore(target), template, dry_run=dry_run)
    assert "first/epoch1.pt" in caught.value.found
    assert "second/epoch1.pth.tar" in caught.value.found
    assert not target.exists()


def test_keys_that_differ_in_case_only_are_one(tmp_path, store):
    for name in ("a.pt", "A.pth"):
        torch.save(state(), tmp_path / name)
    with pytest.raises(FormatError, match="same key"):
        adopt_all(tmp_path, store, "pytorch.net.{stem}")


@pytest.mark.parametrize("jobs", [1, 3])
def test_one_that_fails_does_not_stop_the_rest(runs, store, jobs):
    (runs / "broken.pt").write_text("nonsense")
    store.save_state_dict({"x": torch.ones(2)}, StateKey.parse(KEYS["hf"]))
    torch.save(state(), runs / f"{'x' * 70}.pt")
    report = adopt_all(runs, store, TEMPLATE, jobs=jobs)
    failed = {each.source: each.error for each in report.states if each.result == "failed"}
    assert failed.keys() == {"broken.pt", "hf", f"{'x' * 70}.pt"}
    assert all(failed.values())
    assert dict(report.failures).keys() == failed.keys()
    assert isinstance(dict(report.failures)["hf"], StateExistsError)
    assert len(store.get_state_keys()) == len(KEYS)  # with the one that was there


def test_patterns_choose_among_the_sources(runs, store):
    def planned(**options):
        return list(results(adopt_all(runs, store, TEMPLATE, dry_run=True, **options)))

    assert planned(match="first/*") == ["first/epoch1.pt", "first/epoch2.pt"]
    assert planned(match=["*.pt", "hf"], skip="*2.pt") == ["first/epoch1.pt", "hf"]
    assert planned(match="epoch1*") == ["first/epoch1.pt", "second/epoch1.pth.tar"]
    assert planned(skip=["first/*", "pipe", "sharded", "hf"]) == ["second/epoch1.pth.tar"]
    with pytest.raises(WeightsNotFoundError, match="no weights"):
        planned(match="*.gguf")


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("pytorch.net.{folders}.{stem}", "pytorch.net.2024-05.v1-0.my-best"),
        ("pytorch.{parent}.{stem}", "pytorch.v1-0.my-best"),
        ("pytorch.net.x-{stem}", "pytorch.net.x-my-best"),
    ],
)
def test_what_no_key_may_have_is_replaced(tmp_path, store, template, key):
    (tmp_path / "runs" / "2024-05" / "v1.0").mkdir(parents=True)
    torch.save(state(), tmp_path / "runs" / "2024-05" / "v1.0" / "my best.pt")
    (found,) = adopt_all(tmp_path / "runs", store, template).states
    assert (found.key, found.result) == (key, "stored")


def test_folders_may_be_none(tmp_path, store):
    torch.save(state(), tmp_path / "x.pt")
    (found,) = adopt_all(tmp_path, store, "pytorch.net.{folders}.{stem}", dry_run=True).states
    assert found.key == "pytorch.net.x"


@pytest.mark.parametrize(
    "template",
    ["pytorch.net.x", "pytorch.{stm}", "pytorch.{}", "{stem", "a}{stem}", "{stem!r}", ""],
)
def test_a_template_that_is_none_is_refused(runs, store, template):
    with pytest.raises(FormatError, match="template"):
        adopt_all(runs, store, template)


def test_a_folder_that_is_missing_or_empty(tmp_path, store):
    for folder in (tmp_path / "gone", tmp_path):
        with pytest.raises(WeightsNotFoundError):
            adopt_all(folder, store, TEMPLATE)


def test_several_models_with_shards_and_no_index_in_one_folder(tmp_path, store):
    top = tmp_path / "x"
    top.mkdir()
    for name in ("a", "b"):
        for number in (1, 2):
            content = {f"{name}{number}": torch.ones(2)}
            save_file(content, top / f"{name}-0000{number}-of-00002.safetensors")
    report = adopt_all(top, store, "pytorch.net.{stem}")
    assert [each.key for each in report.states] == ["pytorch.net.a", "pytorch.net.b"]
    assert set(results(report).values()) == {"stored"}
    assert sorted(store.load_state_dict(StateKey.parse("pytorch.net.b"))) == ["b1", "b2"]


def test_into_a_manifest_they_are_mirrors(runs, tmp_path):
    file = tmp_path / "all.toml"
    report = adopt_all(runs, file, TEMPLATE, mirror=True, skip=["pipe", "sharded"], jobs=3)
    assert set(results(report).values()) == {"stored"}
    assert {str(key) for key in Manifest.read(file).states} == {
        key for source, key in KEYS.items() if source not in ("pipe", "sharded")
    }
    assert manifest_of(LocalStateStore(Path(runs, "a-store")))
