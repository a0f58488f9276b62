"""Checks: something that was looked at, the finding, and a remedy."""

from __future__ import annotations

from dataclasses import dataclass

from mlstate.errors import MlstateError

__all__ = ["Check", "failed", "reason_of"]


@dataclass(frozen=True)
class Check:
    """Something that was looked at.

    Attributes:
        name: Its name: ``"cache: free disk"``, or an address.
        ok: Whether it is as it should be; None if it is neither good nor bad, or not known.
        found: The finding, in one line.
        remedy: What to do about it, or None.
    """

    name: str
    ok: bool | None
    found: str
    remedy: str | None = None


def failed(name: str, error: MlstateError | OSError) -> Check:
    """The check that failed with an error."""
    return Check(name, False, reason_of(error), getattr(error, "remedy", None))


def reason_of(error: MlstateError | OSError) -> str:
    """An error in one line, without its remedy.

    Example:
        >>> reason_of(MlstateError("the disk is gone", path="/mnt", found="nothing"))
        'the disk is gone: nothing (/mnt)'
    """
    if not isinstance(error, MlstateError):
        where = "" if error.filename is None else f" ({error.filename})"
        text = f"{error.strerror or error}{where}"
    else:
        found = "" if error.found is None else f": {error.found}"
        text = f"{error.message}{found}" + ("" if error.path is None else f" ({error.path})")
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]}..."
