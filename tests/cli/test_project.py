"""Projects, folders of all kinds of TOML, and `add --all`, as they are typed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlstate import LocalStateStore, StateKey, manifest_of
from tests.support.commands import PROGRAM, Shell

ONE, TWO = StateKey.parse("pytorch.net.one"), StateKey.parse("pytorch.net.two")


@pytest.fixture
def repo(shell):
    """A repository with a store, a manifest, and files of other tools."""
    folder = shell.folder / "repo"
    (folder / "src").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "pyproject.toml").write_text('# ours\n[project]\nname = "x"\n')
    store = LocalStateStore(folder / "weights")
    store.save_state_dict({"x": torch.randn(100, 100)}, ONE)
    (folder / "manifests").mkdir()
    manifest_of(store, objects=["../weights"]).write(folder / "manifests" / "all.toml")
    store.save_state_dict({"x": torch.randn(100, 100)}, TWO)
    config = {"MLSTATE_CONFIG": str(shell.folder / "config.toml")}
    (shell.folder / "config.toml").write_text("")
    return Shell(folder, {**shell.environment, **config})


def at(shell: Shell, folder: str, **more: str) -> Shell:
    return Shell(shell.folder / folder, {**shell.environment, **more})


def keys(shell: Shell, *arguments: str) -> list[str]:
    return [state["key"] for state in shell.json("ls", *arguments)["states"]]


def test_init_says_what_a_place_outside_of_the_project_needs(repo):
    done = repo("init", "--store", "../elsewhere")
    assert done.returncode == 0
    assert "../elsewhere is outside of the project: give it as --store; or" in done.stderr
    assert "not trusted" in repo.complaint("ls", code=2)
    (repo.folder.parent / "config.toml").write_text(f'[projects]\ntrusted = ["{repo.folder}"]\n')
    assert "no states in" in repo("ls").stderr  # as it says


def test_the_first_steps_that_are_shown_work_as_they_are_typed(tmp_path):
    """As a newcomer does: `mlstate` without arguments, and then exactly what it says."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    environment = dict(os.environ, PATH=f"{Path(PROGRAM).parent}{os.pathsep}{os.environ['PATH']}")
    if Path(sys.executable).name != "python" and not Path(PROGRAM).with_name("python").exists():
        pytest.skip("there is no program of the name python beside mlstate")

    def typed(line: str) -> subprocess.CompletedProcess[str]:
        options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
        return subprocess.run(line, shell=True, check=False, **options)

    shown = typed("mlstate")
    text = shown.stdout + shown.stderr
    steps = text.partition("First steps")[2].partition("\n\n")[2].partition("\n\n")[0]
    commands = [line.strip() for line in steps.splitlines()]
    assert len(commands) == 3
    done = [typed(command) for command in commands]
    assert [each.returncode for each in done] == [0, 0, 0], [each.stderr for each in done]
    (key,) = LocalStateStore(folder / "weights").get_state_keys()
    assert str(LocalStateStore(folder / "weights").digest(key)) in done[-1].stdout
    assert str(key) in typed("mlstate ls").stdout


def test_init_writes_what_all_commands_then_go_by(repo):
    before = (repo.folder / "pyproject.toml").read_text()
    assert repo.lines("init", "--store", "weights") == ["pyproject.toml"]
    assert (repo.folder / "pyproject.toml").read_text().startswith(before)
    below = at(repo, "src")
    assert keys(repo) == keys(below) == [str(ONE), str(TWO)]
    assert below.json("show", ONE)["key"] == str(ONE)
    assert "2 states" in below.lines("verify", "--all")[0]
    torch.save({"y": torch.ones(2)}, repo.folder / "src" / "y.pt")
    below.lines("add", "pytorch.net.three", "y.pt")
    assert len(LocalStateStore(repo.folder / "weights").get_state_keys()) == 3
    below.lines("rm", "pytorch.net.three")
    assert keys(below) == [str(ONE), str(TWO)]
    assert repo.json("init", "--store", "weights")["store"] == "weights"  # again: nothing to do
    assert "something else" in repo.complaint("init", "--store", "other", code=6)


