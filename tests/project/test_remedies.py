"""What errors tell people to do can be done: commands, options, functions and variables exist.

Each remedy in the source is read from its expression, in the words of Python and of the shell.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import mlstate
from mlstate.cli.app import command_tree
from mlstate.phrases import Phrase, in_shell
from mlstate.settings import OTHERS, SETTINGS

ROOT = Path(mlstate.__file__).parent
SOMETHING = "X"
# Met by programs alone: no command leads there.
OF_PYTHON = (
    "integrations/",
    "tensors/",
    "models.py",
    "states.py",
    "stores/custom.py",
    "stores/arguments.py",
    "stores/manifest.py",
    "stores/s3.py",
    "stores/github/",
    "manifests/__init__.py",
)
CODE_OF_TORCH = re.compile(r"state_dict\(\)|torch\.\w+(\.\w+)*|tensor\.contiguous\(\)")


@dataclass(frozen=True)
class Remedy:
    """What to do, in both wordings, and where that is written."""

    where: str
    python: str
    shell: str


def _texts(node: ast.expr, module: object) -> list[tuple[str, str]]:
    """What an expression may be, in the words of Python and of the shell."""
    match node:
        case ast.Constant(value=str() as text):
            return [(text, text)]
        case ast.JoinedStr(values=parts):
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else SOMETHING for part in parts
            )
            return [(text, text)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            ends = _texts(right, module)
            return [(a + c, b + d) for a, b in _texts(left, module) for c, d in ends]
        case ast.IfExp(body=body, orelse=orelse):
            return [*_texts(body, module), *_texts(orelse, module)]
        case ast.BoolOp(values=values):
            return [text for value in values for text in _texts(value, module)]
        case ast.Call(func=ast.Name(id="Phrase"), args=[python, shell]):
            ours, theirs = _texts(python, module), _texts(shell, module)
            return [(a, b) for (a, _), (_, b) in zip(ours, theirs, strict=True)]
        case ast.Call(func=ast.Name(id="flag"), args=[ast.Constant(value=name)]):
            return [(f"{name}=True", f"--{name}")]
        case ast.Name(id=name) if isinstance(value := getattr(module, name, None), str):
            return [(str(value), in_shell(value))]
        case ast.Constant(value=None):
            return []
    return [(SOMETHING, SOMETHING)]


def _expressions(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="remedy", value=value):
                yield value
            case ast.Assign(targets=[ast.Name(id=name) | ast.Attribute(attr=name)], value=value):
                if "remedy" in name.lower():
                    yield value
            case ast.Call(func=ast.Name(id="_Kind" | "Foreign"), args=[_, remedy, *_]):
                yield remedy
            case ast.Call(func=ast.Name(id="Phrase"), args=[_, _]):
                yield node
            case ast.FunctionDef(name=name) if "remedy" in name:
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Return) and inner.value is not None:
                        yield inner.value


@cache
def remedies() -> tuple[Remedy, ...]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if relative.parts[0] == "_manifests":
            continue
        name = ".".join(("mlstate", *relative.with_suffix("").parts)).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        expressions = list(_expressions(tree))
        if not expressions:
            continue
        module = None if relative.parts[0] == "integrations" else importlib.import_module(name)
        for expression in expressions:
            for python, shell in _texts(expression, module):
                found.append(Remedy(f"{relative}:{expression.lineno}", python, shell))
    return tuple(found)


@cache
def options() -> dict[str, set[str]]:
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in command_tree().commands.items()
    }


@cache
def parameters() -> set[str]:
    """The names of all parameters of what is public, its methods included."""
    names = set()
    for public in mlstate.__all__:
        value = getattr(mlstate, public)
        calls = [value, *(f for _, f in inspect.getmembers(value, inspect.isfunction))]
        for call in calls if inspect.isclass(value) else [value]:
            if callable(call):
                try:
                    names.update(inspect.signature(call).parameters)
                except (ValueError, TypeError):
                    continue
    return names


def told(problems: list[str]) -> None:
    assert not problems, "\n".join(problems)


def test_the_remedies_are_found():
    assert len(remedies()) > 250
    assert any(remedy.python.endswith("overwrite=True") for remedy in remedies())
    assert any(remedy.shell.endswith("--overwrite") for remedy in remedies())


def test_commands_and_their_options_exist():
    problems = []
    for remedy in remedies():
        for command, words in re.findall(r"\bmlstate ([a-z][a-z-]*)([^;:,|()]*)", remedy.shell):
            if command not in options():
                problems.append(f"{remedy.where}: mlstate {command}: {remedy.shell}")
                continue
            for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", words):
                if option not in options()[command]:
                    problems.append(f"{remedy.where}: mlstate {command} {option}")
    told(problems)


def test_options_exist():
    every = {"--help"}.union(*options().values())
    told(
        [
            f"{remedy.where}: {option}: {remedy.shell}"
            for remedy in remedies()
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", remedy.shell)
            if option not in every
        ]
    )


def test_variables_exist():
    known = {setting.name for setting in (*SETTINGS, *OTHERS)}
    told(
        [
            f"{remedy.where}: {variable}"
            for remedy in remedies()
            for text in (remedy.python, remedy.shell)
            for variable in re.findall(r"\bMLSTATE_[A-Z_]+", text)
            if not any(name.startswith(variable) for name in known)
        ]
    )


def test_functions_of_ours_exist():
    problems = []
    for remedy in remedies():
        for name in re.findall(r"\bmlstate\.([a-z_]+)\b", remedy.python):
            if name != "toml" and name not in mlstate.__all__:
                problems.append(f"{remedy.where}: mlstate.{name}")
        for name, method in re.findall(r"\b([A-Z]\w+)\.(\w+)\(", remedy.python):
            if not hasattr(getattr(mlstate, name, None), method):
                problems.append(f"{remedy.where}: {name}.{method}")
        for name in re.findall(r"\b([A-Z]\w*(?:Store|Key|Type))\b", remedy.python):
            if name not in mlstate.__all__ and not re.fullmatch("[A-Z]+", name):
                problems.append(f"{remedy.where}: {name}")
    told(problems)


def test_parameters_exist():
    own = {"multiprocessing_context", "ignore", "options", "full_state_dict", "run", "config"}
    own |= {"offline", "framework", "cls"}
    own |= {"checkpoint_id", "storage_writer", "storage_reader", "use_collectives"}  # of torch
    told(
        [
            f"{remedy.where}: {name}=: {remedy.python}"
            for remedy in remedies()
            for name in re.findall(r"(?<![\w.%?&/])([a-z][a-z_]+)=", remedy.python)
            if name not in parameters() | own
        ]
    )


def test_what_is_said_at_a_shell_is_no_python():
    python = re.compile(r"\b[a-z][a-z_]*=(?!\.\.\.\w)|\b\w+\(\)|\b[A-Z]\w+\(|\bmlstate\.[a-z_]+\b")
    problems = []
    for remedy in remedies():
        if remedy.where.startswith(OF_PYTHON):
            continue
        text = CODE_OF_TORCH.sub("", remedy.shell).replace("mlstate.toml", "")
        if found := python.search(text):
            problems.append(f"{remedy.where}: {found[0]} in: {remedy.shell}")
    told(problems)


@pytest.mark.parametrize(
    ("text", "name"), [("overwriet=True", "parameters"), ("mlstate fetsh", "commands")]
)
def test_the_check_finds_what_is_wrong(monkeypatch, text, name):
    wrong = (Remedy("here", text, text),)
    monkeypatch.setitem(globals(), "remedies", lambda: wrong)
    check = test_parameters_exist if name == "parameters" else test_commands_and_their_options_exist
    with pytest.raises(AssertionError, match="here"):
        check()


def test_a_phrase_keeps_both_wordings():
    assert in_shell("a " + Phrase("b=True", "--b")) == "a --b"
