"""Warnings that point at the caller's own line, and lines that are none."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from types import FrameType

from mlstate.shown import printable, without_queries

__all__ = ["say", "warn"]


def warn(message: str) -> None:
    """Warn the caller of this package: the first frame of the stack that is outside of it.

    The line that a warning names, and of which Python shows it once, is then in the caller's
    program, however many calls within the package lie between.

    Args:
        message: The text of the `UserWarning`.
    """
    frame, level = sys._getframe(1), 2
    while _is_inside(frame) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(printable(without_queries(message)), stacklevel=level)


def say(message: str) -> None:
    """Say a line on standard error that is no warning, as torch.hub does of what it downloads."""
    with suppress(OSError, ValueError, AttributeError):  # closed, full, or none at all
        sys.stderr.write(printable(without_queries(message)) + "\n")
        sys.stderr.flush()


def _is_inside(frame: FrameType) -> bool:
    """Whether a frame belongs to this package, or to the `with` statement of one that does."""
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("mlstate", "contextlib")
