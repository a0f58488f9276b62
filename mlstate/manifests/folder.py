"""Which of the TOML files in a folder are manifests: a repository has others, of other tools.

A file counts as a manifest by what it says at its top, whether or not the rest of it can be read: a
manifest with a mistake in it is an error, and is not passed over.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from mlstate.files import read_file
from mlstate.format import layout
from mlstate.project import is_project_file

__all__ = ["LARGEST", "TomlFiles", "is_manifest_text", "is_store", "toml_files"]

LARGEST = 256 << 20
"""The largest manifest that is read, in bytes: some hundred thousand states."""

_HEADER = re.compile(rb"^[ \t]*\[", re.MULTILINE)
_STATES = re.compile(
    rb"""^[ \t]*+(?:\[[ \t]*+)?(?:states|"states"|'states')[ \t]*+[.=\]]""", re.MULTILINE
)
_ENTRY = re.compile(
    rb"""blake3|^[ \t]*+\[[ \t]*+states[ \t]*+\.[ \t]*+["']|^[ \t]*+mirrors[ \t]*+=""", re.MULTILINE
)
_VERSION = re.compile(rb"^version[ \t]*+=[ \t]*+\d", re.MULTILINE)
_NAME = re.compile(rb"""^([A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*+[.=]""", re.MULTILINE)
_TOP = {b"version", b"objects", b"states", b"name", b"serial"}
_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"\0")
_NOT_LOOKED_INTO = frozenset({"node_modules", "__pycache__"})


class TomlFiles(NamedTuple):
    """The TOML files of a folder, sorted: the manifests, and those that are none."""

    manifests: list[Path]
    others: list[Path]


def toml_files(path: Path) -> TomlFiles:
    """The TOML files in a folder and below.

    Hidden folders, stores, virtual environments and folders that are links are not looked into. A
    file that cannot be read counts as a manifest: whoever reads it says why.
    """
    manifests: list[Path] = []
    others: list[Path] = []
    for place, folders, names in os.walk(path):
        here = Path(place)
        # A store's own files end in .toml, too. They are no manifests, and not to be edited.
        folders[:] = [name for name in folders if _is_looked_into(here / name)]
        for name in names:
            if name.endswith(".toml"):
                file = here / name
                (manifests if _is_manifest(file) else others).append(file)
    return TomlFiles(sorted(manifests), sorted(others))


def _is_looked_into(folder: Path) -> bool:
    if folder.name.startswith(".") or folder.name in _NOT_LOOKED_INTO:
        return False
    return not is_store(folder) and not os.path.exists(folder / "pyvenv.cfg")


def is_store(folder: Path) -> bool:
    """Whether a folder is a store: its files are state files, not manifests to be edited."""
    settings = folder / layout.SETTINGS
    if os.path.isfile(settings) and not is_project_file(settings):
        return True
    return os.path.isdir(folder / layout.STATES) and os.path.isdir(folder / layout.OBJECTS)


def _is_manifest(file: Path) -> bool:
    try:
        data = read_file(file, LARGEST)
    except OSError:
        return True
    return is_manifest_text(data)


def is_manifest_text(data: bytes) -> bool:
    r"""Whether a TOML is meant to be a manifest, as far as can be told without parsing it.

    Example:
        >>> is_manifest_text(b'version = 1\n[states."a.b.c"]'), is_manifest_text(b"version = 1")
        (True, True)
        >>> is_manifest_text(b'[project]\\nname = "x"'), is_manifest_text(b"")
        (False, False)
    """
    if data.startswith(_OTHER_ENCODINGS[:2]) or b"\0" in data:  # of an editor that writes UTF-16
        return True
    data = data.removeprefix(b"\xef\xbb\xbf")
    header = _HEADER.search(data)
    top = data if header is None else data[: header.start()]
    says_version = _VERSION.search(top) is not None
    if _STATES.search(data) is not None:
        return says_version or _ENTRY.search(data) is not None
    names = {match[1].strip(b"\"'") for match in _NAME.finditer(top)}
    return says_version and header is None and names <= _TOP
