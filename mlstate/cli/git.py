"""The commands for git: `git-setup`, and the drivers that git calls, `git-diff` and `git-merge`."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.exit_codes import FINDING, OK
from mlstate.cli.options import DryRun, Json
from mlstate.cli.output import from_here, note, print_json, put, said
from mlstate.errors import MlstateError

if TYPE_CHECKING:
    from mlstate.operations.git.diff_driver import GitChange
    from mlstate.operations.git.setup import GitSetup

__all__ = ["git_diff", "git_merge", "git_setup"]


def git_setup(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATTERN",
            help="Which files are manifests, as .gitattributes has it: 'weights/*.toml', say. By "
            "default those that are there.",
            show_default=False,
        ),
    ] = None,
    hook: Annotated[
        bool,
        typer.Option("--hook", help="Write a pre-commit hook that checks manifests, too."),
    ] = False,
    user: Annotated[
        bool,
        typer.Option("--global", help="Change your own git config, not that of the repository."),
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take everything away again.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Let git show and merge manifests state by state, in the repository of this folder.

    Which files are manifests goes into .gitattributes, to be committed; how they are shown and
    merged into the config of this clone, so each clone needs this command once. git diff then says
    which states, and which layers of cached ones, a change is about, above its patch; git merge,
    rebase and stash join the entries of both sides.
    """
    from mlstate.operations.git.setup import git_setup as set_up

    done = set_up(patterns=patterns or [], hook=hook, user=user, undo=undo, dry_run=dry_run)
    if as_json:
        print_json("git-setup", done)
    else:
        _show_setup(done)
    return OK


def _show_setup(done: GitSetup) -> None:
    place = "your git config" if done.repository is None else "git config"
    for setting in done.settings:
        if setting.second is None:
            put(f"{place}: {setting.name} unset")
        else:
            put(f"{place}: {setting.name} = {setting.second}")
    for line in done.added:
        put(f".gitattributes: + {line}")
    for line in done.removed:
        put(f".gitattributes: - {line}")
    if done.hook is not None:
        put(f"hook: {from_here(done.hook)}")
    if not (done.settings or done.added or done.removed or done.hook):
        note("nothing to do: all is as it should be")
    elif done.dry_run:
        note("nothing was written (--dry-run)")
    if done.added and not done.dry_run:
        note("commit .gitattributes, so that other clones have it, too")
    if done.lacking and done.repository is not None:
        note("there is no manifest here: give a pattern, such as 'weights/*.toml'")


def git_diff(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGUMENT",
            help="As git gives them: PATH OLD OLD-ID OLD-MODE NEW NEW-ID NEW-MODE.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Show a change of a manifest. Git calls this, see mlstate git-setup.

    First the states and layers that it is about, then git's own patch. git diff does so by itself;
    git log -p and git show do with --ext-diff, and show the patch alone without.
    """
    from mlstate.operations.git.diff_driver import GitChange, patch_of, wants_colour

    given = arguments or []
    if len(given) == 1:  # a file with a conflict: git says the same of others
        put(f"* Unmerged path {given[0]}")
        return OK
    change = GitChange.parse(given)
    colour = wants_colour(terminal=sys.stdout.isatty() or "GIT_PAGER_IN_USE" in os.environ)
    patch = patch_of(change, colour=colour)
    try:
        _summarise(change, colour=colour)
        sys.stdout.flush()
        sys.stdout.buffer.write(patch)
        sys.stdout.flush()
    except BrokenPipeError:  # a pager that was left: any other code would be a failure to git
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK


def _summarise(change: GitChange, *, colour: bool) -> None:
    """Print what a change means, in lines that no patch has: git apply passes over them."""
    from mlstate.cli.manifest_diff import manifest_diff_lines
    from mlstate.operations.diff_manifests import diff_manifests

    print(said(f"# {change.new_path or change.path}"))
    try:
        folder = os.path.dirname(change.path) or "."
        found = diff_manifests(change.old, change.new, folder=folder)
    except (MlstateError, OSError) as error:
        message = error.message if isinstance(error, MlstateError) else error
        line = getattr(error, "line", None)
        print(said(f"#   cannot be compared: {message}" + (f", line {line}" if line else "")))
        return
    for number, word, rest in manifest_diff_lines(found):
        marked = f"\x1b[{number}m{said(word)}\x1b[m" if colour and number else said(word)
        print(f"#   {marked}{said(rest)}")


_FILE = "A file, as git gives it."


def git_merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The ancestor's version: %O.")],
    ours: Annotated[str, typer.Argument(metavar="OURS", help="Ours, and the result: %A.")],
    theirs: Annotated[str, typer.Argument(metavar="THEIRS", help="Theirs: %B.")],
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="The length of the marks of a conflict: %L.")
    ] = "7",
    path: Annotated[
        str | None,
        typer.Argument(metavar="PATH", help="Where the manifest is: %P.", show_default=False),
    ] = None,
) -> int:
    """Merge two versions of a manifest, state by state. Git calls this, see mlstate git-setup.

    States that only one side changed are as that side has them, with their comments. One that both
    changed differently gets the marks of a conflict around it alone. Exit code 1 with conflicts.
    """
    from mlstate.operations.git.merge_driver import merge_files

    if not size.isdecimal() or not 1 <= int(size) <= 1000:
        raise typer.BadParameter("SIZE is a number of characters: 7")
    name = path or ours
    done = merge_files(base, ours, theirs, size=int(size), path=name)
    if done.by_lines is not None:
        note(f"mlstate: {name} was merged line by line, not by state: {done.by_lines}")
    for conflict in done.conflicts:
        note(f"mlstate: conflict in {name}, {conflict.what}: {conflict.why}")
    if done.stale_signature:
        note(
            f"mlstate: {name} was signed, and what was merged is not: count its serial up and sign "
            f"it again: mlstate sign {shlex.quote(name)} --key KEY"
        )
    return FINDING if done.conflicts else OK
