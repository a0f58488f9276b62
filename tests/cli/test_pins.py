"""First use and pins on the command line."""

from __future__ import annotations

import hashlib
import re

import pytest
import torch

from mlstate import StateKey
from tests.support.commands import Shell

KEY = StateKey.parse("pytorch.t.one")


@pytest.fixture
def shell(tmp_path, recording_server):
    """The program, and a manifest of a checkpoint whose name has eight digits of its sum."""
    files = recording_server.files = tmp_path / "web"
    files.mkdir()
    torch.save({"w": torch.arange(20_000.0)}, files / "w.pth")
    digits = hashlib.sha256((files / "w.pth").read_bytes()).hexdigest()[:8]
    (files / "w.pth").rename(files / f"w-{digits}.pth")
    url = f"{recording_server.url}/w-{digits}.pth"
    shell = Shell(tmp_path, {"MLSTATE_CACHE": str(tmp_path / "cache")})
    (tmp_path / "mine.toml").write_text(
        f'# mine\nversion = 1\n\n[states."{KEY}"]\n'
        f'mirrors = [{{url = "{url}", format = "torch"}}]\n'
    )
    return shell


def test_fetch_pins_and_says_so_once(shell):
    assert shell.json("ls", "mine.toml")["states"][0]["digest"] is None
    assert f"mlstate fetch {KEY}" in "".join(shell.lines("show", KEY, "-s", "mine.toml"))
    done = shell("fetch", KEY, "--store", "mine.toml")
    assert done.returncode == 0
    assert re.fullmatch(rf"{KEY}  [\d.]+ kB fetched\n", done.stdout)
    assert done.stderr.count(f"mlstate: first use of {KEY}") == 1
    again = shell("fetch", KEY, "--store", "mine.toml")
    assert (again.stdout, again.stderr) == (f"{KEY}  in the cache, 80.0 kB spared\n", "")
    shown = "\n".join(shell.lines("show", KEY, "-s", "mine.toml"))
    assert re.search(r"^pinned +by you on 20\d\d-\d\d-\d\d: mlstate pins$", shown, re.M)
    assert shell.json("ls", "mine.toml")["states"][0]["digest"] in shown
    assert "1 state checked; " in "".join(shell.lines("verify", KEY, "--store", "mine.toml"))


def test_json_says_what_was_pinned_now(shell):
    (state,) = shell.json("fetch", KEY, "--store", "mine.toml")["states"]
    assert state["pinned_now"] is True
    (again,) = shell.json("fetch", KEY, "--store", "mine.toml")["states"]
    assert again["pinned_now"] is False
    listed = shell.json("pins")
    assert [(pin["key"], pin["digits"]) for pin in listed["pins"]] == [(str(KEY), 8)]
    assert listed["path"] == listed["pins"][0]["path"]
    shown = shell.json("show", KEY, "--store", "mine.toml")
    assert shown["pinned_on"] == listed["pins"][0]["date"][:10]
    removed = shell.json("pins", "rm", KEY)
    assert (removed["removed"], removed["pins"]) == (listed["pins"], [])


def test_a_dry_run_says_what_the_first_use_does(shell):
    (planned,) = shell.lines("fetch", KEY, "--store", "mine.toml", "--dry-run")
    assert planned == f"{KEY}  of unknown size would be fetched, and pinned"
    (state,) = shell.json("fetch", KEY, "--store", "mine.toml", "--dry-run")["states"]
    assert (state["digest"], state["pinned_now"]) == (None, True)
    assert shell.lines("pins") == []


def test_what_has_no_digest_is_told_with_a_command_that_pins_it(shell):
    strict = Shell(shell.folder, {**shell.environment, "MLSTATE_PINS": "strict"})
    said = strict("show", KEY, "--store", "mine.toml")
    assert "none: mlstate lock mine.toml" in said.stdout
    assert "mlstate fetch" not in said.stderr
    done = strict("verify", "--store", "mine.toml")
    assert "without a digest: mlstate lock mine.toml" in done.stderr
    command = re.search(r"mlstate (lock mine\.toml)", done.stderr)[1]
    assert str(KEY) in strict.lines(*command.split())[0]


