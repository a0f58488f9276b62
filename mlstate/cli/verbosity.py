"""How much a command says: ``-v``, ``-vv`` and ``-q``, which may stand anywhere on its line."""

from __future__ import annotations

from mlstate.cli.output import be_quiet, tell
from mlstate.shown import printable

__all__ = ["set_verbosity", "verbosity"]

_LEVELS = {"-v": 1, "--verbose": 1, "-vv": 2}
_QUIET = ("-q", "--quiet")
_INFO, _DEBUG = 20, 10
_level = 0


def verbosity() -> int:
    """How much is asked for: 0, with ``-v`` what is done, with ``-vv`` each address, too."""
    return _level


def set_verbosity(arguments: list[str]) -> list[str]:
    """Take these options out of a command line, and do as they say.

    Args:
        arguments: The words of the command line.

    Returns:
        The other words. What stands behind ``--`` is left alone.
    """
    global _level  # noqa: PLW0603  # of the process, as its streams are
    end = arguments.index("--") if "--" in arguments else len(arguments)
    mine, rest = arguments[:end], arguments[end:]
    _level = min(2, sum(_LEVELS.get(word, 0) for word in mine))
    if _level:
        _listen(_DEBUG if _level > 1 else _INFO)
    elif any(word in _QUIET for word in mine):
        be_quiet()
    return [word for word in mine if word not in _LEVELS and word not in _QUIET] + rest


def _listen(level: int) -> None:
    """Print the lines of the logger ``mlstate`` on standard error."""
    import logging

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(printable(record.getMessage()))

    logger = logging.getLogger("mlstate")
    logger.handlers[:] = [Printing()]
    logger.setLevel(level)
    logger.propagate = False