def test_init_without_a_pyproject_and_where_it_cannot_be(shell):
    data = shell.json("init", "--manifest", "manifests", "--manifest", "more.toml")
    assert data["store"] is None
    assert data["manifests"] == ["manifests", "more.toml"]
    assert (shell.folder / "mlstate.toml").exists()
    store = shell.folder / "store"
    LocalStateStore(store).save_state_dict({"x": torch.ones(2)}, ONE)
    assert "is a store" in at(shell, "store").complaint("init", code=6)
    for text in ("broken [", "tool = { x = 1 }\n", "[tool.mlstate]\nstor = 1\n"):
        folder = shell.folder / "other"
        folder.mkdir(exist_ok=True)
        (folder / "pyproject.toml").write_text(text)
        assert "pyproject.toml" in at(shell, "other").complaint("init", code=2)
        assert (folder / "pyproject.toml").read_text() == text


def test_options_and_variables_count_before_the_file(repo):
    repo.lines("init", "--store", "weights")
    other = LocalStateStore(repo.folder / "other")
    other.save_state_dict({"x": torch.ones(2)}, StateKey.parse("pytorch.net.other"))
    assert keys(repo, "other") == keys(repo, "--store", "other") == ["pytorch.net.other"]
    assert keys(at(repo, ".", MLSTATE_STORE="other")) == ["pytorch.net.other"]
    assert str(ONE) not in keys(at(repo, ".", MLSTATE_PROJECT="none"))


def test_a_project_of_manifests_shows_them_and_a_variable_replaces_them(repo):
    repo.lines("init", "--manifest", "manifests")
    assert keys(repo) == [str(ONE)]
    assert "fetched" in repo.lines("fetch", "--all")[0]
    (repo.folder / "own.toml").write_text(f'version = 1\n[states."{TWO}"]\n')
    assert str(TWO) in keys(at(repo, ".", MLSTATE_MANIFESTS="own.toml"))
    repo.lines("rm", ONE, code=0)
    assert keys(repo) == []


def test_of_both_fetch_goes_by_the_manifests_and_ls_says_that_there_are_some(repo):
    repo.lines("init", "--store", "weights", "--manifest", "manifests")
    done = repo("ls")
    assert str(TWO) in done.stdout
    assert "mlstate ls manifests" in done.stderr
    (line,) = repo.lines("fetch", "--all")
    assert line.startswith(str(ONE))


def test_mistakes_in_any_settings_are_errors_with_near_misses(repo):
    file = repo.folder / "pyproject.toml"
    file.write_text(file.read_text() + "[tool.mlstate]\nmanifest = ['x']\n")
    said = repo.complaint("ls", code=2)
    assert "pyproject.toml, line 5" in said
    assert "did you mean manifests?" in said
    assert "MLSTATE_STORE" in at(repo, ".", MLSTATE_STROE="x").complaint("ls", "weights", code=2)
    assert at(repo, ".", MLSTATE_MINE="x").lines("ls", "weights")
    config = repo.folder.parent / "config.toml"
    config.write_text("[tokens]\n\n[signature]\n")
    said = repo.complaint("ls", "weights", code=2)
    assert "config.toml, line 3" in said
    assert "did you mean signatures?" in said


def test_ls_here_reads_the_manifests_and_tells_of_the_rest_when_asked(repo):
    (repo.folder / "ruff.toml").write_text("line-length = 100\n")
    data = repo.json("ls", ".")
    assert [state["key"] for state in data["states"]] == [str(ONE)]
    assert data["passed_over"] == ["pyproject.toml", "ruff.toml"]
    assert "ruff.toml" not in repo("ls", ".").stderr
    assert "ruff.toml is no manifest" in repo("ls", ".", "-v").stderr
    (repo.folder / "broken.toml").write_text(f'version = 1\n[states."{ONE}"]\nblake3 = [\n')
    assert "broken.toml" in repo.complaint("ls", ".", code=2)


def test_ls_in_a_hostile_repository_asks_nobody(repo, start_recording):
    server = start_recording({})
    (repo.folder / "manifests" / "all.toml").write_text(
        f'version = 1\nobjects = ["{server.url}/o"]\n[states."{ONE}"]\nblake3 = "{"1" * 64}"\n'
        f'mirrors = ["{server.url}/m.safetensors", "{server.url}/w.pth"]\n'
    )
    repo.lines("init", "--manifest", "manifests")
    assert keys(repo) == [str(ONE)]
    repo("show", ONE)
    repo("du")
    repo("fetch", ONE)
    repo("doctor")
    assert server.requests == []
    (repo.folder / "pyproject.toml").unlink()
    for place in ("s3://bucket/x", "../.."):
        (repo.folder / "mlstate.toml").write_text(f'store = "{place}"')
        assert "not trusted" in repo.complaint("ls", code=2)


