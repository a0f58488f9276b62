"""The command line: it takes words, calls the API, and prints what that returns."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    import sys

    from mlstate.cli.app import run

    sys.exit(run(sys.argv[1:]))
