"""Protection from rollback: the highest serial number of each signed manifest that was seen.

A signature stays good for ever, so an older manifest with its signature could be put in the place
of a newer one. Where manifests have a serial number, and signatures are required, the highest is
kept in the user's state folder, and a lower one is refused.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlstate import settings
from mlstate.errors import FormatError, SignatureError
from mlstate.objects.beside import temporary_beside
from mlstate.objects.durable import locked_folder, read_small, write_over
from mlstate.texts import load_json
from mlstate.warn import warn

__all__ = ["MAX_SERIAL", "Sighting", "check_serials", "keep_serials", "serials_file"]

MAX_SERIAL = 2**63 - 1
_PATIENCE = 10.0
_ATTEMPTS = 100
_Key = tuple[str, str | None, str]
_Seen = dict[_Key, int]


@dataclass(frozen=True)
class Sighting:
    """A manifest file with a good signature.

    Attributes:
        signer: Who signed it.
        name: The name that it says at its top, or None.
        path: Its real path.
        serial: Its serial number, or None.
    """

    signer: str
    name: str | None
    path: str
    serial: int | None

    @property
    def key(self) -> _Key:
        """Under what its serial number is kept."""
        return (self.signer, self.name, self.path)

    def is_earlier(self, key: _Key) -> bool:
        """Whether what was seen under a key is this manifest, in an older or newer version.

        At the same path whoever signed it, unless both say different names; and by the same
        signer, wherever it lies, if it says the same name.
        """
        signer, name, path = key
        if self.path == path and (self.name is None or name in (None, self.name)):
            return True
        return self.name is not None and (signer, name) == (self.signer, self.name)


def serials_file() -> Path:
    """The file that the highest serial numbers are kept in."""
    return settings.state_folder() / "manifest-serials.json"


def check_serials(sightings: Iterable[Sighting]) -> None:
    """Refuse a manifest that is older than one that was seen.

    Raises:
        SignatureError: A higher serial number was seen, or there is none where one was.
        FormatError: The file of what was seen is damaged.
    """
    seen = _read()
    for sighting in sightings:
        highest = max((n for key, n in seen.items() if sighting.is_earlier(key)), default=-1)
        if highest > (-1 if sighting.serial is None else sighting.serial):
            raise SignatureError(
                "this manifest is older than one that was seen here before",
                path=sighting.path,
                expected=f"serial = {highest} or higher",
                found="no serial" if sighting.serial is None else f"serial = {sighting.serial}",
                signer=sighting.signer,
                remedy="get the newest version; if this is it, its author has to sign it with a "
                f"higher serial (what was seen is in {serials_file()})",
            )


def keep_serials(sightings: Iterable[Sighting]) -> None:
    """Remember the serial numbers that are higher than what was seen.

    Who was stopped with the lock, for minutes say, overwrites nothing that others kept meanwhile.
    Where the folder cannot be written this is a warning: the manifest itself is good.
    """
    wanted = {s.key: s.serial for s in sightings if s.serial is not None}
    if not _higher(wanted, _read()):
        return
    file = Path(os.path.realpath(serials_file()))  # of a link, the file which is written
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(file.parent, _PATIENCE):
            for _ in range(_ATTEMPTS):
                data = _content()
                seen = _parsed(data)
                seen.update(_higher(wanted, seen))
                temporary = temporary_beside(file)
                if write_over(file, data, [_text(seen)], temporary=temporary, read_only=False):
                    return
            raise OSError(errno.EAGAIN, "others change it again and again, or it cannot be read")
    except OSError as error:
        warn(
            f"the serial number of a signed manifest could not be kept in {file} ({error}): an "
            "older manifest would not be found out"
        )


def _higher(wanted: _Seen, seen: _Seen) -> _Seen:
    return {key: serial for key, serial in wanted.items() if serial > seen.get(key, -1)}


def _text(seen: _Seen) -> bytes:
    rows = [
        {"signer": signer, "name": name, "path": path, "serial": serial}
        for (signer, name, path), serial in sorted(
            seen.items(), key=lambda item: (item[0][2], item[0][0], item[0][1] or "")
        )
    ]
    return json.dumps({"version": 1, "seen": rows}, indent=1).encode() + b"\n"


def _read() -> _Seen:
    return _parsed(_content())


def _content() -> bytes | None:
    """What was kept; None if nothing was."""
    try:
        return read_small(serials_file())
    except OSError:  # it is not there; or it cannot be read, and then nothing was written either
        return None


def _parsed(data: bytes | None) -> _Seen:
    if data is None:
        return {}
    file = serials_file()
    try:
        seen = load_json(data, "the file of serial numbers", most=len(data))["seen"]
        return dict(map(_row, seen))
    except (ValueError, TypeError, LookupError) as error:
        raise FormatError(
            "the file of the serial numbers that were seen is damaged",
            path=file,
            found=error,
            remedy="remove it, if you know what damaged it: the numbers are then learnt anew",
        ) from None


def _row(row: dict[str, Any]) -> tuple[_Key, int]:
    signer, name, path, serial = row["signer"], row["name"], row["path"], row["serial"]
    texts = isinstance(signer, str) and isinstance(name, str | None) and isinstance(path, str)
    if not texts or type(serial) is not int:
        raise ValueError("an entry is not valid")
    return (signer, name, path), serial
