"""The application: its commands, and what becomes of their errors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer

from mlstate import __version__
from mlstate.cli import checking, doctor, listing, making, moving, removing
from mlstate.cli.errors import INTERRUPTED, OK, REFUSED, USAGE, exit_code
from mlstate.cli.output import has_colour, note
from mlstate.cli.parameters import keep_texts
from mlstate.cli.wording import in_shell_words
from mlstate.errors import MlstateError

__all__ = ["app", "command_tree", "run"]

PROGRAM = "mlstate"

app = typer.Typer(
    name=PROGRAM,
    help="PyTorch weights, each tensor kept once: fetched, verified, compared, shared.",
    epilog="Every command has --help, with an example.",
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


for group in (listing, moving, checking, making, removing, doctor):
    group.register(app)


def command_tree() -> Any:
    """All commands with their parameters, as typer has built them: for those that describe them."""
    tree = typer.main.get_command(app)
    keep_texts(tree)
    return tree


def run(arguments: Sequence[str]) -> int:
    """Run a command line.

    Args:
        arguments: What comes after the program's name.

    Returns:
        The exit code; see `mlstate.cli.errors.EXIT_CODES`.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            result = command_tree().main(list(arguments), PROGRAM, standalone_mode=False)
        except typer.TyperException as error:  # what was typed: with the usage of the command
            error.show(sys.stderr)  # type: ignore[attr-defined]  # all that are raised here can
            return USAGE
        except typer.Abort:
            return INTERRUPTED
        except BrokenPipeError:
            return _without_reader()
        except (MlstateError, OSError) as error:
            code = exit_code(error)
            _complain(str(error))
            return code
    if result == INTERRUPTED:  # typer makes this of Ctrl-C
        note(
            f"\n{PROGRAM}: stopped. Nothing is half done, and what came is kept: the same command "
            "again goes on from here."
        )
    return result if isinstance(result, int) else OK


def _complain(text: str) -> None:
    mark = "\x1b[1;31merror:\x1b[0m" if has_colour(sys.stderr) else "error:"
    note(f"{mark} {in_shell_words(text)}")


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> Any:
    note(f"warning: {in_shell_words(str(message))}")


def _without_reader() -> int:
    """Whoever read the output (``head``, say) has gone: no more can be told."""
    import os

    # Python flushes at its end, and would complain of the same again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return REFUSED
