"""Protection of single states from rollback: the highest serial number seen at each place.

As `mlstate.manifests.serials` for manifests; a file for each state, since a store may have many
thousands of them.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from mlstate import settings
from mlstate.digests import Digest
from mlstate.errors import FormatError, SignatureError
from mlstate.manifests.serials import MAX_SERIAL
from mlstate.objects.durable import locked_folder, read_small, write_over
from mlstate.warn import warn

__all__ = ["highest_serial", "see_serial", "serial_file"]

_ATTEMPTS = 100


def serial_file(place: str) -> Path:
    """The file that keeps the highest serial number seen at a place: an address or a path."""
    return settings.state_folder() / "state-serials" / f"{Digest.of(place.encode())}.json"


def highest_serial(place: str) -> int | None:
    """The highest serial number that was seen at a place; None if none was.

    Raises:
        FormatError: The file that keeps it is damaged.
    """
    file = serial_file(place)
    try:
        return _serial_in(read_small(file), file, place)
    except OSError:  # it is not there; or it cannot be read, and then nothing was written either
        return None


def see_serial(place: str, serial: int | None, signer: str) -> None:
    """Note the serial number of a signed state, or refuse it as older than one that was seen.

    Where nothing can be kept this is a warning: the state itself is good.

    Args:
        place: Where the state file is: an address, or a real path.
        serial: What it says; None: nothing.
        signer: Who signed it, for errors.

    Raises:
        SignatureError: A higher one was seen there, or there is none where one was.
        FormatError: The file that keeps it is damaged.
    """
    file = serial_file(place)
    if _is_kept(file, place, serial, signer):
        return
    data = json.dumps({"version": 1, "place": place, "signer": signer, "serial": serial}).encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Of three that write at one moment, nobody could tell which serial number was lost.
        with locked_folder(file.parent):
            for _ in range(_ATTEMPTS):
                old = _content(file)
                if _is_kept(file, place, serial, signer):
                    return
                temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
                if write_over(file, old, [data], temporary=temporary, read_only=False):
                    return
    except OSError as error:
        warn(
            f"the serial number of a signed state could not be kept in {file} ({error}): an "
            "older state would not be found out"
        )


def _is_kept(file: Path, place: str, serial: int | None, signer: str) -> bool:
    """Whether there is nothing to note; a SignatureError if a higher number was seen."""
    old = _content(file)
    highest = None if old is None else _serial_in(old, file, place)
    if highest is not None and (serial is None or serial < highest):
        raise SignatureError(
            "this state is older than one that was seen here before",
            path=place,
            expected=f"serial = {highest} or higher",
            found="no serial" if serial is None else f"serial = {serial}",
            signer=signer,
            remedy="get the newest version; if this is it, its author has to sign it again "
            f"(what was seen is in {file})",
        )
    return serial is None or serial == highest


def _content(file: Path) -> bytes | None:
    try:
        return read_small(file)
    except OSError:
        return None


def _serial_in(data: bytes, file: Path, place: str) -> int:
    try:
        kept = json.loads(data)
        serial = kept["serial"]
        if kept["place"] != place or type(serial) is not int or not 0 <= serial <= MAX_SERIAL:
            raise ValueError("it is not about this state")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise FormatError(
            "the file of a serial number that was seen is damaged",
            path=file,
            found=error,
            remedy="remove it, if you know what damaged it: the number is then learnt anew",
        ) from None
    return int(serial)
