"""Change statistics that are kept: what was computed once of a pair of tensor objects.

``changes/<digit>.json`` in the cache folder: a line with the digest of the rest, then JSON, digests
of two objects -> numbers. They are derived: a file that is damaged counts as empty and is written
anew, and nothing but reports for people reads it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mlstate import settings
from mlstate.digests import Digest
from mlstate.errors import MlstateError
from mlstate.files import UnfitFileError, read_file
from mlstate.objects.beside import temporary_beside
from mlstate.objects.durable import SMALL, make_folders, write_file
from mlstate.texts import load_json

__all__ = ["ChangeStatistics", "Numbers"]

_MOST = 50_000
"""Pairs in a file, of which the oldest go: it stays below `SMALL`."""


class Numbers(NamedTuple):
    """The difference of two tensors; see `mlstate.tensors.difference.Difference`."""

    differing: int
    nonfinite: int
    max_abs: float
    relative: float | None


class ChangeStatistics:
    """The statistics in the cache folder of the settings; files are read when they are needed."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        with suppress(MlstateError):  # no home folder: nothing is kept
            self._folder = settings.cache_folder() / settings.STATISTICS
        self._files: dict[str, dict[str, Numbers]] = {}
        self._new: dict[str, dict[str, Numbers]] = {}

    def get(self, first: Digest, second: Digest) -> Numbers | None:
        """The numbers of a pair of objects, if they were computed before."""
        part = first[0]
        if part not in self._files:
            self._files[part] = self._read(part)
        return self._files[part].get(first + second)

    def put(self, first: Digest, second: Digest, numbers: Numbers) -> None:
        """Take the numbers of a pair of objects, to be kept by `save`."""
        self._new.setdefault(first[0], {})[first + second] = numbers

    def save(self) -> None:
        """Keep what was put, where the cache can be written; else it is computed again."""
        if self._folder is None:
            return
        with suppress(OSError, MlstateError):
            for part, new in self._new.items():
                # Others may have written since: what they add now is computed again, at worst.
                pairs = self._read(part) | new
                self._write(part, dict(list(pairs.items())[-_MOST:]))
            self._new.clear()

    def _read(self, part: str) -> dict[str, Numbers]:
        if self._folder is None:
            return {}
        try:
            data = read_file(self._folder / f"{part}.json", SMALL, follow=False)
            check, _, text = data.partition(b"\n")
            if check.decode("ascii", "replace") != Digest.of(text):
                return {}
            pairs = load_json(text, "statistics of changes", most=SMALL)
            return {pair: _numbers(found) for pair, found in pairs.items()}
        except (OSError, UnfitFileError, MlstateError, TypeError, ValueError):
            return {}

    def _write(self, part: str, pairs: dict[str, Numbers]) -> None:
        assert self._folder is not None
        make_folders(self._folder.parent, self._folder)
        text = json.dumps(pairs, separators=(",", ":")).encode()
        target = self._folder / f"{part}.json"
        parts = [Digest.of(text).encode(), b"\n", text]
        write_file(target, parts, temporary=temporary_beside(target), sync_parent=False)


def _numbers(found: Any) -> Numbers:
    differing, nonfinite, max_abs, relative = found
    norm = None if relative is None else float(relative)
    return Numbers(int(differing), int(nonfinite), float(max_abs), norm)
