"""The application: its commands, and how their errors and warnings are told."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlstate import settings
from mlstate.cli.add_export import add, export, materialize
from mlstate.cli.bundle_unbundle import bundle, unbundle
from mlstate.cli.check import check
from mlstate.cli.compact import compact
from mlstate.cli.doctor import doctor
from mlstate.cli.exit_codes import (
    DEFECT,
    EXIT_CODES,
    INTERRUPTED,
    OK,
    USAGE,
    WITHOUT_READER,
    exit_code,
)
from mlstate.cli.failures import failure_of, in_our_words, print_failure
from mlstate.cli.fetch_copy_lock import copy, fetch, lock
from mlstate.cli.git import git_diff, git_merge, git_setup
from mlstate.cli.init import init
from mlstate.cli.log_restore import log, restore
from mlstate.cli.ls import ls
from mlstate.cli.mv_meta_alias import alias, meta, mv
from mlstate.cli.output import complain, never_refuse, note, said, tell, warning
from mlstate.cli.parameters import TextCommand, TextGroup
from mlstate.cli.peers import peers
from mlstate.cli.pins import pins
from mlstate.cli.report import report
from mlstate.cli.rm_prune import prune, rm
from mlstate.cli.show_du import du, show
from mlstate.cli.sign import sign, verify_signature
from mlstate.cli.verbosity import set_verbosity
from mlstate.cli.verify_diff_digest import diff, digest, verify
from mlstate.errors import MlstateError
from mlstate.phrases import in_shell
from mlstate.version import __version__

if TYPE_CHECKING:
    from mlstate.cli.printed import Failure

__all__ = ["app", "command_tree", "run"]

PROGRAM = "mlstate"
FIRST_STEPS_TITLE = "First steps, in the folder of a project:"
_MODEL = "with_state_type(torch.nn.Linear(2, 1), StateType('pytorch', 'linear'))"
FIRST_STEPS = (
    "mlstate init",
    f"python -c \"import torch; from mlstate import *; open_project().save({_MODEL}, 'first')\"",
    'python -c "import torch; from mlstate import *; '
    f"print(open_project().load({_MODEL}, StateKey.parse('pytorch.linear.first')))\"",
)
"""What leads a newcomer to a first state, typed as it is: make a store, save, load."""
_LAST_STREAM = 2
_COMPLETE = f"_{PROGRAM.upper()}_COMPLETE"

_SETTINGS: dict[str, Any] = {
    "name": PROGRAM,
    "cls": TextGroup,
    "help": "PyTorch weights, each tensor kept once: fetched, verified, compared, shared.",
    "epilog": "Every command has --help, with an example. Exit codes:\n\n\b\n"
    + "\n".join(f"{code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    + f"\n\n{FIRST_STEPS_TITLE}\n\n\b\n"
    + "\n".join(f"  {step}" for step in FIRST_STEPS)
    + "\n\nA file of weights that you have is taken in by: mlstate add KEY FILE",
    "no_args_is_help": True,
    "rich_markup_mode": None,  # plain help starts faster, and reads the same in a log
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(**_SETTINGS)


def _version(wanted: bool) -> None:
    if wanted:
        print(PROGRAM, __version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Say what is done; -vv: each address, too. Behind commands, too.",
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No notes, no progress. Behind commands, too.")
    ] = False,
) -> None:
    pass  # `set_verbosity` has done what these say


_COMMANDS: tuple[tuple[Callable[..., Any], str, str], ...] = (
    (init, "Make this folder a project, with a store.", "init --store weights"),
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
    (
        pins,
        "List, or forget, what first uses have pinned.",
        "pins rm pytorch.resnet18.cls1000.imagenet",
    ),
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
        "Compare two states, files or manifests.",
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
    (mv, "Give a state another key.", "mv pytorch.mlp.run7 pytorch.mlp.final --store weights"),
    (
        meta,
        "Show or change what is noted of a state.",
        "meta pytorch.mlp.final set accuracy=0.93 --store weights",
    ),
    (
        alias,
        "Give a state of a manifest another name.",
        "alias best pytorch.mlp.final --store weights.toml",
    ),
    (log, "List what was saved, replaced and deleted.", "log --store weights"),
    (
        restore,
        "Bring a removed or replaced state back.",
        "restore pytorch.mlp.run7 --store weights",
    ),
    (compact, "Keep near tensors in fewer bytes.", "compact weights --dry-run"),
    (prune, "Make room.", "prune --max-size 50GB --dry-run"),
    (check, "Check manifests, for hooks and CI.", "check weights.toml --mirrors"),
    (git_setup, "Let git show and merge manifests by state.", "git-setup --hook"),
    (
        git_diff,
        "Show a change of a manifest: git's diff driver.",
        "git-diff weights.toml /tmp/old.toml 1f3a2b 100644 weights.toml 9c0d1e 100644",
    ),
    (
        git_merge,
        "Merge two versions of a manifest: git's merge driver.",
        "git-merge base.toml ours.toml theirs.toml 7 weights.toml",
    ),
    (
        peers,
        "Set up caches that the nodes of a cluster share.",
        "peers --origin https://weights.example.org --nodes node-a,node-b -o peers/",
    ),
    (doctor, "Look for trouble on this machine.", "doctor --store weights.toml"),
)
"""Each command: what it does in a list of all commands, and an example below its help."""

_BY_NAME = {function.__name__.replace("_", "-"): function for function, _, _ in _COMMANDS}


def _add(to: typer.Typer, *only: Callable[..., Any]) -> None:
    """Add the commands, or some of them."""
    for function, short, example in _COMMANDS:
        if not only or function in only:
            epilog = f"\b\nExample:\n  {PROGRAM} {example}"
            to.command(cls=TextCommand, short_help=short, epilog=epilog)(function)


_add(app)


def command_tree() -> Any:
    """All commands with their parameters, as typer has built them."""
    return typer.main.get_command(app)


def _tree_for(arguments: Sequence[str]) -> Any:
    """The commands that may be meant: one alone takes a tenth of the time of all."""
    function = _BY_NAME.get(arguments[0]) if arguments else None
    if function is None or _COMPLETE in os.environ:
        return command_tree()
    one = typer.Typer(**_SETTINGS)
    one.callback()(_main)
    _add(one, function)
    return typer.main.get_command(one)


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
        _hear_no_deprecations()
        code, failure = _run(set_verbosity(list(arguments)))
        if failure is not None and code != WITHOUT_READER:
            with suppress(BrokenPipeError):
                print_failure(list(arguments), code, failure)
    return code if _flushed() else WITHOUT_READER


def _run(arguments: list[str]) -> tuple[int, Failure | None]:
    """The exit code, and what failed, which has been told to people by then."""
    try:
        settings.refuse_misspelt()
        result = _tree_for(arguments).main(arguments, PROGRAM, standalone_mode=False)
    except typer.TyperException as error:  # what was typed: with the usage of the command
        _show_usage(error)
        return USAGE, _usage_failure(error)
    except typer.Abort:
        return INTERRUPTED, _stopped()
    except SystemExit as error:
        if _COMPLETE in os.environ:  # typer answers shells by it
            raise
        if _is_of_gone_reader(error):
            return WITHOUT_READER, None
        return error.code if isinstance(error.code, int) else OK, None
    except (MlstateError, OSError) as error:
        complain(in_our_words(error))
        return exit_code(error), failure_of(error)
    except ImportError as error:
        complain(in_our_words(error))
        return exit_code(in_our_words(error)), failure_of(error)
    except Exception as error:
        _tell_of_defect()
        return DEFECT, _defect(error)
    if result == INTERRUPTED:  # typer makes this of Ctrl-C
        return INTERRUPTED, _stopped()
    return result if isinstance(result, int) else OK, None


def _is_of_gone_reader(error: SystemExit) -> bool:
    """Whether typer makes this of a reader that has gone: head, say."""
    return isinstance(error.__context__, OSError) and error.__context__.errno == errno.EPIPE


def _stopped() -> Failure:
    from mlstate.cli.printed import Failure

    what, remedy = "stopped; nothing is half done", "to go on, give the same command again"
    note("")
    note(
        f"{PROGRAM}: stopped. Nothing is half done. To go on, give the same command again: "
        "what has come already is not fetched twice."
    )
    return Failure("Interrupted", what, remedy=remedy)


_REPORT = "please report it, with the lines above"


def _tell_of_defect() -> None:
    for line in traceback.format_exc().splitlines():
        tell(said(line))
    complain(f"this is a defect of {PROGRAM} {__version__}; {_REPORT}")


def _defect(error: Exception) -> Failure:
    from mlstate.cli.printed import Failure

    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    message = f"a defect of {PROGRAM} {__version__}"
    return Failure(type(error).__name__, message, found=said[:500], remedy=_REPORT)


def _usage_failure(error: Any) -> Failure:
    from mlstate.cli.printed import Failure

    message = error.format_message()
    words = PROGRAM if error.ctx is None else error.ctx.command_path
    if error.ctx is not None and message == error.ctx.get_help():  # which is all that some say
        message = "give a command"
    return Failure("UsageError", message, remedy=f"see: {words} --help")


def _hear_no_deprecations() -> None:
    """Leave warnings out that torch has for programs: nobody at a shell can act on them."""
    if not sys.warnoptions:  # who develops asks for them by -W or PYTHONWARNINGS
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        warnings.filterwarnings("ignore", module=r"torch(\..*)?")


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
    warning(in_shell(text))


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
