"""What the command line does on a terminal, in a log, when it is stopped, and for a shell."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import mlstate
from mlstate import LocalStateStore, StateKey, manifest_of
from tests.support.commands import PROGRAM, Shell, child

KEY = StateKey.parse(
    "pytorch.an-architecture-with-a-long-name.cls1000.a-training-id-as-long-as-this"
)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = "━"


class Terminal:
    """A program in a pseudo-terminal of a given width; `shell` ends those that still run."""

    started: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, shell: Shell, *arguments: object, width: int = 80, **environment: str):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        plain = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "COLUMNS")}
        self.process = subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            cwd=shell.folder,
            env={**plain, "TERM": "xterm-256color", **shell.environment, **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.started.append(self.process)
        os.close(slave)
        self.shown = ""

    def read_until(self, text: str | None = None, seconds: float = 60) -> str:
        """What is shown until a text appears, or the end."""
        deadline = time.monotonic() + seconds
        while text is None or text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if not select.select([self.master], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self.master, 65536)
            except OSError:  # Linux says EIO when the other side is closed
                break
            if not data:
                break
            self.shown += data.decode(errors="replace")
        return self.shown

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def wait(self) -> int:
        self.read_until()
        os.close(self.master)
        return self.process.wait(60)


@pytest.fixture
def shell(shell):
    store = LocalStateStore(shell.folder / "weights")
    store.save_state_dict({"a": torch.randn(512, 1024)}, KEY)
    store.save_state_dict({"a": torch.ones(256, 256)}, StateKey.parse("pytorch.mlp.short"))
    yield shell
    while Terminal.started:
        with Terminal.started.pop() as process:
            process.kill()


@pytest.fixture
def distant(shell, start_nginx):
    """A manifest of the store, whose bytes come slowly."""
    server = start_nginx(shell.folder / "weights", limit_rate=600_000)
    store = LocalStateStore(shell.folder / "weights")
    manifest_of(store, objects=[server.url("", "slow").rstrip("/")]).write(
        shell.folder / "weights.toml"
    )
    return server


@pytest.mark.parametrize("width", [60, 200])
def test_a_table_has_the_width_of_the_terminal_and_cuts_nothing(shell, width):
    terminal = Terminal(shell, "ls", "weights", width=width)
    assert terminal.wait() == 0
    lines = [ESCAPE.sub("", line).rstrip() for line in terminal.shown.splitlines()]
    assert (len(lines) == 3) is (width == 200)
    # A key is whole, to be copied: where a row does not fit, on a line of its own.
    assert max(len(line) for line in lines if line != str(KEY)) <= width
    assert (str(KEY) in lines) is (width == 60)
    assert any(line.startswith(str(KEY)) for line in lines)


def test_colour_is_for_terminals_alone(shell):
    terminal = Terminal(shell, "ls", "weights")
    assert terminal.wait() == 0
    assert ESCAPE.search(terminal.shown)
    assert not ESCAPE.search(shell("ls", "weights").stdout)


@pytest.mark.parametrize("variable", ["NO_COLOR", "CI"])
def test_nobody_who_wants_no_colour_gets_any(shell, variable):
    terminal = Terminal(shell, "ls", "weights", **{variable: "1"})
    assert terminal.wait() == 0
    assert not ESCAPE.search(terminal.shown)
    failing = Terminal(shell, "show", "pytorch.mlp.shorter", "-s", "weights", **{variable: "1"})
    assert failing.wait() == 3
    assert not ESCAPE.search(failing.shown)
    assert "error: there is no such state here" in failing.shown


def test_an_error_stands_out_on_a_terminal(shell):
    terminal = Terminal(shell, "show", "pytorch.mlp.shorter", "--store", "weights")
    assert terminal.wait() == 3
    assert "\x1b[1;31merror:\x1b[0m there is no such state here" in terminal.shown
    assert "did you mean pytorch.mlp.short?" in terminal.shown


@pytest.mark.usefixtures("distant")
@pytest.mark.parametrize("width", [60, 200])
def test_a_fetch_shows_a_bar_on_a_terminal(shell, width):
    terminal = Terminal(shell, "fetch", KEY, "--store", "weights.toml", width=width)
    assert terminal.wait() == 0
    assert BAR in terminal.shown
    assert re.search(r"[\d.]+/2\.1 MB", ESCAPE.sub("", terminal.shown))
    assert "2.1 MB fetched" in terminal.shown


@pytest.mark.usefixtures("distant")
def test_a_ci_job_gets_no_bar(shell):
    terminal = Terminal(shell, "fetch", KEY, "--store", "weights.toml", CI="true")
    assert terminal.wait() == 0
    assert BAR not in terminal.shown
    assert not ESCAPE.search(terminal.shown)


@pytest.mark.usefixtures("distant")
def test_a_log_gets_plain_lines(shell, monkeypatch):
    done = shell("fetch", KEY, "--store", "weights.toml")
    assert done.returncode == 0
    assert BAR not in done.stderr
    assert done.stdout == f"{KEY}  2.1 MB fetched\n"


def test_what_takes_long_says_so_in_a_log(monkeypatch, capsys):
    from mlstate.cli import progress as module
    from mlstate.fetch.progress import Progress

    monkeypatch.setattr(module, "_INTERVAL", 0.0)
    module.progress()(Progress(500_000, 2_000_000, 1e6, "pytorch.mlp.short"))
    assert capsys.readouterr().err == "pytorch.mlp.short: 500.0 kB of 2.0 MB, 1.0 MB/s\n"


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_says_how_to_go_on_and_leaves_nothing_half_done(shell, distant):
    terminal = Terminal(shell, "fetch", KEY, "--store", "weights.toml")
    terminal.read_until(BAR)
    terminal.press(b"\x03")
    assert terminal.wait() == 130
    shown = ESCAPE.sub("", terminal.shown)
    assert "Nothing is half done" in shown
    assert "give the same command again" in " ".join(shown.split())
    assert "Traceback" not in shown
    shell.lines("verify", "--all", "--store", "weights.toml")
    # Then it goes on, and all is there.
    shell.lines("fetch", KEY, "--store", "weights.toml")
    assert shell.json("ls", "weights.toml")["states"][0]["cached"] == "yes"


def test_a_reader_that_goes_early_is_no_error(shell):
    done = subprocess.run(
        f"{PROGRAM} show {KEY} --store weights --json | head -1",
        shell=True,
        cwd=shell.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command",
    [("show", str(KEY), "--store", "weights", "--json"), ("ls", "weights"), ("--version",)],
)
def test_a_reader_that_is_gone_is_told_by_the_exit_code_alone(shell, command):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [PROGRAM, *command],
        cwd=shell.folder,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_closed_output_is_no_error(shell):
    for closed in (">&-", ">&- 2>&-"):
        command = f"{PROGRAM} ls weights {closed}"
        done = subprocess.run(
            ["bash", "-c", command], cwd=shell.folder, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_closed_input_is_an_empty_one(shell):
    command = f"{PROGRAM} unbundle - --store weights <&-"
    done = subprocess.run(
        ["bash", "-c", command], cwd=shell.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


def test_no_file_gets_the_descriptor_of_a_closed_stream(tmp_path):
    """What a library prints there would be written into an object."""
    code = (
        "import os; from mlstate.cli.app import run; run(['--version']); "
        "print(os.open('own', os.O_WRONLY | os.O_CREAT), file=open('said', 'w'))"
    )
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{code}" <&- >&- 2>&-'],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 0
    assert int((tmp_path / "said").read_text()) > 2


def test_names_cannot_command_the_terminal(shell):
    store = LocalStateStore(shell.folder / "weights")
    key = StateKey.parse("pytorch.mlp.hostile")
    store.save_state_dict({"a\x1b[2J": torch.ones(1)}, key, meta={"note": "b\x1b]0;x\x07"})
    told = "\n".join(shell.lines("show", key, "--store", "weights"))
    assert "\x1b" not in told
    assert "\x07" not in told
    assert r"a\x1b[2J" in told
    terminal = Terminal(shell, "show", key, "--store", "weights", NO_COLOR="1")
    assert terminal.wait() == 0
    assert "\x1b" not in terminal.shown


def test_help_has_an_example_of_every_command(shell):
    from mlstate.cli.app import command_tree

    for name in command_tree().commands:
        told = "\n".join(shell.lines(name, "--help"))
        assert f"Example:\n    mlstate {name} " in told, name


def test_the_version(shell):
    assert shell.lines("--version") == [f"mlstate {mlstate.__version__}"]


def test_what_handles_bytes_starts_without_torch(shell):
    program = (
        "import sys; from mlstate.cli.app import run; code = run(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch'; "
        "assert 'pydantic' not in sys.modules, 'pydantic, which is slow'; sys.exit(code)"
    )
    manifest_of(LocalStateStore(shell.folder / "weights"), objects=["weights"]).write(
        shell.folder / "weights.toml"
    )
    for line in (
        "ls weights",
        f"show {KEY} -s weights",
        "du weights",
        "report weights --no-values -o report.html",
        "fetch --all -s weights.toml",
        "verify --all -s weights",
        f"export {KEY} out.safetensors -s weights",
        "digest out.safetensors",
        "add pytorch.new.one out.safetensors -s new",
        f"diff {KEY} pytorch.mlp.short --names-only -s weights",
        "copy --all --from weights --to copies",
        f"materialize {KEY} plain -s weights",
        "bundle --all -s weights -o all.tar",
        "unbundle all.tar -s unpacked",
        "rm pytorch.mlp.short -s weights",
        "prune -s weights",
        "doctor -s weights",
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *line.split()],
            cwd=shell.folder,
            env={**os.environ, **shell.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "AssertionError" not in done.stderr, line
        assert done.returncode == (1 if line.startswith("diff") else 0), (line, done.stderr)


def complete(shell, kind, words):
    """What a shell would offer for the last word."""
    line = " ".join(words)
    variables = {
        "_MLSTATE_COMPLETE": f"complete_{kind}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [PROGRAM],
        cwd=shell.folder,
        env={**os.environ, **shell.environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_keys(shell, kind):
    assert "materialize" in complete(shell, kind, ["mlstate", "mat"])
    offered = complete(shell, kind, ["mlstate", "show", "--store", "weights", "pytorch.m"])
    assert "pytorch.mlp.short" in offered
    assert str(KEY) not in offered
    nothing = complete(shell, kind, ["mlstate", "show", "--store", "nowhere", "pytorch.m"])
    assert "pytorch" not in nothing


BASH = """
eval "$(mlstate --show-completion; true)"
COMP_WORDS=(mlstate show --store weights pytorch.m) COMP_CWORD=4
_mlstate_completion mlstate pytorch.m show
printf "%s\\n" "${COMPREPLY[@]}"
"""
FISH = """
mlstate --show-completion | source
complete -C "mlstate show --store weights pytorch.m"
"""
# Completion of zsh needs its line editor: the script is read, and what it registers is asked for.
ZSH = """
autoload -Uz compinit; compinit -u -d "$PWD/dump"
eval "$(mlstate --show-completion; true)"
words=(mlstate show --store weights pytorch.m) CURRENT=5
_arguments() { print -r -- "$*" }
${_comps[mlstate]}
"""


@pytest.mark.parametrize(("kind", "script"), [("bash", BASH), ("zsh", ZSH), ("fish", FISH)])
def test_real_shells_complete_keys(shell, kind, script):
    if shutil.which(kind) is None:
        pytest.skip(f"{kind} is not installed")
    path = f"{os.path.dirname(PROGRAM)}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [kind, "-c", script],
        cwd=shell.folder,
        env={**os.environ, **shell.environment, "PATH": path, "SHELL": f"/bin/{kind}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "pytorch.mlp.short" in done.stdout, done.stderr


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_without_a_terminal_ends_it_too(shell, distant):
    command = [PROGRAM, "fetch", "--all", "--store", "weights.toml"]
    environment = {**os.environ, **shell.environment}
    with child(*command, cwd=shell.folder, env=environment, stderr=subprocess.PIPE) as process:
        while not any((shell.folder / "cache").glob("**/*")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped" in told


HOSTILE = "a\nerror: forged\x1b[2J\x9b\u202eb"


@pytest.mark.parametrize(
    "words",
    [
        [HOSTILE],
        ["ls", f"--{HOSTILE}"],
        ["ls", "store", HOSTILE],
        ["ls", f"-{HOSTILE}"],
        ["fetch", f"--all={HOSTILE}", "--store", HOSTILE],
        ["ls", HOSTILE, "--store", HOSTILE],
        ["show", HOSTILE, "--store", "."],
        ["add", HOSTILE, HOSTILE],
        ["digest", HOSTILE],
        ["prune", "--max-size", HOSTILE],
        ["report", ".", HOSTILE, "--findings", HOSTILE],
        ["prune", "--older-than", HOSTILE],
        ["materialize", HOSTILE, HOSTILE, "--store", HOSTILE],
        ["unbundle", HOSTILE, "--store", HOSTILE],
        ["verify-signature", HOSTILE, "--allowed-signers", HOSTILE],
    ],
    ids=lambda words: words[0][:20] if words[0] != HOSTILE else "command",
)
def test_what_was_typed_commands_no_terminal_and_forges_no_line(shell, words):
    done = shell(*words)
    assert done.returncode not in (0, 1), done.stderr
    for line in (done.stdout + done.stderr).splitlines():
        assert line.isprintable(), line
        assert not line.startswith("error: forged")
    assert "Traceback" not in done.stderr


def test_a_signature_in_what_was_typed_is_not_shown(shell):
    done = shell("ls", "https://host/x?sig=secret", "--store", "store")  # two stores
    assert done.returncode == 2
    assert "secret" not in done.stderr
    assert "https://host/x" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("words", "code"), [(["no-such-command"], 2), (["ls", "nothing"], 3), ([], 2)]
)
def test_where_nobody_can_be_told_the_exit_code_still_says_it(shell, words, code):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [PROGRAM, *words],
            cwd=shell.folder,
            env={**os.environ, **shell.environment},
            stderr=full,
            check=False,
        )
    assert done.returncode == code
