"""TOML and JSON from anywhere: what a parser would spend on a text is capped before it sees it.

The parsers of the standard library take any amount of memory for a short text: `tomllib` keeps
every prefix of a dotted key (``a.a.a... = 1``: 32 KB take a gigabyte), and a number in hexadecimal
digits may be too long to be ever printed. A text that is refused here is refused by a `FormatError`
that names the limit, and so is whatever a parser raises.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

from mlstate.errors import FormatError

__all__ = [
    "MAX_DEPTH",
    "MAX_NUMBER",
    "MAX_TABLES",
    "MAX_TOML",
    "decoded",
    "load_json",
    "load_toml",
    "parse_json",
]

MAX_TOML = 16 << 20
"""The longest TOML that is parsed: bytes."""
MAX_DEPTH = 64
"""How deep brackets are nested at most, and how many parts a dotted key has."""
MAX_NUMBER = 100
"""How many characters a number, a date or another plain value of TOML has at most."""
MAX_TABLES = 250_000
"""How many tables and lists a TOML has at most; a short text has fewer."""

_TOKEN = re.compile(
    r"""
      \#[^\n]*+
    | "{3} (?: [^"\\]++ | \\. | "{1,2}(?!") )*+ "{0,5}
    | '{3} (?: [^']++ | '{1,2}(?!') )*+ '{0,5}
    | " (?: [^"\\\n]++ | \\[^\n] )*+ "?
    | ' [^'\n]*+ '?
    | (?P<word> [A-Za-z0-9_+:-]++ )
    | (?P<mark> [\[\]{}=,.\n] )
    """,
    re.VERBOSE | re.DOTALL,
)
_LINE = re.compile(r"at line (\d+)")
_NEITHER_BRACKET_NOR_QUOTE = bytes(set(range(256)) - set(b'[]{}"'))
_STRING = re.compile(rb'"[^"]*+"?')


def load_toml(data: bytes | str, what: str) -> dict[str, Any]:
    """Parse a TOML.

    Args:
        data: The text, in UTF-8 if it is bytes.
        what: What it is, for errors: "a manifest", say.

    Raises:
        FormatError: It is not TOML, or more than is parsed; `line` says where, if that is known.
    """
    if len(data) > MAX_TOML:
        raise FormatError(
            f"{what} is too long", expected=f"at most {MAX_TOML} bytes", found=f"{len(data)} bytes"
        )
    try:
        text = data if isinstance(data, str) else decoded(data, what)
        _TomlLimits(text, what).check()
        return tomllib.loads(text)
    except FormatError:
        raise
    except RecursionError:
        raise FormatError(f"{what} is nested too deeply") from None
    except MemoryError:
        raise _no_memory(what, len(data)) from None
    except ValueError as error:
        line = _LINE.search(str(error))
        raise FormatError(
            f"{what} is not valid TOML", line=int(line[1]) if line else None, found=error
        ) from None


_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""How texts in other encodings begin; the longer marks first."""
_AS_UTF8 = "save it as UTF-8 (in PowerShell: Set-Content -Encoding utf8)"


