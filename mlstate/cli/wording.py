"""What the API suggests in terms of Python, in terms of the command line."""

from __future__ import annotations

import re

__all__ = ["in_shell_words"]

_PHRASES = (
    (r"mirror=True writes into it where the source is", "--mirror writes where the source is"),
    (r"mlstate\.lock\(manifest, \[key\]\)", "mlstate lock MANIFEST KEY"),
    (r"\bget_state_keys\(\w*\)", "mlstate ls"),
    (r"\b(overwrite|mirror|repair)=True\b", r"--\1"),
    (r"\bmax_size=", "--max-size "),
    (
        r"give a folder that can be written as cache= \(or MLSTATE_CACHE\)",
        "set MLSTATE_CACHE to a folder that can be written",
    ),
    (
        r"give cache= \(or MLSTATE_CACHE,\s+MLSTATE_READONLY_CACHES\) a folder that has it",
        "set MLSTATE_CACHE or MLSTATE_READONLY_CACHES to a folder that has it",
    ),
    (r"\bselect=", "--select "),
)


def in_shell_words(text: str) -> str:
    """A message of the API as the command line says it.

    Example:
        >>> in_shell_words("choose another name, or overwrite=True")
        'choose another name, or --overwrite'
    """
    for pattern, words in _PHRASES:
        text = re.sub(pattern, words, text)
    return text
