"""The user's config folder, and the config file: TOML, there or where MLSTATE_CONFIG says."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlstate.errors import FormatError
from mlstate.files import UnfitFileError, read_input
from mlstate.locations import local_path
from mlstate.settings import value_of
from mlstate.texts import decoded, load_toml
from mlstate.toml_keys import refuse_unknown

__all__ = ["config_folder", "config_path", "read_config"]

_LARGEST = 1 << 20
"""The largest config file that is read, in bytes."""

_KEYS: dict[str, tuple[str, ...]] = {
    "projects": ("trusted",),
    "signatures": ("allowed_signers", "revoked_keys", "signing_key", "stores"),
    "tokens": (),
}
"""Each table of the config file with the keys that it may have; none: any, such as hosts."""


def config_folder() -> Path | None:
    """The user's config folder, by the platform's custom; None where there is no home folder."""
    from platformdirs import user_config_path

    with suppress(RuntimeError):  # neither HOME nor an entry in the list of users
        folder = user_config_path("mlstate", appauthor=False)
        return folder if folder.is_absolute() else None
    return None


def config_path() -> Path:
    """Where the config file is, or would be; a RuntimeError where there is no home folder."""
    if chosen := value_of("MLSTATE_CONFIG"):
        return local_path(chosen)
    from platformdirs import user_config_path

    return user_config_path("mlstate", appauthor=False) / "config.toml"


def read_config() -> dict[str, Any]:
    """What the config file says; nothing where there is none.

    Raises:
        FormatError: It cannot be read, or MLSTATE_CONFIG names none. It may hold secrets, so
            nothing of it is quoted.
    """
    try:
        path = config_path()
    except RuntimeError:  # there is no home folder
        return {}
    try:
        text = decoded(read_input(path, _LARGEST), "the config file")
        table = load_toml(text, "the config file")
    except (FileNotFoundError, NotADirectoryError):
        if os.environ.get("MLSTATE_CONFIG"):
            raise FormatError("MLSTATE_CONFIG names a file that is not there", path=path) from None
        return {}
    except UnfitFileError as unfit:
        raise FormatError(
            "the config file cannot be read", path=path, expected="a file", found=unfit.found
        ) from None
    except PermissionError as error:
        if not os.environ.get("MLSTATE_CONFIG") and not _is_seen(path):
            return {}  # HOME is another user's, as that of a service which root has started
        raise FormatError(
            "the config file cannot be read",
            path=path,
            found=error.strerror,
            remedy="change its rights, or name another file in MLSTATE_CONFIG",
        ) from error
    except FormatError as error:  # of which the rest is not shown: it may quote
        said = error.message if error.remedy else "the config file is not TOML"
        raise FormatError(
            said, path=path, line=error.line, expected=error.expected, remedy=error.remedy
        ) from None
    _check_keys(table, text, path)
    return table


def _check_keys(table: dict[str, Any], text: str, path: Path) -> None:
    """Refuse, by a FormatError, what this version does not know: a misspelt key says nothing."""
    refuse_unknown(table, _KEYS, "the config file", path=path, text=text)
    for name, known in _KEYS.items():
        inner = table.get(name)
        if known and isinstance(inner, dict):
            refuse_unknown(inner, known, "the config file", path=path, text=text, where=(name,))


def _is_seen(path: Path) -> bool:
    """Whether the folder may be looked into, and has such a file."""
    try:
        os.lstat(path)
    except OSError:
        return False
    return True