@pytest.mark.parametrize("command", ["export", "materialize", "bundle", "copy", "lock"])
def test_json_of_each_command_that_pins_says_so(shell, command):
    words = {
        "export": ["export", KEY, "x.safetensors"],
        "materialize": ["materialize", KEY, "x"],
        "bundle": ["bundle", KEY, "-o", "x.tar"],
        "copy": ["copy", KEY, "--to", "x", "--from", "mine.toml"],
        "lock": ["lock", "mine.toml"],
    }[command]
    words += [] if command in ("copy", "lock") else ["--store", "mine.toml"]
    if command == "lock":
        assert [state["pinned_now"] for state in shell.json(*words)["pinned"]] == [True]
        return
    assert shell.json(*words)["pinned_now"] == [str(KEY)]
    again = [*words, "--overwrite"] if command != "copy" else words
    assert shell.json(*again)["pinned_now"] == []


def test_pins_are_listed_and_forgotten(shell):
    assert shell.lines("pins") == []
    shell.lines("fetch", KEY, "--store", "mine.toml")
    title, line = shell.lines("pins")
    assert title.split() == ["KEY", "DIGEST", "DIGITS", "DATE", "MANIFEST"]
    assert line.split()[0] == str(KEY)
    assert line.endswith("mine.toml")
    assert shell.lines("pins", "list") == [title, line]
    assert "no pin fits" in shell.complaint("pins", "rm", "pytorch.x*", code=3)
    assert "no pin of this state" in shell.complaint("pins", "rm", "pytorch.t.two", code=3)
    for words in (["rm"], ["list", KEY], ["forget", KEY]):
        shell.complaint("pins", *words, code=2)
    assert shell.lines("pins", "rm", "pytorch.t.*") == [f"{KEY}  forgotten"]
    assert shell.lines("pins") == []


def test_strict_refuses_with_a_remedy_that_helps(shell):
    shell.lines("fetch", KEY, "--store", "mine.toml")
    strict = Shell(shell.folder, {**shell.environment, "MLSTATE_PINS": "strict"})
    assert "mlstate lock" in strict.complaint("fetch", KEY, "--store", "mine.toml", code=4)
    (pinned,) = strict.json("lock", "mine.toml", "--from-pins")["pinned"]
    assert (shell.folder / "mine.toml").read_text().startswith("# mine\n")
    assert pinned["digest"] in (shell.folder / "mine.toml").read_text()
    (line,) = strict.lines("fetch", KEY, "--store", "mine.toml")
    assert line.startswith(f"{KEY}  in the cache")
    done = strict("lock", "mine.toml", "--from-pins")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing to pin" in done.stderr


def test_a_state_without_a_pin_cannot_be_locked_from_one(shell):
    before = (shell.folder / "mine.toml").read_bytes()
    said = shell.complaint("lock", "mine.toml", KEY, "--from-pins", code=4)
    assert f"mlstate fetch {KEY}" in said
    assert (shell.folder / "mine.toml").read_bytes() == before


def test_a_changed_manifest_is_refused_with_a_command_that_helps(shell):
    shell.lines("fetch", KEY, "--store", "mine.toml")
    text = (shell.folder / "mine.toml").read_text()
    (shell.folder / "mine.toml").write_text(
        text.replace('format = "torch"', 'format = "torch", strip_prefix = "w"')
    )
    said = shell.complaint("fetch", KEY, "--store", "mine.toml", code=4)
    assert re.search(r"where: .*pins\.toml, line \d+$", said, re.M)
    command = re.search(r"mlstate (pins rm \S+)", said)[1]
    shell.lines(*command.split())
    assert shell.json("fetch", KEY, "--store", "mine.toml")["states"][0]["pinned_now"]


def test_the_pins_of_the_default_store_become_a_manifest(shell):
    own = Shell(
        shell.folder,
        {**shell.environment, "MLSTATE_MANIFESTS": str(shell.folder / "mine.toml")},
    )
    own.lines("fetch", KEY)
    assert own.lines("lock", "new.toml", "--from-pins")
    strict = Shell(shell.folder, {**shell.environment, "MLSTATE_PINS": "strict"})
    (line,) = strict.lines("fetch", "--all", "--store", "new.toml")
    assert line.startswith(f"{KEY}  in the cache")
    assert own.lines("lock", "named.toml", KEY, "--from-pins")
    assert (shell.folder / "named.toml").read_text() == (shell.folder / "new.toml").read_text()
