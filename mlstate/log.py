"""Lines for the logger ``mlstate``: what is fetched from where, saved, removed.

A program that wants them asks for them: ``logging.basicConfig(level=logging.INFO)``; on the command
line ``-v`` and ``-vv`` do. Levels are INFO and DEBUG alone: what a user should see without asking
is a warning (`mlstate.warn`).
"""

from __future__ import annotations

import sys

from mlstate.shown import printable, without_queries

__all__ = ["debug", "info"]

_DEBUG, _INFO = 10, 20


def info(text: str, *values: object) -> None:
    """Log something that was done: ``text % values``."""
    _log(_INFO, text, values)


def debug(text: str, *values: object) -> None:
    """Log a step of it."""
    _log(_DEBUG, text, values)


def _log(level: int, text: str, values: tuple[object, ...]) -> None:
    # Its import takes 5 ms, and whoever listens has imported it.
    logging = sys.modules.get("logging")
    if logging is None:
        return
    logger = logging.getLogger("mlstate")
    if logger.isEnabledFor(level):
        logger.log(level, "%s", printable(without_queries(text % values)))