def decoded(data: bytes, what: str) -> str:
    """The text that bytes are in UTF-8, without a byte order mark at its front.

    Args:
        data: The bytes.
        what: What it is, for errors.

    Raises:
        FormatError: They are in another encoding, which is named where that can be told; or lines
            end as no TOML's do.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None and b"\0" in data:
        few, many = sorted((data[::2].count(0), data[1::2].count(0)))
        encoding = "UTF-16" if few < many // 8 and many > len(data) // 4 else None
    if encoding is not None:
        raise FormatError(
            f"{what} is not in UTF-8", expected="UTF-8", found=encoding, remedy=_AS_UTF8
        )
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{what} is not in UTF-8",
            line=data.count(b"\n", 0, error.start) + 1,
            expected="UTF-8",
            found=f"the byte 0x{data[error.start]:02x}, as of Latin-1",
            remedy=_AS_UTF8,
        ) from None
    if (place := text.find("\0")) >= 0:
        raise FormatError(
            f"{what} has a null character in it, and may be damaged",
            line=text.count("\n", 0, place) + 1,
            remedy="restore it from a copy",
        )
    if "\r" in text and "\n" not in text:
        raise FormatError(
            f"{what} has lines that end with a carriage return alone",
            expected="line ends of Unix or of Windows",
            remedy="save it with such line ends",
        )
    return text


class _TomlLimits:
    """Refuses a text whose nesting, number of tables or plain values exceed the limits.

    Up to the first error in a text each token is what it is to a parser; after it, nothing matters.
    """

    def __init__(self, text: str, what: str) -> None:
        self._text, self._what = text, what
        # A table takes about a kilobyte while it is parsed, and can be written in two characters.
        # What people and programs write takes 14 and more for each.
        self._most = min(MAX_TABLES, 1000 + len(text) // 8)
        self._tables = self._parts = 0
        self._value = False  # whether a value comes next, and not a name
        self._open: list[tuple[str, bool]] = []  # brackets, and whether each is a value

    def check(self) -> None:
        """Raise the `FormatError`, if the text exceeds them."""
        for token in _TOKEN.finditer(self._text):
            if token.lastgroup == "mark":
                self._mark(token[0], token.start())
            elif token.lastgroup == "word" and self._value:
                length = token.end() - token.start()
                if length > MAX_NUMBER:
                    limit = f"a number of at most {MAX_NUMBER} characters"
                    raise self._error(limit, token.start(), f"{length} characters")

    def _mark(self, mark: str, position: int) -> None:
        if mark == "." and self._value:  # of a fraction
            return
        if mark in ".[{":
            self._tables += 1
            if self._tables > self._most:
                limit = f"at most {self._most} tables and lists in a text of this length"
                raise self._error(limit, position)
        if mark == ".":
            self._parts += 1
            if self._parts >= MAX_DEPTH:
                raise self._error(f"a name of at most {MAX_DEPTH} parts", position)
            return
        self._parts = 0
        if mark in "[{":
            self._open.append((mark, self._value))
            if len(self._open) > MAX_DEPTH:
                raise self._error(f"at most {MAX_DEPTH} nested brackets", position)
        self._value = self._value_after(mark)

    def _value_after(self, mark: str) -> bool:
        match mark:
            case "[":  # of a list, or before the name of a table
                return self._value
            case "{":
                return False
            case "]" | "}":
                return self._open.pop()[1] if self._open else False
            case "=":
                return True
            case ",":
                return bool(self._open) and self._open[-1][0] == "["
        return bool(self._open) and self._value  # the end of a line

    def _error(self, limit: str, position: int, found: str | None = None) -> FormatError:
        return FormatError(
            f"{self._what} has more in it than is read",
            line=self._text.count("\n", 0, position) + 1,
            expected=limit,
            found=found,
        )


def _no_memory(what: str, length: int) -> FormatError:
    return FormatError(
        f"there is not enough memory to read {what}", found=f"a text of {length} bytes"
    )


def load_json(
    data: bytes,
    what: str,
    *,
    most: int,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> dict[str, Any]:
    """Parse a JSON object; arguments as of `parse_json`.

    Raises:
        FormatError: It is no JSON object, or more than is parsed.
    """
    value = parse_json(data, what, most=most, pairs=pairs)
    if not isinstance(value, dict):
        raise FormatError(f"{what} is not a JSON object", found=type(value).__name__)
    return value


def parse_json(
    data: bytes,
    what: str,
    *,
    most: int,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Parse a JSON text of any kind.

    Args:
        data: The text, in an encoding that JSON may have.
        what: What it is, for errors: "an index of shards", say.
        most: How long it may be, in bytes.
        pairs: What makes an object of its names and values; a `dict` by default.

    Raises:
        FormatError: It is no JSON, or more than is parsed.
    """
    if len(data) > most:
        raise FormatError(
            f"{what} is too long", expected=f"at most {most} bytes", found=f"{len(data)} bytes"
        )
    try:
        encoding = json.detect_encoding(data)
        if not encoding.startswith("utf-8"):
            data = data.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
        _check_json(data, what)
        return json.loads(data, object_pairs_hook=pairs)
    except FormatError:
        raise
    except MemoryError:
        raise _no_memory(what, len(data)) from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON", found=str(error)) from None


def _check_json(data: bytes, what: str) -> None:
    """Refuse brackets that are too many, nested too deeply, or not closed.

    A few passes over all bytes instead of one over tokens: that takes a fraction of the parsing.
    """
    text = data.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in data else data
    brackets = text.translate(None, _NEITHER_BRACKET_NOR_QUOTE).replace(b'""', b"")
    if b'"' in brackets:  # strings that have brackets in them
        brackets = _STRING.sub(b"", brackets)
    lists, most_lists = len(brackets) // 2, 10_000 + len(data) // 8  # a tensor has 3 in 45 bytes
    if lists > most_lists:
        raise FormatError(
            f"{what} has more in it than is read",
            expected=f"at most {most_lists} lists and objects in a text of this length",
            found=lists,
        )
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise FormatError(
            f"{what} is not valid JSON",
            expected=f"brackets that are closed, nested at most {MAX_DEPTH} levels deep",
        )