def test_add_all_takes_a_folder_and_says_what_became_of_each(repo):
    repo.lines("init", "--store", "weights")
    runs = repo.folder / "runs"
    shared = torch.randn(100, 100)
    for name in ("a/e1.pt", "a/e2.pt", "b/e1.pt"):
        (runs / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"shared": shared, "own": torch.randn(100, 50)}, runs / name)
    (runs / "broken.pt").write_text("nonsense")
    command = ("add", "--all", "runs", "--key", "pytorch.bert.{parent}.{stem}")
    planned = repo.lines(*command, "--dry-run", "--match", "a/*")
    assert [line.split() for line in planned[1:]] == [
        ["a/e1.pt", "pytorch.bert.a.e1", "planned"],
        ["a/e2.pt", "pytorch.bert.a.e2", "planned"],
    ]
    assert len(keys(repo)) == 2
    done = repo(*command)
    assert done.returncode == 2
    assert "broken.pt: this file" in done.stderr
    assert "4 sources: 1 failed, 3 stored; 100.0 kB new, 80.0 kB shared" in done.stderr
    last = " ".join(done.stdout.splitlines()[3].split())
    assert last == "b/e1.pt pytorch.bert.b.e1 60.0 kB 20.0 kB 40.0 kB stored"
    data = json.loads(repo(*command, "--json", "--jobs", "3").stdout)
    assert data["schema"] == "mlstate.add-all/1"
    assert {state["result"] for state in data["states"]} == {"existed", "failed"}
    assert repo(*command, "--skip", "broken*").returncode == 0
    same = ("add", "--all", "runs", "--key", "pytorch.bert.{stem}", "--skip", "broken*")
    assert "same key" in repo.complaint(*same, code=2)


def test_what_all_prints_is_as_it_is_described(repo):
    from mlstate.cli.printed import printed
    from mlstate.operations.reports import shape_of
    from tests.support.commands import check_members

    torch.save({"x": torch.ones(2)}, repo.folder / "x.pt")
    (repo.folder / "broken.pt").write_text("nonsense")
    for more in (("--dry-run",), ()):
        command = ("add", "--all", ".", "--key", "pytorch.n.{stem}", "--store", "new", "--json")
        data = json.loads(repo(*command, *more).stdout)
        check_members(data, shape_of({"schema": str}, *printed()["add-all"]), "add-all")


def test_a_single_add_says_what_is_new_and_what_is_shared(repo):
    repo.lines("init", "--store", "weights")
    tensors = LocalStateStore(repo.folder / "weights").load_state_dict(ONE)
    torch.save({**tensors, "y": torch.randn(100, 50)}, repo.folder / "y.pt")
    done = repo("add", "pytorch.net.three", "y.pt")
    assert "20.0 kB new, 40.0 kB shared" in done.stderr
    data = repo.json("add", "pytorch.net.three", "y.pt", "--store", "elsewhere")
    assert (data["added"], data["spared"]) == (60_000, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.b.c"], "give KEY and SOURCE"),
        (["--all", "."], "--all needs --key"),
        (["--all", ".", "--key", "a.{stem}", "a.b.c"], "KEY is for one source"),
        (["--all", ".", "--key", "a.{stem}", "--include", "*"], "--include is for one source"),
        (["a.b.c", "x.pt", "--match", "*"], "--match is for --all"),
        (["a.b.c", "x.pt", "-n"], "--dry-run is for --all"),
        (["--all", ".", "--key", "a.{stem}", "--jobs", "none"], "--jobs"),
    ],
)
def test_what_does_not_go_together_is_refused(shell, arguments, said):
    assert said in shell.complaint("add", *arguments, "--store", "weights", code=2)


def test_without_a_project_add_says_how_to_get_one(shell):
    said = shell.complaint("add", "a.b.c", "x.pt", code=2)
    assert "mlstate init" in " ".join(said.split())


def test_the_settings_of_a_moved_project_still_fit(repo):
    repo.lines("init", "--store", "weights")
    moved = repo.folder.with_name("moved")
    shutil.move(repo.folder, moved)
    assert keys(Shell(moved, repo.environment)) == [str(ONE), str(TWO)]
