"""Numbers of bytes as texts for people, such as "5 GB"."""

from __future__ import annotations

import re

from mlstate.errors import FormatError
from mlstate.phrases import Phrase

__all__ = ["LARGER", "check_size", "format_size", "parse_limit", "parse_size"]

LARGER = Phrase("give a larger max_size", "give a larger --max-size")
"""What to do about something that is larger than it may be."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]I?)?B", re.IGNORECASE)
_UNITS = {None: 1} | {
    f"{letter}{infix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for infix, base in (("", 1000), ("I", 1024))
}
_LONGEST = 40
"""Of a text, in characters: thousands of digits are no size, and Python refuses to read them."""


def parse_size(size: int | str) -> int:
    """A number of bytes, or its text.

    Raises:
        FormatError: It is neither, or less than 1.

    Example:
        >>> parse_size("5GB"), parse_size("1.5 MiB"), parse_size("5000")
        (5000000000, 1572864, 5000)
    """
    found = size
    if isinstance(size, str) and len(text := size.strip()) <= _LONGEST:
        if text.isdecimal():
            found = int(text)
        elif match := _SIZE.fullmatch(text):
            found = int(float(match[1]) * _UNITS[match[2] and match[2].upper()])
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise FormatError(
            "not a size", expected='a number of bytes, or for instance "5GB"', found=repr(size)
        )
    return found


def parse_limit(size: int | str | None) -> int | None:
    """As `parse_size`; None, which is no limit, stays None."""
    return None if size is None else parse_size(size)


def check_size(size: int, most: int | None) -> None:
    """Refuse more than a limit allows, before memory or disk is spent.

    Args:
        size: The bytes of what is taken in.
        most: The limit in bytes, or None.

    Raises:
        FormatError: It is larger.
    """
    if most is not None and size > most:
        raise FormatError(
            "this is larger than what may be taken in",
            expected=f"at most {format_size(most)}",
            found=f"{format_size(size)} ({size} bytes)",
            remedy="if that is right, " + LARGER,
        )


def format_size(count: int) -> str:
    """A number of bytes for people, in powers of 1,000.

    Example:
        >>> format_size(46_827_520), format_size(512)
        ('46.8 MB', '512 B')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
