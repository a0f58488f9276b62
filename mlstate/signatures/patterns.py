"""SSH's lists of patterns: commas between, ``*``, ``?``, and ``!`` for what does not match."""

from __future__ import annotations

import fnmatch

__all__ = ["matches"]


def matches(text: str, patterns: str) -> bool:
    """Whether a text matches a list of patterns, and none of those that begin with ``!``.

    Example:
        >>> matches("git", "git,mail*"), matches("mlstate", "!mlstate,*")
        (True, False)
    """
    found = False
    for item in patterns.split(","):
        pattern = item.removeprefix("!").replace("[", "[[]")  # to fnmatch that is a pattern, too
        if fnmatch.fnmatchcase(text, pattern):
            if item.startswith("!"):
                return False
            found = True
    return found
