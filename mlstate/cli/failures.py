"""What went wrong, for programs: any error as the object that ``--json`` prints of it."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlstate.cli.output import print_json
from mlstate.errors import FetchError, MissingPackageError, MlstateError
from mlstate.phrases import in_shell

if TYPE_CHECKING:
    from mlstate.cli.printed import Failure

__all__ = ["failure_of", "in_our_words", "print_failure"]

_LONGEST = 500  # characters of a text: what is hostile or damaged can be of any length
_RIGHTS = "check the rights of this user there"
_ROOM = "make room there, or write to another disk"
_SYSTEM: dict[int, tuple[str, str | None]] = {
    errno.ENOENT: ("there is no such file or folder", "check the path"),
    errno.ENOTDIR: ("a file is where a folder should be", "check the path"),
    errno.EISDIR: ("a folder is where a file should be", "check the path"),
    errno.EACCES: ("the system does not allow this", _RIGHTS),
    errno.EPERM: ("the system does not allow this", _RIGHTS),
    errno.EROFS: ("this file system is only read", "write to another place"),
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the quota of this user is used up", _ROOM),
    errno.EFBIG: ("the file system takes no file as large as this", "write to another disk"),
    errno.ENAMETOOLONG: ("a name is too long for this file system", "choose a shorter one"),
    errno.ELOOP: ("symbolic links lead in a circle", "check the path"),
    errno.EIO: ("the disk cannot be read or written", "check the disk: its system log says more"),
    errno.ESTALE: ("the file system has lost this file", "give the same command again"),
    errno.EMFILE: ("this process may open no more files", "raise the limit: ulimit -n 4096"),
    errno.ETXTBSY: ("the file is in use", None),
}
"""What the system says, in our words, and what to do."""
_TEMPORARY = re.compile(r".*[0-9a-f]{16,}.*|tmp")
"""What a program calls a file that it will rename: nobody finds it again."""


def in_our_words(error: BaseException) -> MlstateError:
    """An error of any kind as one of ours, which says what to do; ours stay as they are."""
    if isinstance(error, MlstateError):
        return error
    if isinstance(error, ImportError):
        return _of_import(error)
    if isinstance(error, OSError):
        return _of_system(error)
    return MlstateError(str(error) or type(error).__name__)


def _of_import(error: ImportError) -> MlstateError:
    package = (error.name or "").partition(".")[0]
    missing = isinstance(error, ModuleNotFoundError)
    what = package or "a package"
    return MissingPackageError(
        f"{what} is needed for this, and {'is not installed' if missing else 'cannot be imported'}",
        found=None if missing else str(error),
        remedy=f"install it {'' if missing else 'anew '}beside mlstate: pip install {package}"
        if package and package != "mlstate"
        else None,
    )


def _of_system(error: OSError) -> MlstateError:
    message, remedy = _SYSTEM.get(error.errno or 0, (None, None))
    path = error.filename2 or error.filename
    return MlstateError(
        message or (error.strerror or str(error) or type(error).__name__).lower(),
        path=None if path is None or isinstance(path, int) else _lasting(os.fsdecode(path)),
        remedy=remedy,
    )


def _lasting(path: str) -> str:
    """A path that people know: of a temporary file, which is gone again, the folder."""
    place = Path(path)
    while _TEMPORARY.fullmatch(place.name) and not place.exists() and place != place.parent:
        place = place.parent
    return str(place)


def failure_of(error: BaseException) -> Failure:
    """An error as JSON has it."""
    from mlstate.cli.printed import Failure, MirrorFailure

    ours = in_our_words(error)
    attempts = error.attempts if isinstance(error, FetchError) else ()
    kind = error if isinstance(error, MlstateError | OSError) else ours
    return Failure(
        kind=type(kind).__name__,
        message=_text(ours.message) or "",
        key=_text(ours.key),
        tensor=_text(ours.tensor),
        path=_text(ours.path),
        line=ours.line,
        expected=_text(ours.expected),
        found=_text(ours.found),
        remedy=_text(ours.remedy),
        mirrors=[MirrorFailure(_text(place) or "", _text(why) or "") for place, why in attempts],
    )


def print_failure(arguments: list[str], code: int, failure: Failure) -> None:
    """Print why a command line ended with an exit code, if its words ask for JSON."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" not in options:
        return
    command = next((word for word in arguments if not word.startswith("-")), None)
    print_json("error", {"command": command, "exit_code": code}, failure)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    try:
        text = in_shell(value)
    except (ValueError, RecursionError, MemoryError):
        text = f"a value of type {type(value).__name__} that is too large to be shown"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
