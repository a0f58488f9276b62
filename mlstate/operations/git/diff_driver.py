"""Git's diff driver for manifests: what it is called with, and the patch below what is said.

Git shows what a driver prints in place of its own patch. So the patch is printed, too, by git, in
git's own form: `git diff > x.patch` can be applied, for what stands between patches is passed over.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlstate.errors import FormatError
from mlstate.operations.git.run import run_git

__all__ = ["GitChange", "patch_of", "wants_colour"]

_ARGUMENTS = (7, 9)
_ANSI = {"bold": b"\x1b[1m", "reset": b"\x1b[m"}


@dataclass(frozen=True)
class GitChange:
    """A change of a file, as git gives it to a driver.

    Attributes:
        path: Where it is, or was, below the top of the work tree.
        old: The file with the old version; ``/dev/null`` if there is none.
        old_id: Its object id; ``.`` if there is none.
        old_mode: Its mode; ``.`` if there is none.
        new: The file with the new version.
        new_id: Its object id; zeros if it is not in the repository.
        new_mode: Its mode.
        new_path: Where it is now, if it was renamed.
        note: What git says of a rename: lines of a patch.
    """

    path: str
    old: str
    old_id: str
    old_mode: str
    new: str
    new_id: str
    new_mode: str
    new_path: str | None = None
    note: str = ""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> GitChange:
        """The change that seven arguments tell, or nine of a rename.

        Raises:
            FormatError: They are of another number.
        """
        if len(arguments) not in _ARGUMENTS:
            raise FormatError(
                "git calls a diff driver with seven arguments, or with nine",
                expected="PATH OLD OLD-ID OLD-MODE NEW NEW-ID NEW-MODE",
                found=f"{len(arguments)} arguments",
                remedy="let git call it: mlstate git-setup",
            )
        return cls(*arguments)


def wants_colour(*, terminal: bool) -> bool:
    """Whether git shows its diffs in colour.

    Args:
        terminal: Whether the output goes to one, by a pager or not.
    """
    asked = ("config", "--get-colorbool", "color.diff", "true" if terminal else "false")
    return run_git(*asked, codes=(0, 1)).strip() == b"true"


def patch_of(change: GitChange, *, colour: bool) -> bytes:
    """The patch of a change, with a state's table at each hunk; no bytes if nothing differs."""
    with tempfile.TemporaryDirectory(prefix="mlstate-") as folder:
        attributes = Path(folder, "attributes")
        attributes.write_text("* diff=mlstate\n")  # for its xfuncname, wherever the files are
        body = run_git(
            *("-c", f"core.attributesFile={attributes}", "diff", "--no-index", "--no-ext-diff"),
            *("--no-textconv", f"--color={'always' if colour else 'never'}", "--"),
            *(change.old, change.new),
            codes=(0, 1),
        )
    lines = body.split(b"\n")
    start = next((n for n, line in enumerate(lines) if _is_content(line)), len(lines))
    header = _header(change, hunks=start < len(lines))
    if start == len(lines) and not any("mode" in line or "rename" in line for line in header):
        return b""
    before, after = (_ANSI["bold"], _ANSI["reset"]) if colour else (b"", b"")
    above = b"".join(before + os.fsencode(line) + after + b"\n" for line in header)
    return above + b"\n".join(lines[start:])


def _is_content(line: bytes) -> bool:
    plain = line[line.find(b"m") + 1 :] if line.startswith(b"\x1b[") else line
    return plain.startswith((b"@@ ", b"Binary files "))


def _header(change: GitChange, *, hunks: bool) -> list[str]:
    """The lines of a patch above its hunks, as git writes them."""
    old, new = f"a/{change.path}", f"b/{change.new_path or change.path}"
    lines = [f"diff --git {_quoted(old)} {_quoted(new)}"]
    if change.old == os.devnull:
        lines.append(f"new file mode {change.new_mode}")
    elif change.new == os.devnull:
        lines.append(f"deleted file mode {change.old_mode}")
    elif change.old_mode != change.new_mode:
        lines += [f"old mode {change.old_mode}", f"new mode {change.new_mode}"]
    lines += [line for line in change.note.split("\n") if line and not line.startswith("index ")]
    if hunks:
        names = (
            os.devnull if change.old == os.devnull else _quoted(old),
            os.devnull if change.new == os.devnull else _quoted(new),
        )
        tabs = ["\t" if " " in name and not name.startswith('"') else "" for name in names]
        lines += [f"--- {names[0]}{tabs[0]}", f"+++ {names[1]}{tabs[1]}"]
    return lines


def _quoted(path: str) -> str:
    """A path as git writes it in patches: in quotes if it has odd characters in it."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    plain = "".join(
        escapes.get(chr(byte), chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}")
        for byte in os.fsencode(path)
    )
    return path if plain == path else f'"{plain}"'
