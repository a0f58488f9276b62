"""The project that a folder is in: a file that says which store and manifests are its own.

It is the nearest `mlstate.toml`, or `pyproject.toml` with a table ``[tool.mlstate]``, of the
folder and those above it. Nothing of one further up is added. The search ends with the root of a
git repository, and below the home folder. A store has a file of the name `mlstate.toml`, too, its
marker: the content tells them apart.

Whoever wrote a repository wrote its project file. It may name what is in its own folder; all else
only if the user trusts the project, by the config file or by naming the file in MLSTATE_PROJECT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlstate import settings
from mlstate.config import config_path, read_config
from mlstate.errors import FormatError, StoreNotFoundError
from mlstate.files import UnfitFileError, read_file
from mlstate.format import layout
from mlstate.locations import local_path
from mlstate.phrases import Phrase
from mlstate.system import is_own
from mlstate.texts import decoded, load_toml
from mlstate.toml_keys import line_of, refuse_unknown
from mlstate.warn import warn

__all__ = ["PYPROJECT", "Project", "find_project", "is_project_file", "read_project"]

PYPROJECT = "pyproject.toml"
_LARGEST = 1 << 20
_WHAT = "a project file"
_TABLE = ("tool", "mlstate")
_NONE = "none"


@dataclass(frozen=True)
class Project:
    """What a project file says.

    Attributes:
        file: The file, an absolute path.
        store: The store that it names, as it is written there; or None.
        manifests: The manifests that it names, as they are written there.
        trusted: Whether it may name what is outside of its folder.
        text: The content of the file.
    """

    file: Path
    store: str | None = None
    manifests: tuple[str, ...] = ()
    trusted: bool = False
    text: str = field(default="", repr=False)

    @property
    def folder(self) -> Path:
        """The folder that relative paths begin at."""
        return self.file.parent

    def place(self, name: str, key: str) -> str:
        """What a value of the file leads to: an address, or an absolute path.

        Args:
            name: The value.
            key: Its key, for the error.

        Raises:
            FormatError: It is outside of the project's folder, and the project is not trusted.
        """
        if "://" in name or name.startswith(("s3:", "github:")):
            if not self.trusted:
                raise self._outside(name, key)
            return name
        path = os.path.normpath(self.folder / local_path(name))
        if not self.trusted and not _is_below(path, self.folder):
            raise self._outside(name, key)
        return path

    def _outside(self, name: str, key: str) -> FormatError:
        return FormatError(
            "this project file names a place outside of its folder, and is not trusted to",
            path=self.file,
            line=line_of(self.text, (*(_TABLE if self.file.name == PYPROJECT else ()), key)),
            expected=f"a path in {self.folder}",
            found=name,
            remedy=Phrase("give it to open_store", "give it as --store")
            + f'; or, if you trust this project, write [projects] trusted = ["{self.folder}"] '
            f"into {_config()}",
        )


def _is_below(path: str, folder: Path) -> bool:
    """Whether a path is that of a folder or in it, wherever links in it lead."""
    if not Path(path).is_relative_to(folder):
        return False
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def is_project_file(path: Path) -> bool:
    """Whether a file of the name of a store's marker is a project file. A missing one is none."""
    try:
        data = read_file(path, _LARGEST)
    except OSError:
        return False
    try:
        return layout.is_no_marker(load_toml(data, _WHAT))
    except FormatError:  # a damaged marker, or a project file with a mistake
        return not any((path.parent / name).exists() for name in (layout.STATES, layout.OBJECTS))


def find_project(start: str | os.PathLike[str] | None = None) -> Project | None:
    """The project that a folder is in.

    Args:
        start: The folder; by default the working folder, and then MLSTATE_PROJECT counts first.

    Returns:
        What its file says; None where there is none.

    Raises:
        FormatError: The file cannot be read, or has a key that is not known.
        StoreNotFoundError: MLSTATE_PROJECT names a file that is not there.
    """
    if start is None and (named := settings.value_of("MLSTATE_PROJECT")):
        return None if named.lower() == _NONE else _named(local_path(named))
    try:
        here = Path(os.getcwd() if start is None else os.path.abspath(local_path(start)))
    except FileNotFoundError:  # the working folder was removed
        return None
    for folder in _folders(here):
        found = _in_folder(folder)
        if found is not None:
            return found
    return None


def _named(file: Path) -> Project:
    found = read_project(file.absolute(), trusted=True) if file.is_file() else None
    if found is None:
        raise StoreNotFoundError(
            "MLSTATE_PROJECT names no project file",
            path=file,
            expected=f"an {layout.SETTINGS}, or a {PYPROJECT} with [tool.mlstate]",
            remedy="set MLSTATE_PROJECT anew, or unset it",
        )
    return found


