"""What the publisher of a state gives of its files: digits of their SHA-256.

A manifest's ``sha256`` gives them, or the name of a file does, as torch.hub has it
(``torch.hub.HASH_REGEX``): ``resnet18-f37072fd.pth`` begins with f37072fd.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from mlstate.locations import Mirror
from mlstate.manifests.entries import StateEntry

__all__ = ["LEAST_DIGITS", "digits_of", "is_same_source", "promised"]

LEAST_DIGITS = 8
"""Fewer leading digits are no promise: torch.hub asks for eight or more in the name of a file."""
_HASH = re.compile(r"-([a-f0-9]*)\.")


def promised(entry: StateEntry) -> StateEntry | None:
    """An entry with those of its mirrors alone of which all files have digits, as ``sha256``.

    None if there is no such mirror.
    """
    found = [_promised(mirror) for mirror in entry.mirrors if isinstance(mirror, Mirror)]
    mirrors = tuple(mirror for mirror in found if mirror is not None)
    return replace(entry, mirrors=mirrors) if mirrors else None


def digits_of(mirror: Mirror) -> int:
    """How many digits of the sum of each file a mirror gives, at least."""
    return min(len(part.sha256 or "") for part in _files(mirror))


def is_same_source(mirror: Mirror, pinned: Mirror, *, here: bool) -> bool:
    """Whether a mirror leads to the files that a state was pinned from, and reads them alike.

    Args:
        mirror: A mirror of a manifest.
        pinned: Where the state was pinned from: with the whole SHA-256 of each file.
        here: Whether both are of one manifest. Then a file without digits is the same where its
            address is; elsewhere a relative path may be that of anything.
    """
    ours, theirs = list(_files(mirror)), list(_files(pinned))
    return len(ours) == len(theirs) and all(
        _is_same_file(part, other, here=here) for part, other in zip(ours, theirs, strict=True)
    )


def _promised(mirror: Mirror) -> Mirror | None:
    parts = [_with_digits(part) for part in _files(mirror)]
    if any(part is None for part in parts):
        return None
    return replace(mirror, parts=tuple(filter(None, parts))) if mirror.parts else parts[0]


def _with_digits(part: Mirror) -> Mirror | None:
    digits = _digits(part)
    return None if len(digits) < LEAST_DIGITS else replace(part, sha256=digits)


def _digits(part: Mirror) -> str:
    """The digits that are known of a file: those of the manifest, or of its name."""
    if part.sha256 is not None or len(part.urls) != 1 or part.parts:
        return part.sha256 or ""
    url = part.urls[0]
    path = urlsplit(url).path if "://" in url else url
    named = _HASH.search(unquote(path.rpartition("/")[2]))
    return named[1] if named and LEAST_DIGITS <= len(named[1]) <= 64 else ""


def _is_same_file(part: Mirror, pinned: Mirror, *, here: bool) -> bool:
    if _reading(part) != _reading(pinned):
        return False
    if digits := _digits(part):
        return (pinned.sha256 or "").startswith(digits)
    return part.urls == pinned.urls and (here or all("://" in url for url in part.urls))


def _reading(part: Mirror) -> Mirror:
    """What a mirror says of how a file is read, without where it is and what its sum is."""
    return replace(part, urls=(), state=None, sha256=None)


def _files(mirror: Mirror) -> Iterator[Mirror]:
    yield from mirror.parts or (mirror,)
