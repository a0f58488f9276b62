"""The command that writes a report."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from mlstate import LocalStateStore
from mlstate.format import layout
from tests.support.reports import key, save


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    store = LocalStateStore(folder / "weights")
    torch.manual_seed(0)
    base = {"a": torch.randn(64, 64), "b": torch.randn(64, 64)}
    save(store, "net.base", base, 1)
    save(store, "net.tuned", {**base, "b": base["b"] * 1.5}, 2)
    return folder


@pytest.fixture
def shell(shell, template):
    shutil.copytree(template, shell.folder, dirs_exist_ok=True)
    return shell


def test_it_writes_a_page_and_says_where(shell):
    done = shell("report", "weights")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "report.html\n"
    assert done.stderr.startswith("2 states, ")
    page = (shell.folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "pytorch.net.tuned" in page
    assert shell.lines("report", "weights", "-o", "new/other.html") == ["new/other.html"]


def test_json_is_the_same_and_writes_no_page(shell):
    told = shell.json("report", "weights")
    assert not (shell.folder / "report.html").exists()
    (part,) = told["architectures"]
    assert [state["marks"] for state in part["states"]] == ["++", "=~"]
    assert part["states"][1]["changes"][0]["relative"] == 0.5
    assert told["links"] == [
        {"older": "pytorch.net.base", "newer": "pytorch.net.tuned", "bytes": 4 * 64 * 64}
    ]
    assert told["usage"]["states"] == shell.json("ls", "weights")["states"]
    shell.json("report", "weights", "-o", "report.html")
    assert (shell.folder / "report.html").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("weights", "pytorch.net.tuned"),
        ("weights", "*tuned"),
        ("pytorch.net.tuned", "--store", "weights"),
    ],
)
def test_it_tells_of_some_states(shell, words):
    told = shell.json("report", *words)
    assert [state["key"] for state in told["usage"]["states"]] == ["pytorch.net.tuned"]
    assert told["architectures"][0]["states"][0]["base"] == "pytorch.net.base"


def test_without_values_only_which_tensors_differ_is_told(shell):
    told = shell.json("report", "weights", "--no-values")
    assert told["compared"] is False
    assert told["architectures"][0]["states"][1]["changes"] == [
        {"layer": 1, "relative": None, "max_abs": None, "differing": None, "nonfinite": None}
    ]


def test_it_shows_the_findings_of_a_verification(shell):
    store = LocalStateStore(shell.folder / "weights")
    path = store.folder / layout.object_path(store.digest(key("net.tuned")))
    path.chmod(0o644)
    path.write_bytes(b"junk")
    found = shell.json("verify", "--all", "--store", "weights", code=1)
    (shell.folder / "verify.json").write_text(json.dumps(found))
    told = shell.json("report", "weights", "--findings", "verify.json")
    assert told["findings"] == found["findings"] != []
    assert told["usage"]["states"][1]["error"]


def test_it_replaces_no_file_that_is_no_report(shell):
    (shell.folder / "report.html").write_text("<p>mine</p>")
    told = shell("report", "weights")
    assert told.returncode != 0
    assert "--overwrite" in told.stderr
    assert (shell.folder / "report.html").read_text() == "<p>mine</p>"
    shell.lines("report", "weights", "--overwrite")
    shell.lines("report", "weights")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("weights", "pytorch.net.tuner"), "did you mean pytorch.net.tuned"),
        (("weights", "--findings", "weights/mlstate.toml"), "verify --json"),
        (("nothing",), "no"),
    ],
)
def test_bad_input_writes_nothing(shell, words, said):
    done = shell("report", *words)
    assert done.returncode not in (0, 1)
    assert said in done.stderr
    assert not (shell.folder / "report.html").exists()
