"""Manifests in real git repositories: what is shown, merged, set up and taken away again."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import torch

from mlstate import LocalStateStore, Manifest, StateKey, manifest_of
from tests.support.commands import check_members
from tests.support.repositories import Repository, needs_git
from tests.support.signing import KINDS, needs_ssh_keygen, run_keygen

pytestmark = needs_git

D = [f"{number:x}" * 64 for number in range(16)]
HEAD = "# what these are\nversion = 1\n"
SETTINGS = ["diff.mlstate.command", "diff.mlstate.xfuncname"]
SETTINGS += ["merge.mlstate.driver", "merge.mlstate.name"]


def state(name: str, digest: int, *, above: str = "", license_: str = "MIT") -> str:
    meta = f'\n[states."pytorch.net.{name}".meta]\nlicense = "{license_}"\n'
    return f'\n{above}[states."pytorch.net.{name}"]\nblake3 = "{D[digest]}"\n{meta}'


BASE = HEAD + state("b", 1, above="# of b\n") + state("d", 2)


@pytest.fixture
def repository(tmp_path):
    return Repository.make(tmp_path / "a repository", tmp_path / "home")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    made = Repository.make(folder / "a repository", folder / "home")
    made.write("weights.toml", BASE)
    made.shell.lines("git-setup")
    made.commit()
    return made


@pytest.fixture
def ready(prepared, tmp_path):
    """A repository with a manifest, set up: a copy of one that is made once."""
    shutil.copytree(prepared.folder, tmp_path / "a repository")
    shutil.copytree(prepared.home, tmp_path / "home")
    return Repository(tmp_path / "a repository", tmp_path / "home")


def settings_of(repository: Repository, scope: str = "--local") -> list[str]:
    said = repository.run("config", scope, "--name-only", "--get-regexp", r"\.mlstate\.").stdout
    return sorted(said.split())


def says(text: str) -> dict[str, str | None]:
    read = Manifest.parse(text.encode(), "")
    return {key.training_id: entry.digest for key, entry in read.states.items()}


def saved(folder, **heads: float) -> dict[str, str]:
    """States that differ in their last layer, in a store of the folder; the digest of each."""
    store = LocalStateStore(folder / "weights")
    for name, value in heads.items():
        tensors = {"body": torch.ones(8, 8), "head": torch.full((4, 8), value)}
        store.save_state_dict(tensors, StateKey.parse(f"pytorch.net.{name}"))
    return {key.training_id: str(store.digest(key)) for key in store.get_state_keys()}


# What is shown.


def test_git_diff_says_which_states_and_layers_a_change_is_about_above_its_patch(ready):
    digests = saved(ready.folder, old=0.0, new=1.0)
    ready.write(".gitignore", "weights/\n")
    top = HEAD + 'objects = ["weights"]\n'
    text = top + state("a", 1).replace(D[1], digests["old"]) + state("b", 2) + state("c", 3)
    ready.commit(weights=text)
    new = top + state("a", 1).replace(D[1], digests["new"]) + state("z", 2)
    ready.write("weights.toml", new + state("n", 4, license_="BSD"))
    told = ready.git("diff")
    summary, _, patch = told.partition("diff --git ")
    assert summary.splitlines() == [
        "# weights.toml",
        "#   states: 1 added, 1 dropped, 1 moved, 1 renamed",
        f"#   added    pytorch.net.n  {D[4][:12]}",
        f"#   dropped  pytorch.net.c  {D[3][:12]}",
        "#   renamed  pytorch.net.b -> pytorch.net.z",
        f"#   moved    pytorch.net.a  {digests['old'][:12]} -> {digests['new'][:12]}",
        "#            layers: equal on 1 of 2 shared names",
        "#              changed: head",
    ]
    plain = ready.git("diff", "--no-ext-diff")
    assert patch.partition("@@")[2] == plain.partition("@@")[2]
    # What was shown is a patch, too.
    ready.git("stash")
    ready.write("../change.patch", told)
    ready.git("apply", "../change.patch")
    assert ready.read("weights.toml") == new + state("n", 4, license_="BSD")


@pytest.mark.parametrize("command", [("log", "-p", "-1"), ("show",)])
def test_log_and_show_name_the_state_of_each_hunk_and_say_more_when_asked(ready, command):
    ready.commit(weights=BASE.replace(D[2], D[5]).replace('"MIT"', '"BSD"'))
    told = ready.git(*command)
    assert '@@ [states."pytorch.net.b' in told
    assert "#   moved" not in told
    assert f"#   moved    pytorch.net.d  {D[2][:12]} -> {D[5][:12]}\n" in ready.git(
        *command, "--ext-diff"
    )


def test_new_removed_and_renamed_manifests_are_shown(ready):
    ready.git("mv", "weights.toml", "näxt weights.toml")
    ready.write("näxt weights.toml", BASE.replace(D[2], D[6]))
    (attributes,) = ready.shell.lines("git-setup")
    assert attributes == '.gitattributes: + "/näxt weights.toml" diff=mlstate merge=mlstate'
    ready.git("add", "--all")
    told = ready.git("diff", "--cached", "-M", "--", "*.toml")
    assert "# näxt weights.toml\n#   states: 1 moved\n" in told
    assert "\nrename to" in told
    patched = ready.git("diff", "--cached", "--no-renames", "--", "*.toml")
    assert "#   states: 2 dropped" in patched
    assert "\ndeleted file mode 100644\n--- a/weights.toml\n+++ /dev/null\n" in patched
    assert "#   states: 2 added" in patched
    assert "\nnew file mode 100644\n--- /dev/null\n" in patched
    ready.git("reset", "-q", "--hard")
    ready.write("../change.patch", patched)
    ready.git("apply", "../change.patch")
    assert ready.read("näxt weights.toml") == BASE.replace(D[2], D[6])


def test_colour_is_gits(ready):
    ready.write("weights.toml", BASE + state("e", 3))
    assert "\x1b[" not in ready.git("diff")
    told = ready.git("-c", "color.ui=always", "diff")
    assert "\x1b[32madded\x1b[m" in told
    assert '\x1b[32m[states."pytorch.net.e"]' in told


def test_a_manifest_that_cannot_be_read_is_shown_as_any_text(ready):
    ready.write("weights.toml", BASE + "[broken\n")
    told = ready.git("diff")
    assert told.startswith("# weights.toml\n#   cannot be compared: a manifest is not valid TOML")
    assert told.endswith("+[broken\n")


def test_only_comments_or_a_mode_changed(ready):
    ready.write("weights.toml", BASE.replace("# of b", "# of B"))
    told = ready.git("diff")
    assert "#   states: the same\n" in told
    assert "+# of B" in told
    ready.write("weights.toml", BASE)
    (ready.folder / "weights.toml").chmod(0o755)
    told = ready.git("diff")
    assert told.endswith("old mode 100644\nnew mode 100755\n")


def test_nothing_of_the_repository_is_imported_by_what_git_calls(ready):
    ready.write("tomllib.py", "raise SystemExit('this ran')\n")
    ready.write("mlstate/__init__.py", "raise SystemExit('this ran')\n")
    ready.write("weights.toml", BASE + state("e", 3))
    assert "#   added    pytorch.net.e" in ready.git("diff", "weights.toml")


def test_a_reader_that_goes_early_is_no_failure_of_git(ready):
    ready.commit(weights=BASE + "".join(state(f"n{number:04}", 3) for number in range(3000)))
    done = ready.run("-c", "core.pager=head -1", "--paginate", "show", "--ext-diff")
    assert "died" not in done.stderr


# What is merged.


def branches(repository: Repository, ours: str, theirs: str) -> None:
    """Two branches, main checked out, each with a commit of its own."""
    repository.git("switch", "-q", "-c", "theirs")
    repository.commit(weights=theirs)
    repository.git("switch", "-q", "main")
    repository.commit(weights=ours)


OURS = BASE.replace("\n# of b", state("a", 3, above="# of a\n") + "\n# of b")
OURS += state("x", 4)
THEIRS = BASE.replace(D[2], D[6]) + state("y", 5, above="# of y\n")
BOTH = OURS.replace(D[2], D[6]) + state("y", 5, above="# of y\n")


@pytest.mark.parametrize("how", ["merge", "rebase", "cherry-pick"])
def test_entries_of_both_sides_are_joined(ready, how):
    branches(ready, OURS, THEIRS)
    if how == "merge":
        ready.git("merge", "-q", "theirs")
    elif how == "cherry-pick":
        ready.git("cherry-pick", "theirs")
    else:
        ready.git("rebase", "-q", "theirs")
    merged = ready.read("weights.toml")
    assert says(merged) == says(BOTH)
    assert how == "rebase" or merged == BOTH
    assert all(comment in merged for comment in ("# what", "# of a\n", "# of b\n", "# of y\n"))
    assert ready.git("status", "--porcelain") == ""


def test_a_stash_is_joined_with_what_was_committed_since(ready):
    ready.write("weights.toml", THEIRS)
    ready.git("stash")
    ready.commit(weights=OURS)
    ready.git("stash", "pop")
    assert ready.read("weights.toml") == BOTH


@pytest.mark.parametrize("how", ["merge", "rebase", "stash"])
def test_what_both_changed_is_a_conflict_of_that_state_alone(ready, how):
    ours, theirs = BASE.replace(D[1], D[7]) + state("x", 4), BASE.replace(D[1], D[8])
    theirs += state("y", 5)
    if how == "stash":
        ready.write("weights.toml", theirs)
        ready.git("stash")
        ready.commit(weights=ours)
        done = ready.run("stash", "pop")
    else:
        branches(ready, ours, theirs)
        done = ready.run(how, "theirs")
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "CONFLICT (content)" in told
    assert "conflict in weights.toml, pytorch.net.b: the sides change it differently" in told
    marked = ready.read("weights.toml")
    assert marked.count("<<<<<<< ours\n# of b\n") == marked.count(">>>>>>> theirs\n") == 1
    before, after = marked.partition("<<<<<<<")[0], marked.partition(">>>>>>> theirs\n")[2]
    assert says(before + after) == {"d": D[2], "x": D[4], "y": D[5]}
    assert "markers" not in ready.git("diff")  # of a file with a conflict git shows its own
    complaint = ready.shell.lines("check", "weights.toml", code=1)
    assert complaint[0] == "this manifest has the marks of a conflict in it"


def test_the_base_is_shown_where_git_is_told_to(ready):
    ready.git("config", "merge.conflictStyle", "diff3")
    branches(ready, BASE.replace(D[1], D[7]), BASE.replace(D[1], D[8]))
    assert ready.run("merge", "theirs").returncode == 1
    assert f'||||||| base\n# of b\n[states."pytorch.net.b"]\nblake3 = "{D[1]}"' in ready.read(
        "weights.toml"
    )


def test_two_new_manifests_of_one_name_are_joined(ready):
    ready.commit(new_="")
    ready.shell.lines("git-setup", "*.toml")
    ready.commit()
    ready.git("switch", "-q", "-c", "theirs")
    ready.commit(more=HEAD + state("a", 1))
    ready.git("switch", "-q", "main")
    ready.commit(more=HEAD + state("b", 2))
    ready.git("merge", "-q", "theirs")
    assert says(ready.read("more.toml")) == {"a": D[1], "b": D[2]}


INLINE = f'version = 1\n[states]\n"pytorch.net.b" = {{blake3 = "{D[1]}"}}\n# end\n'


def test_a_manifest_of_another_style_is_merged_by_lines(ready):
    ready.commit(weights=INLINE)
    added = '"pytorch.net.{}" = {{blake3 = "' + D[2] + '"}}\n'
    branches(
        ready,
        INLINE.replace("[states]\n", "[states]\n" + added.format("a")),
        INLINE.replace("# end\n", "# end\n" + added.format("c")),
    )
    done = ready.run("merge", "theirs")
    assert done.returncode == 0, done.stdout
    assert "merged line by line" in done.stderr + done.stdout
    assert says(ready.read("weights.toml")) == {"a": D[2], "b": D[1], "c": D[2]}


def test_lines_that_merge_into_no_manifest_are_a_conflict(ready):
    ready.commit(weights=INLINE)
    added = '"pytorch.net.x" = {blake3 = "' + D[2] + '"}\n'
    branches(
        ready,
        INLINE.replace("[states]\n", "[states]\n" + added),
        INLINE.replace("# end\n", "# end\n" + added),
    )
    done = ready.run("merge", "theirs")
    assert done.returncode == 1
    assert "its merged lines are no manifest" in done.stderr + done.stdout
    assert ready.read("weights.toml").startswith("<<<<<<< ours\n")


@needs_ssh_keygen
def test_a_merge_says_that_a_signature_is_not_good_any_more(ready, tmp_path):
    key = tmp_path / "id"
    assert run_keygen("-q", *KINDS["ed25519"], "-N", "", "-f", key).returncode == 0
    ready.shell.lines("sign", "weights.toml", "--key", key)
    assert ready.shell.lines("git-setup") == [".gitattributes: + /weights.toml.sig -merge"]
    ready.commit()
    ready.git("switch", "-q", "-c", "theirs")
    ready.write("weights.toml", THEIRS)
    ready.shell.lines("sign", "weights.toml", "--key", key)
    ready.commit()
    ready.git("switch", "-q", "main")
    ready.write("weights.toml", OURS)
    ready.shell.lines("sign", "weights.toml", "--key", key)
    ready.commit()
    done = ready.run("merge", "theirs")
    assert done.returncode == 1  # the signature is nobody's to choose: sign anew
    assert "mlstate sign weights.toml --key KEY" in done.stdout + done.stderr
    assert ready.read("weights.toml") == BOTH
    assert "<<<" not in ready.read("weights.toml.sig")
    ready.shell.lines("sign", "weights.toml", "--key", key)
    ready.git("add", "--all")
    ready.git("commit", "-q", "-m", "merged")
    removed = ready.shell.lines("git-setup", "--undo")
    assert ".gitattributes: - /weights.toml.sig -merge" in removed


# What is set up.


def test_set_up_is_told_done_once_and_undone(repository):
    repository.write(".gitattributes", "*.png binary")
    repository.write("weights.toml", BASE)
    repository.write("deep/more.toml", BASE)
    repository.write("pyproject.toml", "[project]\nversion = '1'\n")
    config = repository.read(".git/config")
    planned = repository.shell.json("git-setup", "--dry-run")
    assert repository.read(".gitattributes") == "*.png binary"
    assert repository.read(".git/config") == config
    done = repository.shell.json("git-setup")
    assert done == {**planned, "dry_run": False}
    assert done["added"] == [
        "/deep/more.toml diff=mlstate merge=mlstate",
        "/weights.toml diff=mlstate merge=mlstate",
    ]
    assert repository.read(".gitattributes").splitlines() == ["*.png binary", *done["added"]]
    assert settings_of(repository) == SETTINGS
    assert sys.executable in repository.git("config", "diff.mlstate.command")
    assert repository.shell.lines("git-setup") == []
    assert repository.shell("git-setup").stderr == "nothing to do: all is as it should be\n"
    undone = repository.shell.json("git-setup", "--undo")
    assert undone["removed"] == done["added"]
    assert repository.read(".gitattributes") == "*.png binary\n"
    assert repository.read(".git/config") == config
    assert not (repository.home / ".gitconfig").exists()


def test_patterns_say_what_manifests_are(repository):
    done = repository.shell.json("git-setup", "weights/*.toml", "a b/*.toml")
    assert done["added"] == [
        "weights/*.toml diff=mlstate merge=mlstate",
        '"a b/*.toml" diff=mlstate merge=mlstate',
    ]
    repository.write("a b/x.toml", BASE)
    said = repository.git("check-attr", "merge", "a b/x.toml", "c/x.toml")
    assert said == "a b/x.toml: merge: mlstate\nc/x.toml: merge: unspecified\n"


@pytest.mark.parametrize("name", ["a b.toml", "[a]*?.toml", "#a.toml", '"q".toml', "ä.toml"])
def test_the_attributes_name_one_file_whatever_it_is_called(repository, name):
    repository.write(f"deep/{name}", BASE)
    repository.shell.lines("git-setup")
    asked = [f"deep/{name}", "deep/aa.toml", name]
    said = repository.git("check-attr", "-z", "diff", "--", *asked).split("\0")
    assert said[2::3] == ["mlstate", "unspecified", "unspecified"]


def test_the_user_may_have_it_for_all_repositories(repository, tmp_path):
    outside = Repository(tmp_path, repository.home)
    done = outside.shell.json("git-setup", "--global")
    assert done["repository"] is None
    assert settings_of(repository, "--global") == SETTINGS
    assert settings_of(repository) == []
    outside.shell.lines("git-setup", "--global", "--undo")
    assert settings_of(repository, "--global") == []


def test_outside_of_a_repository_it_is_refused(tmp_path, repository):
    told = Repository(tmp_path, repository.home).shell.complaint("git-setup", code=6)
    assert "this is no work tree of a git repository; nothing was changed" in told
    bare = tmp_path / "bare.git"
    repository.git("init", "-q", "--bare", bare)
    told = Repository(bare, repository.home).shell.complaint("git-setup", code=6)
    assert "this is no work tree" in told


def test_without_git_it_says_so(repository):
    shell = Repository(repository.folder, repository.home, {"PATH": "/nowhere"}).shell
    assert "git is not installed" in shell.complaint("git-setup", code=6)


def test_in_a_worktree_and_in_a_submodule(ready, tmp_path):
    ready.git("worktree", "add", "-q", "-b", "side", tmp_path / "a worktree")
    side = Repository(tmp_path / "a worktree", ready.home)
    assert side.shell.lines("git-setup") == []  # it shares the config, and has the attributes
    side.write("weights.toml", BASE + state("e", 3))
    assert "#   added    pytorch.net.e" in side.git("diff")
    outer = Repository.make(tmp_path / "outer", ready.home)
    outer.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", ready.folder, "in")
    inner = Repository(outer.folder / "in", ready.home)
    done = inner.shell.json("git-setup", "--hook")
    assert done["repository"] == str(inner.folder)
    assert [setting["name"] for setting in done["settings"]]
    assert settings_of(inner) == SETTINGS
    assert settings_of(outer) == []
    assert done["hook"] == str(outer.folder / ".git/modules/in/hooks/pre-commit")
    inner.write("weights.toml", BASE + state("e", 3))
    assert "#   added    pytorch.net.e" in inner.git("diff")


def test_it_works_from_a_folder_within(ready):
    ready.write("deep/more.toml", BASE)
    deep = Repository(ready.folder / "deep", ready.home)
    assert deep.shell.json("git-setup")["added"] == ["/deep/more.toml diff=mlstate merge=mlstate"]
    deep.git("add", "--all")
    deep.write("more.toml", BASE + state("e", 3))
    assert "# deep/more.toml\n#   states: 1 added" in deep.git("diff")


# What is checked before a commit.


def test_the_hook_lets_good_manifests_pass_and_no_others(ready):
    assert ready.shell.lines("git-setup", "--hook") == ["hook: .git/hooks/pre-commit"]
    assert ready.shell.lines("git-setup", "--hook") == []
    ready.commit(weights=BASE + state("e", 3))
    unpinned = BASE + state("e", 3) + '\n[states."pytorch.net.new"]\n'
    ready.write("weights.toml", unpinned)
    ready.git("add", "--all")
    ready.write("weights.toml", BASE)  # what counts is what is staged
    done = ready.run("commit", "-q", "-m", "bad")
    assert done.returncode == 1
    assert "this state has no digest" in done.stderr + done.stdout
    assert "weights.toml" in done.stderr + done.stdout
    ready.git("commit", "-q", "-m", "all the same", "--no-verify")
    # What was there before is not held against a commit that changes something else.
    ready.commit(weights=unpinned + state("f", 4))
    ready.write("weights.toml", BASE + state("f", 4).replace("blake3", "mirrors = ['x']\nblake3"))
    ready.git("add", "--all")
    done = ready.run("commit", "-q", "-m", "bad")
    assert done.returncode == 1
    assert "a mirror does not have this state" in done.stderr + done.stdout
    assert ready.shell.lines("git-setup", "--undo")[-1] == "hook: .git/hooks/pre-commit"
    ready.git("commit", "-q", "-m", "unchecked")


def test_another_hook_is_left_alone(ready):
    ready.write(".git/hooks/pre-commit", "#!/bin/sh\nexit 0\n")
    told = ready.shell.complaint("git-setup", "--hook", "other/*.toml", code=6)
    assert "there is another pre-commit hook; nothing was changed" in told
    assert "other" not in ready.read(".gitattributes")
    line = told.partition("add this line to it: ")[2].strip()
    (ready.folder / ".git/hooks/pre-commit").chmod(0o755)
    ready.write(".git/hooks/pre-commit", f"#!/bin/sh\n{line}\n")
    ready.write("weights.toml", BASE + '\n[states."pytorch.net.new"]\n')
    ready.git("add", "--all")
    assert ready.run("commit", "-q", "-m", "bad").returncode == 1


def test_hooks_may_be_elsewhere(ready):
    ready.git("config", "core.hooksPath", "../hooks of ours")
    ready.shell.lines("git-setup", "--hook")
    assert os.access(ready.folder / "../hooks of ours/pre-commit", os.X_OK)


# What the command says without git.


def test_diff_of_two_manifests(repository):
    digests = saved(repository.folder, old=0.0, new=1.0)
    store = LocalStateStore(repository.folder / "weights")
    keys = store.get_state_keys()
    manifest_of(store, keys[:1], objects=["weights"]).write(repository.folder / "new.toml")
    repository.write(
        "old.toml", repository.read("new.toml").replace(digests["new"], digests["old"])
    )
    shell = repository.shell
    assert shell.lines("diff", "old.toml", "new.toml", code=1)[-1].strip() == "changed: head"
    assert shell.lines("diff", "old.toml", "old.toml") == ["states: the same"]
    assert shell.lines("diff", "/dev/null", "new.toml", code=1)[0] == "states: 1 added"
    assert "there is no manifest here" in shell.complaint("diff", "old.toml", "no.toml", code=3)
    done = shell("diff", "old.toml", "new.toml", "--json")
    from mlstate.cli.printed import printed
    from mlstate.operations.reports import shape_of

    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert told["schema"] == "mlstate.manifest-diff/1"
    check_members(told, shape_of({"schema": str}, *printed()["manifest-diff"]), "manifest-diff")
    (moved,) = told["moved"]
    assert [change["name"] for change in moved["layers"]["changed"]] == ["head"]
