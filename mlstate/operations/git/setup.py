"""`git_setup` makes a repository show, merge and check its manifests as such, and undoes that."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlstate.errors import GitError, MlstateError
from mlstate.files import read_input
from mlstate.manifests import signature_file
from mlstate.manifests.folder import is_manifest_text
from mlstate.objects.beside import temporary_beside
from mlstate.objects.durable import write_file
from mlstate.operations.git.run import run_git, work_tree

__all__ = ["GitSetup", "Setting", "git_setup"]

_DRIVERS = "diff=mlstate merge=mlstate"
_SIGNATURE = "-merge"
_STATE_TABLE = r"^[[:space:]]*(\[[[:space:]]*states[[:space:]]*\.[[:space:]]*[\"'][^]]*\]).*$"
_MARK = "# Written by mlstate git-setup."
_LARGEST = 16 << 20


@dataclass(frozen=True)
class Setting:
    """A setting of git: what it was, and what it is now; None where it is not set."""

    name: str
    first: str | None
    second: str | None


@dataclass(frozen=True)
class GitSetup:
    """What was written, or with `dry_run` would be; nothing if all is as it should be.

    Attributes:
        repository: The top of the work tree; None if the user's own settings alone were changed.
        dry_run: Whether nothing was written.
        added: The lines that ``.gitattributes`` got.
        removed: The lines that it lost.
        settings: What changed in git's config.
        hook: The pre-commit hook that was written or removed; None if none was.
        lacking: Whether no manifest was found, so that no line names one.
    """

    repository: str | None
    dry_run: bool
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    hook: str | None = None
    lacking: bool = False


def git_setup(
    folder: str | os.PathLike[str] | None = None,
    patterns: Sequence[str] = (),
    *,
    hook: bool = False,
    user: bool = False,
    undo: bool = False,
    dry_run: bool = False,
) -> GitSetup:
    """Make git show and merge manifests state by state. Done twice, the second time does nothing.

    Which files are manifests is said in ``.gitattributes`` at the top of the work tree, which is
    to be committed. What shows and merges them is said in the repository's config, which each
    clone has for itself: all clones need this call.

    Args:
        folder: A folder of the repository; the current one by default.
        patterns: Which files are manifests, as ``.gitattributes`` has it: ``weights/*.toml``, say.
            By default those that are there, each by its path.
        hook: Write a pre-commit hook that checks manifests, too.
        user: Change the user's own config (``git config --global``) instead of the repository's.
        undo: Take everything away again that this function writes.
        dry_run: Change nothing, and report what would be done.

    Raises:
        GitError: This is no work tree of git; or there is another pre-commit hook. Nothing was
            changed.
        OSError: A file cannot be written.
    """
    try:
        top = work_tree(folder)
    except GitError:
        if not user or hook or patterns:
            raise
        top = None
    hook_file = None if top is None or not (hook or undo) else _hook_file(top, undo=undo)
    settings = _settings(top, user=user, undo=undo)
    added, removed, text, lacking = tuple[str, ...](), tuple[str, ...](), b"", False
    if top is not None:
        wanted = [] if undo else [*(_by_pattern(each) for each in patterns)] or [*_found(top)]
        lacking = not wanted and not undo
        added, removed, text = _attributes(top, wanted, undo=undo)
    if not dry_run:
        _apply(top, settings, user=user)
        if top is not None and (added or removed):
            _write(top / ".gitattributes", text)
        if hook_file is not None:
            _write_hook(hook_file, undo=undo)
    return GitSetup(
        None if top is None else str(top),
        dry_run,
        added,
        removed,
        tuple(settings),
        None if hook_file is None else str(hook_file),
        lacking,
    )


def _command(name: str, arguments: str = "") -> str:
    """How git calls us: by this interpreter's path, for git's PATH may be another.

    ``-P`` keeps Python from importing what lies in the repository.
    """
    return f"{shlex.quote(sys.executable)} -P -m mlstate {name}{arguments}"


def _wanted_settings() -> dict[str, str]:
    return {
        "diff.mlstate.command": _command("git-diff"),
        "diff.mlstate.xfuncname": _STATE_TABLE,
        "merge.mlstate.name": "manifests of mlstate, state by state",
        "merge.mlstate.driver": _command("git-merge", " %O %A %B %L %P"),
    }


def _settings(top: Path | None, *, user: bool, undo: bool) -> list[Setting]:
    scope = "--global" if user else "--local"
    found = []
    for name, value in _wanted_settings().items():
        said = run_git("config", scope, "--get", name, folder=top, codes=(0, 1))
        old = os.fsdecode(said.removesuffix(b"\n")) if said else None
        new = None if undo else value
        if old != new:
            found.append(Setting(name, old, new))
    return found


def _apply(top: Path | None, settings: Sequence[Setting], *, user: bool) -> None:
    scope = "--global" if user else "--local"
    for setting in settings:
        if setting.second is None:
            run_git("config", scope, "--unset-all", setting.name, folder=top)
        else:
            run_git("config", scope, "--replace-all", setting.name, setting.second, folder=top)
    for section in ("diff.mlstate", "merge.mlstate"):
        if any(s.second is None and s.name.startswith(section) for s in settings):
            # Of a section that has become empty git keeps the header.
            run_git("config", scope, "--remove-section", section, folder=top, codes=(0, 1, 128))


def _found(top: Path) -> Iterator[str]:
    """A line for each manifest of the work tree, and for each signature beside one."""
    listed = run_git(
        "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.toml", folder=top
    )
    for name in sorted(set(filter(None, os.fsdecode(listed).split("\0")))):
        try:
            data = read_input(top / name, _LARGEST)
        except (OSError, MlstateError):
            continue
        if is_manifest_text(data):
            yield f"{_literal(name)} {_DRIVERS}"
            if os.path.lexists(signature_file(top / name)):
                yield f"{_literal(f'{name}.sig')} {_SIGNATURE}"


def _by_pattern(pattern: str) -> str:
    return f"{_in_quotes(pattern)} {_DRIVERS}"


def _literal(name: str) -> str:
    """The pattern that one path alone fits."""
    escaped = "".join(f"\\{char}" if char in "*?[]\\" else char for char in f"/{name}")
    return _in_quotes(escaped)


def _in_quotes(pattern: str) -> str:
    """A pattern as it stands in an attributes file: in quotes, as C has them, if it needs them."""
    if not any(char in ' \t\n"' for char in pattern) and not pattern.startswith(("#", "!")):
        return pattern
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}
    return f'"{"".join(escapes.get(char, char) for char in pattern)}"'


def _attributes(
    top: Path, wanted: Sequence[str], *, undo: bool
) -> tuple[tuple[str, ...], tuple[str, ...], bytes]:
    """The lines to add and to remove, and the text that ``.gitattributes`` then has."""
    file = top / ".gitattributes"
    old = file.read_bytes() if file.exists() else b""
    end = "\r\n" if b"\r\n" in old else "\n"
    lines = os.fsdecode(old).splitlines()
    if undo:
        signed = {line.removesuffix(f" {_DRIVERS}") for line in lines if line.endswith(_DRIVERS)}
        ours = [line for line in lines if _is_ours(line, signed)]
        left = [line for line in lines if line not in ours]
        return (), tuple(ours), os.fsencode("".join(line + end for line in left))
    added = tuple(line for line in wanted if line not in lines)
    before = old if not old or old.endswith(b"\n") else old + os.fsencode(end)
    return added, (), before + os.fsencode("".join(line + end for line in added))


def _is_ours(line: str, manifests: set[str]) -> bool:
    if line.endswith(f" {_DRIVERS}"):
        return True
    name = line.removesuffix(f" {_SIGNATURE}")
    quoted = name.endswith('.sig"')
    bare = name.removesuffix('.sig"') + '"' if quoted else name.removesuffix(".sig")
    return name not in (line, bare) and bare in manifests


def _write(file: Path, text: bytes) -> None:
    if not text:
        file.unlink()
        return
    write_file(file, [text], temporary=temporary_beside(file), read_only=False)


def _hook_file(top: Path, *, undo: bool) -> Path | None:
    """The pre-commit hook that is to be written, or removed; None if nothing is to be done."""
    said = run_git("rev-parse", "--git-path", "hooks/pre-commit", folder=top)
    file = top / os.fsdecode(said.removesuffix(b"\n"))
    if not os.path.lexists(file):
        return None if undo else file
    text = file.read_text(errors="replace") if file.is_file() else ""
    if _MARK not in text:
        if undo:
            return None  # it is somebody else's
        raise GitError(
            "there is another pre-commit hook; nothing was changed",
            path=file,
            remedy=f"add this line to it: {_command('check', ' --staged --mirrors')} || exit 1",
        )
    return file if undo or text != _hook_text() else None


def _hook_text() -> str:
    command = _command("check", " --staged --mirrors")
    return f"#!/bin/sh\n{_MARK} It checks the manifests that a commit changes.\nexec {command}\n"


def _write_hook(file: Path, *, undo: bool) -> None:
    if undo:
        file.unlink()
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    text = _hook_text().encode()
    write_file(file, [text], temporary=temporary_beside(file), read_only=False)
    file.chmod(file.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
