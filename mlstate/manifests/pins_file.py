"""The file of pins: read with care for who may write it, and written whole or not at all."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.files import ABSENT, UnfitFileError, open_regular
from mlstate.locations import Mirror, parse_mirror
from mlstate.manifests.entries import Pin
from mlstate.states import StateKey
from mlstate.texts import load_toml

__all__ = ["PinsFile"]

VERSION = 1
_HEAD = """\
# The digests of states whose manifests give none, from when mlstate first fetched them here.
# Each is required ever after. `mlstate pins` lists them, `mlstate pins rm KEY` forgets one, and
# `mlstate lock MANIFEST KEY --from-pins` writes it into a manifest.
"""
_TABLE = re.compile(r"[ \t]*\[\[[ \t]*pins[ \t]*\]\][ \t]*(#.*)?")
_LARGEST = 16 << 20
_ATTEMPTS = 100
_Stamp = tuple[int, ...] | None


class PinsFile:
    """A file of pins.

    Args:
        path: The file, which need not be there; None: there is no home folder, and no file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._last: tuple[_Stamp, list[Pin]] | None = None

    def read(self) -> list[Pin]:
        """All pins, in the order of the file; none if it is not there.

        Raises:
            FormatError: It is damaged, or others may write it.
        """
        stamp = self._stamp()
        if stamp is None or self._last is None or self._last[0] != stamp:
            self._last = (stamp, self._parsed(self._content()))
        return self._last[1]

    def why_not(self) -> str | None:
        """Why no pin can be kept, in words; None if one can be, as far as a look tells.

        The folder is made if it is not there.
        """
        if self.path is None:
            return "there is no home folder to keep a pin in"
        file = Path(os.path.realpath(self.path))
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            return f"{self.path} cannot be written: {error.strerror}"
        if not os.access(file.parent, os.W_OK | os.X_OK):
            return f"{self.path} cannot be written: its folder takes no files of this user"
        return None

    def change(self, change: Callable[[list[Pin]], list[Pin]]) -> None:
        """Read, change and write the pins: what others write meanwhile is not lost.

        Args:
            change: Takes the pins as they are, and returns the new ones. It may be called several
                times.

        Raises:
            FormatError: As `read`.
            OSError: The file cannot be written.
        """
        from mlstate.objects.beside import temporary_beside
        from mlstate.objects.durable import locked_folder, write_over

        if self.path is None:
            raise FileNotFoundError("there is no home folder")
        file = Path(os.path.realpath(self.path))  # of a link, the file which is written
        # Of three that write at one moment, nobody could tell which pin was lost.
        with locked_folder(file.parent):
            for _ in range(_ATTEMPTS):
                old = self._content()
                pins = self._parsed(old)
                changed = change(pins)
                if changed == pins:
                    return
                data = _text(changed)
                temporary = temporary_beside(file)
                if write_over(
                    file, old, [data], temporary=temporary, read_only=False, private=True
                ):
                    return
        raise FormatError(
            "the file of pins is changed again and again by others; nothing was changed",
            path=self.path,
            remedy="try again when they are done",
        )

    def _stamp(self) -> _Stamp:
        """What tells a version of the file from another; None of a file that cannot be seen."""
        try:
            found = os.stat(self.path) if self.path is not None else None
        except OSError:
            return None
        if found is None:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _content(self) -> bytes | None:
        """What is in the file; None if it is not there, or in a folder that is not to be seen."""
        if self.path is None:
            return None
        try:
            with os.fdopen(open_regular(self.path), "rb") as file:
                self._check_rights(os.fstat(file.fileno()))
                return file.read(_LARGEST + 1)
        except UnfitFileError as unfit:
            raise self._unusable("this is no file of pins", unfit.found) from None
        except PermissionError as error:
            if not os.access(self.path.parent, os.X_OK):  # HOME is another user's
                return None
            raise self._unusable("the file of pins cannot be read", error.strerror) from error
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            return None

    def _check_rights(self, found: os.stat_result) -> None:
        """Refuse a file that others have written, or can: they would say what is trusted."""
        if found.st_uid not in (0, os.geteuid()):
            raise self._unusable(
                "the file of pins belongs to another user, who would say what you trust",
                f"user {found.st_uid}",
                remedy=f"chown {os.geteuid()} {self.path}, if you trust it; or set "
                "MLSTATE_PINS=strict",
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise self._unusable(
                "others may write the file of pins, who would say what you trust",
                f"mode {stat.S_IMODE(found.st_mode):04o}",
                remedy=f"look whether it is as you know it, then: chmod go-w {self.path}",
            )

    def _unusable(
        self, message: str, found: object, *, line: int | None = None, remedy: str | None = None
    ) -> FormatError:
        return FormatError(message, path=self.path, line=line, found=found, remedy=remedy)

    def _parsed(self, data: bytes | None) -> list[Pin]:
        if data is None:
            return []
        try:
            table = load_toml(data, "the file of pins")
        except FormatError as error:
            raise self._damaged(error.found or error.message, error.line) from None
        version, pins = table.get("version"), table.get("pins", [])
        if version != VERSION:
            raise self._unusable(
                "the file of pins is of another version",
                f"version = {version!r}",
                remedy="install a newer mlstate, or set MLSTATE_PINS=strict",
            )
        if not isinstance(pins, list):
            raise self._damaged("pins is no list of tables", None)
        written = enumerate(data.decode().split("\n"), 1)
        lines: list[int | None] = [n for n, line in written if _TABLE.fullmatch(line.rstrip())]
        if len(lines) != len(pins):  # in another style, by hand
            lines = [None] * len(pins)
        return [self._pin(pin, line) for pin, line in zip(pins, lines, strict=True)]

    def _damaged(self, found: object, line: int | None) -> FormatError:
        return self._unusable(
            "the file of pins is damaged",
            found,
            line=line,
            remedy="correct it; or, if you know what damaged it, remove it: what it pinned is then "
            "trusted anew, on its next first use",
        )

    def _pin(self, table: Any, line: int | None) -> Pin:
        try:
            return Pin(place=(str(self.path), line), **_fields(table))
        except (ValueError, TypeError, LookupError) as error:
            found = error.message if isinstance(error, FormatError) else error
            raise self._damaged(found, line) from None


def _fields(table: Any) -> dict[str, Any]:
    """The fields of a pin; a ValueError, TypeError or LookupError if its table is not valid."""
    mirror, size, digits = parse_mirror(table["mirror"]), table["size"], table["digits"]
    date, manifest = table["date"], table.get("manifest")
    if not isinstance(mirror, Mirror):
        raise ValueError(f"mirror: {mirror.reason}")
    if type(size) is not int or size < 0:
        raise ValueError("size is no number of bytes")
    if type(digits) is not int or not 0 < digits <= 64:
        raise ValueError("digits is no number from 1 to 64")
    if not isinstance(date, datetime) or not isinstance(manifest, str | None):
        raise ValueError("date is no date with a time, or manifest no text")
    if any(len(part.sha256 or "") != 64 for part in mirror.parts or (mirror,)):
        raise ValueError("sha256 has not all of its 64 digits")
    return {
        "key": StateKey.parse(table["key"]),
        "digest": Digest(table["blake3"]),
        "size": size,
        "mirror": mirror,
        "digits": digits,
        "date": date if date.tzinfo is not None else date.replace(tzinfo=UTC),
        "manifest": manifest,
    }


def _text(pins: Iterable[Pin]) -> bytes:
    import tomlkit

    from mlstate.manifests.write import plain_mirror, toml_value

    document = tomlkit.document()
    document["version"] = VERSION
    tables = tomlkit.aot()
    for pin in pins:
        values = {
            "key": str(pin.key),
            "blake3": str(pin.digest),
            "size": pin.size,
            "mirror": toml_value(plain_mirror(pin.mirror), inline=True),
            "digits": pin.digits,
            "date": pin.date,
        }
        table = tomlkit.table()
        for name, value in values.items():
            table[name] = value
        if pin.manifest is not None:
            table["manifest"] = pin.manifest
        tables.append(table)
    if tables:
        document["pins"] = tables
    return (_HEAD + tomlkit.dumps(document)).encode()
