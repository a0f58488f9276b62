"""The command line: what a person types. It prints; what it prints is computed by the API."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    import sys

    from mlstate.cli.app import run

    sys.exit(run(sys.argv[1:]))
