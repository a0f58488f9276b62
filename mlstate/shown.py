"""Texts for people: nothing in them commands a terminal, forges a line or gives a secret away."""

from __future__ import annotations

import re

__all__ = ["printable", "without_queries"]

_ADDRESS = re.compile(
    r"""((?<![A-Za-z0-9+.-])hf)?(://)([^\s/?\#"'<>]*@)?([^\s?"'<>]*+)(\?[^\s"<>]*+)?""",
    re.IGNORECASE,
)
_OWNERLESS = re.compile(r"(?!hf_|api_)[a-z0-9_][a-z0-9._-]*@", re.IGNORECASE)
"""A repository without an owner, before its revision: ``hf://gpt2@main``. Tokens begin so."""
_CLOSING = re.compile(r"""[])}'",;:.]*\Z""")


def printable(text: str) -> str:
    r"""A text as one line, in which all that does not print is escaped as in Python.

    Names, messages of servers and meta come from anywhere. Newlines in them would forge lines of
    ours, control characters (those of C1, too) command terminals, marks of direction show a text
    in another order than it has, and lone surrogates cannot be written at all.

    Example:
        >>> printable("a" + chr(10) + chr(0x202E) + "b")
        'a\\n\\u202eb'
    """
    if text.isprintable():
        return text
    return "".join(
        part if part.isprintable() else part.encode("unicode_escape").decode() for part in text
    )


def without_queries(text: str) -> str:
    """A text in which addresses have no query, which may be a signature, and no login.

    Example:
        >>> without_queries("no https://host/a.bin?X-Amz-Signature=abc, and https://me:pw@host/b")
        'no https://host/a.bin, and https://...@host/b'
    """
    return _ADDRESS.sub(_without_query, text) if "://" in text else text


def _without_query(found: re.Match[str]) -> str:
    hub, start, login, rest, query = found.groups()
    name = login if hub and login and _OWNERLESS.fullmatch(login) else None
    closing = _CLOSING.search(query)[0] if query else ""  # type: ignore[index]  # it may be empty
    return (hub or "") + start + (name or ("...@" if login else "")) + rest + closing