def _folders(here: Path) -> Iterator[Path]:
    """A folder and those above it that are searched."""
    home = None
    with suppress(RuntimeError):  # there is no home folder
        home = os.path.realpath(Path.home())
    for folder in (here, *here.parents):
        if folder != here and os.path.realpath(folder) == home:
            return
        yield folder
        if os.path.lexists(folder / ".git"):
            return


def _in_folder(folder: Path) -> Project | None:
    found = None
    for name in (layout.SETTINGS, PYPROJECT):
        file = folder / name
        with suppress(OSError):  # it is not there, or may not be read: then it says nothing
            if not file.is_file():
                continue
            other = read_project(file) if _may_speak(file) else None
            if found is not None and other is not None:
                warn(f"{found.file} counts, and [tool.mlstate] of {file} is passed over")
            found = found or other
    return found


def _may_speak(file: Path) -> bool:
    """Whether a file is of this user or of root, or is trusted.

    Anybody may put a file into a folder such as /tmp, and saved states would go where it says.
    """
    if is_own(os.stat(file)):
        return True
    if _is_trusted(file.parent):
        return True
    if file.name != PYPROJECT or read_project(file, trusted=True) is not None:
        warn(
            f"{file} belongs to another user, and is passed over; if you trust it, write "
            f'[projects] trusted = ["{file.parent}"] into {_config()}'
        )
    return False


def _is_trusted(folder: Path) -> bool:
    """Whether the config file names a folder, or one that it is in.

    Raises:
        FormatError: It says what makes no sense.
    """
    table = read_config().get("projects", {})
    trusted = table.get("trusted", []) if isinstance(table, dict) else None
    if not isinstance(trusted, list) or not all(isinstance(path, str) for path in trusted):
        raise FormatError(
            "[projects] of the config file is not valid",
            path=config_path(),
            expected='trusted = ["/the/folder/of/a/project"]',
        )
    real = Path(os.path.realpath(folder))
    return any(real.is_relative_to(os.path.realpath(local_path(path))) for path in trusted if path)


def _config() -> str:
    try:
        return str(config_path())
    except RuntimeError:
        return "the config file"


def read_project(file: Path, *, trusted: bool | None = None) -> Project | None:
    """Read a project file.

    Args:
        file: An absolute path.
        trusted: Whether it may name what is outside of its folder; None: as the config file says.

    Returns:
        What it says; None if it is none: the marker of a store, a `pyproject.toml` without the
        table.

    Raises:
        FormatError: It cannot be understood.
        OSError: It cannot be read.
    """
    table = _table(file)
    if table is None:
        return None
    values, text, where = table
    refuse_unknown(values, layout.PROJECT_KEYS, _WHAT, path=file, text=text, where=where)
    store, manifests = values.get("store"), values.get("manifests", [])
    for key, value, fine, expected in (
        ("store", store, store is None or _is_text(store), 'a path: "weights"'),
        ("manifests", manifests, _is_list(manifests), 'a list of paths: ["manifests"]'),
    ):
        if not fine:
            raise FormatError(
                f"{key} of a project file is {expected.partition(':')[0]}",
                path=file,
                line=line_of(text, (*where, key)),
                expected=f"{key} = {expected.partition(': ')[2]}",
                found=type(value).__name__,
            )
    sure = _is_trusted(file.parent) if trusted is None else trusted
    return Project(file, store, tuple(manifests), sure, text)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_list(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _table(file: Path) -> tuple[Mapping[str, Any], str, tuple[str, ...]] | None:
    """The table of a project file, the text of the file, and where the table is in it."""
    pyproject = file.name == PYPROJECT
    try:
        data = read_file(file, _LARGEST)
    except UnfitFileError as unfit:
        raise FormatError(
            f"{_WHAT} cannot be read", path=file, expected="a file", found=unfit.found
        ) from None
    if pyproject and b"mlstate" not in data:
        return None  # of another tool, whatever else is wrong with it
    if not pyproject and not is_project_file(file):
        return None
    try:
        text = decoded(data, _WHAT)
        table: Any = load_toml(text, _WHAT)
    except FormatError as error:
        error.path = str(file)
        raise
    if not pyproject:
        return table, text, ()
    for name in _TABLE:
        table = table.get(name) if isinstance(table, dict) else None
    return (table, text, _TABLE) if isinstance(table, dict) else None
