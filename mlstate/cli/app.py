"""The application: its commands, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer

from mlstate.cli import checking, doctor, listing, making, moving, packing, pinning, removing
from mlstate.cli.errors import EXIT_CODES, INTERRUPTED, OK, USAGE, WITHOUT_READER, exit_code
from mlstate.cli.output import complain, note
from mlstate.cli.parameters import TextGroup
from mlstate.errors import MlstateError
from mlstate.phrases import in_shell
from mlstate.version import __version__

__all__ = ["app", "command_tree", "run"]

PROGRAM = "mlstate"

app = typer.Typer(
    name=PROGRAM,
    cls=TextGroup,
    help="PyTorch weights, each tensor kept once: fetched, verified, compared, shared.",
    epilog="Every command has --help, with an example. Exit codes:\n\n\b\n"
    + "\n".join(f"{code.number:>3}  {code.meaning}" for code in EXIT_CODES),
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help starts faster, and reads the same in a log
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(PROGRAM, __version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


for group in (listing, moving, pinning, checking, making, packing, removing, doctor):
    group.register(app)


def command_tree() -> Any:
    """All commands with their parameters, as typer has built them: for those that describe them."""
    return typer.main.get_command(app)


def run(arguments: Sequence[str]) -> int:
    """Run a command line.

    Args:
        arguments: What comes after the program's name.

    Returns:
        The exit code; see `mlstate.cli.errors.EXIT_CODES`.
    """
    _open_what_is_closed()
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        # torch says so at its import. Nothing here needs NumPy.
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        try:
            result = command_tree().main(list(arguments), PROGRAM, standalone_mode=False)
        except typer.TyperException as error:  # what was typed: with the usage of the command
            error.show(sys.stderr)  # type: ignore[attr-defined]  # all that are raised here can
            return USAGE
        except typer.Abort:
            return INTERRUPTED
        except SystemExit:  # typer makes this of a reader that has gone: head, say
            if f"_{PROGRAM.upper()}_COMPLETE" in os.environ:  # and answers shells by it
                raise
            return WITHOUT_READER
        except (MlstateError, OSError) as error:
            code = exit_code(error)
            complain(error)
            return code
    if result == INTERRUPTED:  # typer makes this of Ctrl-C
        note(
            f"\n{PROGRAM}: stopped. Nothing is half done. To go on, give the same command again: "
            "what has come already is not fetched twice."
        )
    return result if isinstance(result, int) else OK


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> Any:
    text = message.args[0] if isinstance(message, Warning) and message.args else message
    note(f"warning: {in_shell(text)}")


def _open_what_is_closed() -> None:
    """Whoever closed standard output (``>&-``) wants nothing of it; to print is no error then."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # as long as the process
