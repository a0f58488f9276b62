"""Numbers of bytes as texts for people, such as "5 GB"."""

from __future__ import annotations

import re

from mlstate.errors import FormatError

__all__ = ["format_size", "parse_size"]

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
