"""The sources that weights are adopted from: files, folders and addresses, as mirrors."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mlstate import settings
from mlstate.errors import FormatError
from mlstate.locations import SAFETENSORS, Mirror, check_url, local_path
from mlstate.operations.adopt_choice import Choice
from mlstate.operations.source_elsewhere import source_elsewhere
from mlstate.operations.source_here import source_here
from mlstate.operations.weight_source import WeightSource
from mlstate.transport import Transports
from mlstate.transport.local import file_path

__all__ = ["WeightSource", "below", "find_source", "mirror_of_file"]


def find_source(
    source: str | os.PathLike[str], choice: Choice, *, offline: bool | None
) -> WeightSource:
    """Find out where weights are and which container they are in; arguments as of `adopt`.

    Raises a `FormatError` if it is no source of weights or the choice does not fit it, a
    `TransportError`, or an `OfflineError` if it is elsewhere.
    """
    address = os.fspath(source)
    if reason := check_url(address):
        raise FormatError(
            f"weights cannot be read from there: {reason}",
            found=f"{address.partition('://')[0]}://...",
            expected="a path, or an address of http, https, file, s3, gs, az or hf",
        )
    if address[:7].lower() == "file://":
        address = str(file_path(address, None))
    if "://" not in address:
        return source_here(local_path(address), choice)
    with Transports(offline=settings.offline() if offline is None else offline) as transports:
        return source_elsewhere(address, transports, choice)


def mirror_of_file(path: str | os.PathLike[str]) -> Mirror:
    """A file of this machine as the mirror of a file of a state."""
    return Choice().mirror((os.path.abspath(path),), SAFETENSORS)


def below(mirror: Mirror, folder: Path) -> Mirror:
    """A mirror whose paths below a folder are relative to it, as its manifest writes them."""

    def relative(address: str) -> str:
        if "://" in address or not Path(address).is_relative_to(folder):
            return address
        return Path(address).relative_to(folder).as_posix()

    changed = tuple(map(relative, mirror.urls))
    parts = tuple(below(part, folder) for part in mirror.parts)
    if (changed, parts) == (mirror.urls, mirror.parts):
        return mirror
    return replace(mirror, urls=changed, parts=parts)
