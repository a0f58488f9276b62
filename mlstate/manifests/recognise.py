"""Whether a TOML file is a manifest, or another tool's: by its text, which may be damaged."""

from __future__ import annotations

import re

__all__ = ["is_like_a_manifest"]

_SAYS = re.compile(
    rb"""^[ \t]*(
      \[[ \t]*states[ \t]*\]
    | \[[ \t]*states[ \t]*\.[ \t]*["']
    | states[ \t]*\.[ \t]*["']
    | states[ \t]*=
    | objects[ \t]*=[ \t]*\[
    )""",
    re.MULTILINE | re.VERBOSE,
)
_VERSION = re.compile(rb"^[ \t]*version[ \t]*=[ \t]*\d+[ \t]*(\#.*)?\r?$", re.MULTILINE)


def is_like_a_manifest(data: bytes) -> bool:
    """Whether a text has a manifest's version and lists states or object mirrors; or nothing else.

    Other tools' files have a version, too, and none of these: ``pyproject.toml``, say.
    """
    if _VERSION.search(data) is None:
        return re.search(rb"^[ \t]*\[[ \t]*states[ \t]*\.[ \t]*[\"']", data, re.M) is not None
    lines = [line.split(b"#")[0].strip() for line in data.split(b"\n")]
    return _SAYS.search(data) is not None or len([line for line in lines if line]) == 1
