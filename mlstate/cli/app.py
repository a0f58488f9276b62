"""The application: its commands, and how their errors and warnings are told."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from mlstate.cli.add_export import add, export, materialize
from mlstate.cli.bundle_unbundle import bundle, unbundle
from mlstate.cli.doctor import doctor
from mlstate.cli.exit_codes import EXIT_CODES, INTERRUPTED, OK, USAGE, WITHOUT_READER, exit_code
from mlstate.cli.fetch_copy_lock import copy, fetch, lock
from mlstate.cli.ls_show_du import du, ls, show
from mlstate.cli.output import complain, never_refuse, note, said, tell
from mlstate.cli.parameters import TextCommand, TextGroup
from mlstate.cli.report import report
from mlstate.cli.rm_prune import prune, rm
from mlstate.cli.sign import sign, verify_signature
from mlstate.cli.verify_diff_digest import diff, digest, verify
from mlstate.errors import MlstateError
from mlstate.phrases import in_shell
from mlstate.version import __version__

__all__ = ["app", "command_tree", "run"]

PROGRAM = "mlstate"
_LAST_STREAM = 2

app = typer.Typer(
    name=PROGRAM,
    cls=TextGroup,
    help="PyTorch weights, each tensor kept once: fetched, verified, compared, shared.",
    epilog="Every command has --help, with an example. Exit codes:\n\n\b\n"
    + "\n".join(f"{code:>3}  {meaning}" for code, meaning in EXIT_CODES.items()),
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


_COMMANDS: tuple[tuple[Callable[..., Any], str, str], ...] = (
    (ls, "List states.", "ls weights --type pytorch.resnet18"),
    (
        show,
        "Show all that is known of a state.",
        "show pytorch.resnet18.cls1000.imagenet --store weights",
    ),
    (du, "Show what takes the space.", "du weights"),
    (report, "Write a page to look at.", "report weights -o report.html"),
    (fetch, "Bring states into the cache.", "fetch 'pytorch.resnet18.*' --store manifests/"),
    (
        copy,
        "Bring states from one store into another.",
        "copy --all --from weights --to s3://bucket/weights",
    ),
    (lock, "Pin the states of a manifest.", "lock manifests/torchvision.toml"),
    (verify, "Read every byte, and compare it with the digests.", "verify --all --store weights"),
    (
        sign,
        "Sign a manifest, or states, with an SSH key.",
        "sign weights.toml --key ~/.ssh/id_ed25519",
    ),
    (
        verify_signature,
        "Check the signature of a manifest, or of states.",
        "verify-signature weights.toml --allowed-signers allowed_signers",
    ),
    (
        diff,
        "Compare two states, or files.",
        "diff pytorch.mlp.base pytorch.mlp.tuned --store weights",
    ),
    (digest, "Print the state digest of weights files.", "digest model.safetensors checkpoint.pt"),
    (
        add,
        "Adopt weights from a file, a URL or the hub.",
        "add pytorch.bert.base hf://org/repo@main --store weights",
    ),
    (
        export,
        "Write a state as a plain .safetensors file.",
        "export pytorch.bert.base bert.safetensors --store weights",
    ),
    (
        materialize,
        "Write a state as a folder for other tools.",
        "materialize pytorch.bert.base folder/ --store weights",
    ),
    (bundle, "Write states into one tar.", "bundle --all --store weights -o weights.tar"),
    (unbundle, "Bring the states of a tar into a store.", "unbundle weights.tar --store weights"),
    (rm, "Remove states.", "rm pytorch.resnet18.cls2.failed --store weights"),
    (prune, "Make room.", "prune --max-size 50GB --dry-run"),
    (doctor, "Look for trouble on this machine.", "doctor --store weights.toml"),
)
"""Each command: what it does in a list of all commands, and an example below its help."""

for _function, _short, _example in _COMMANDS:
    _epilog = f"\b\nExample:\n  {PROGRAM} {_example}"
    app.command(cls=TextCommand, short_help=_short, epilog=_epilog)(_function)


def command_tree() -> Any:
    """All commands with their parameters, as typer has built them."""
    return typer.main.get_command(app)


def run(arguments: Sequence[str]) -> int:
    """Run a command line.

    Args:
        arguments: The words after the name of the program.

    Returns:
        The exit code; see `mlstate.cli.exit_codes.EXIT_CODES`.
    """
    _open_what_is_closed()
    never_refuse()
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        # torch says so at its import. Nothing here needs NumPy.
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        try:
            result = command_tree().main(list(arguments), PROGRAM, standalone_mode=False)
        except typer.TyperException as error:  # what was typed: with the usage of the command
            _show_usage(error)
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
        note("")
        note(
            f"{PROGRAM}: stopped. Nothing is half done. To go on, give the same command again: "
            "what has come already is not fetched twice."
        )
    if not _flushed():
        return WITHOUT_READER
    return result if isinstance(result, int) else OK


def _show_usage(error: Any) -> None:
    """Print what is wrong with a command line, of which the message repeats some: as all else."""
    text, message = io.StringIO(), error.format_message()
    if error.ctx is None or message != error.ctx.get_help():  # which is all that some say
        error.format_message = lambda: said(message)
    error.show(text)
    tell(text.getvalue().rstrip("\n"))


def _flushed() -> bool:
    """Whether all that was printed has gone out; if its reader has gone, the rest goes nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Else Python flushes once more at its exit, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    text = message.args[0] if isinstance(message, Warning) and message.args else message
    note("warning: " + in_shell(text))


def _open_what_is_closed() -> None:
    """Replace closed streams (``>&-``): printing into them is no error, and goes nowhere.

    Their descriptors are taken, too: else a file of a store would get one of them, and with it what
    some library prints.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STREAM:
        pass
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # as long as the process
