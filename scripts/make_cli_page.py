"""Write docs/cli.md from the command line itself: ``python scripts/make_cli_page.py``.

Usage, options and examples are those that ``--help`` shows, the settings and exit codes those that
the program uses, the JSON types those that its commands are checked against. With ``--check``
nothing is written; the exit code says whether the page is up to date.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlstate.cli import printed
from mlstate.cli.app import PROGRAM, command_tree
from mlstate.cli.exit_codes import EXIT_CODES
from mlstate.operations.reports import fields_of, shape_of
from mlstate.settings import OTHERS, SETTINGS, Setting

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"

HEAD = f"""\
# The command line

`{PROGRAM}` does what the Python API does, for people: look, fetch, verify, compare, share. It
starts without torch; only `export --torch` and the comparison of values need it.

This page is written by `scripts/make_cli_page.py` from the program itself.

A store is a folder, a manifest or a folder of them, `s3://bucket/prefix`, or `github:owner/repo`.
Give it with `--store`, or once for all with `MLSTATE_STORE`; without either it is that of the
project, as the nearest `mlstate.toml` or `[tool.mlstate]` of a `pyproject.toml` says, which
`mlstate init` writes. Where there is none it is `Store()`: the manifests of `MLSTATE_MANIFESTS`,
and those that come with mlstate and with other libraries.

Data go to standard output, all else to standard error. On a terminal there are colour and bars;
not with `NO_COLOR` (no colour), nor with `CI` (neither). Into a pipe or a file tables go as plain
lines, with two spaces or more between columns. `--json` prints one object for programs.

## Completion

For bash, zsh and fish, keys included (those of stores on this machine):

    {PROGRAM} --install-completion
"""


def page() -> str:
    """The text of the page."""
    parts = [HEAD, *_commands(), *_exit_codes(), *_settings(), *_json()]
    return "\n".join(parts).rstrip() + "\n"


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    for name, command in command_tree().commands.items():
        yield f"### {PROGRAM} {name}\n"
        yield _paragraphs(command.help) + "\n"
        arguments = " ".join(_argument(p) for p in command.params if p.param_type_name != "option")
        yield f"    {PROGRAM} {name} [OPTIONS] {arguments}".rstrip() + "\n"
        yield "| argument or option | what it says |\n|---|---|"
        for parameter in command.params:
            yield f"| {_names(parameter)} | {_cell(parameter.help)} |"
        example = command.epilog.partition("Example:")[2].strip()
        yield f"\nExample:\n\n    {example}\n"


def _argument(parameter: Any) -> str:
    name = f"{parameter.metavar}..." if parameter.nargs == -1 else str(parameter.metavar)
    return name if parameter.required else f"[{name}]"


def _names(parameter: Any) -> str:
    if parameter.param_type_name != "option":
        return f"`{parameter.metavar}`"
    value = "" if parameter.is_flag else f" {parameter.metavar}"
    return ", ".join(f"`{option}{value}`" for option in parameter.opts)


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "| code | what it says |\n|---|---|"
    for code, meaning in EXIT_CODES.items():
        yield f"| {code} | {_cell(meaning)} |"
    yield ""


def _settings() -> Iterator[str]:
    yield "## Settings\n"
    yield "Settings are variables of the environment; `mlstate doctor` lists them with values."
    yield "\n| variable | what it says | without it |\n|---|---|---|"
    yield from map(_setting, SETTINGS)
    yield "\nThese are shared with other tools:\n"
    yield "| variable | what it says | without it |\n|---|---|---|"
    yield from map(_setting, OTHERS)
    yield ""


def _setting(setting: Setting) -> str:
    return f"| `{setting.name}` | {_cell(setting.meaning)} | {_cell(setting.default)} |"


def _json() -> Iterator[str]:
    yield "## JSON\n"
    about = _paragraphs(printed.__doc__).partition("\n\n")[2]
    yield about.partition("\n\nWhat the API")[0] + "\n"
    alike: dict[str, list[str]] = {}
    reports = {repr(shape): shape for shape in printed.printed().values()}
    for command, shape in printed.printed().items():
        alike.setdefault(repr(shape), []).append(command)
    shown: set[type] = set()
    for name, commands in alike.items():
        abouts = {name: each.short_help for name, each in command_tree().commands.items()}
        about = " ".join((abouts | printed.VARIANTS)[command] for command in commands)
        title = ", ".join(f"`{command}`" for command in commands)
        yield from _object(title, about, ({"schema": str}, *reports[name]), shown)
    about = "What any command prints that fails."
    yield from _object("`error`", about, ({"schema": str}, *printed.failed()), shown)


def _object(title: str, about: str, kinds: tuple[Any, ...], shown: set[type]) -> Iterator[str]:
    """An object that is printed, and after it the objects in it."""
    shape = shape_of(*kinds)
    said: dict[str, str] = {}
    for kind in kinds:
        said = (dict.fromkeys(kind, "") if isinstance(kind, dict) else _attributes(kind)) | said
    yield f"### {title}\n"
    yield about + "\n"
    more = any(said.values())
    yield (
        "| field | type | what it says |\n|---|---|---|" if more else "| field | type |\n|---|---|"
    )
    for name, hint in shape.items():
        yield f"| `{name}` | {_cell(_name(hint))} |" + f" {_cell(said.get(name))} |" * more
    yield ""
    for inner in (inner for hint in shape.values() for inner in _inner(hint)):
        if inner not in shown:
            shown.add(inner)
            about = _paragraphs(inner.__doc__).partition("\n\nAttributes:")[0]
            yield from _object(inner.__name__, about, (inner,), shown)


def _attributes(report: type) -> dict[str, str]:
    """What a docstring says of the fields of a report, under the names that they have in JSON."""
    text = _paragraphs(report.__doc__).partition("\n\nAttributes:\n")[2].partition("\n\n")[0]
    said = dict(re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", text, re.MULTILINE))
    return {
        name: re.sub(r"\bNone\b", "null", said[field])
        for name, field, _ in fields_of(report)
        if field in said
    }


def _inner(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and fields_of(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from _inner(argument)


def _name(hint: Any) -> str:
    """A type as JSON has it."""
    plain = {str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    if hint in plain:
        return plain[hint]
    if hint is typing.Any:
        return "anything"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return f"list of {_name(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return "object"
    if arguments:
        return " or ".join(map(_name, arguments))
    return str(hint.__name__)


def _paragraphs(text: str | None) -> str:
    return inspect.cleandoc(text or "").replace("``", "`")


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def main() -> int:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    wanted = page()
    if parser.parse_args().check:
        current = PAGE.read_text() if PAGE.exists() else ""
        if current != wanted:
            print("docs/cli.md is out of date: run python scripts/make_cli_page.py")
            return 1
        return 0
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
