"""The command line as a person runs it: the installed program, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).with_name("mlstate"))


@contextmanager
def child(*command: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process that has ended when the test has, whatever happens in the test."""
    with subprocess.Popen([*map(str, command)], text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class Shell:
    """A folder, and what the environment says besides."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, "PYTHONWARNINGS": "error", **self.environment},
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    def lines(self, *arguments: object, code: int = 0) -> list[str]:
        """The lines on standard output of a command that ends with a code."""
        done = self(*arguments)
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout.splitlines()

    def json(self, *arguments: object, code: int = 0) -> Any:
        """What a command prints for programs, held against its published type."""
        from mlstate.cli.printed import printed
        from mlstate.operations.reports import shape_of

        done = self(*arguments, "--json")
        assert done.returncode == code, done.stderr + done.stdout
        data = json.loads(done.stdout)
        command = str(arguments[0])
        assert data["schema"] == f"mlstate.{command}/1"
        shape = shape_of({"schema": str}, *printed()[command])
        assert list(data) == list(shape)
        check_members(data, shape, command)
        return data

    def complaint(self, *arguments: object, code: int) -> str:
        """What a command that fails with a code says; nothing goes to standard output."""
        done = self(*arguments)
        assert done.returncode == code, done.stderr + done.stdout
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        return done.stderr


def check_members(value: Any, shape: Mapping[str, Any], where: str) -> None:
    """Hold an object from JSON against the types of its members: each is there, and no other."""
    assert isinstance(value, dict), where
    assert value.keys() == shape.keys(), where
    for name, type_ in shape.items():
        check_type(value[name], type_, f"{where}.{name}")


def check_type(value: Any, type_: Any, where: str) -> None:
    """Hold a value from JSON against a type."""
    import typing

    from mlstate.operations.reports import fields_of, shape_of

    if type_ is Any:
        return
    if isinstance(type_, type) and fields_of(type_):
        check_members(value, shape_of(type_), where)
        return
    arguments = typing.get_args(type_)
    if typing.get_origin(type_) is list:
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            check_type(item, arguments[0], f"{where}[{number}]")
    elif typing.get_origin(type_) is dict:
        assert isinstance(value, dict), where
    elif arguments:
        assert any(_fits(value, argument, where) for argument in arguments), (where, value)
    else:
        kinds = (int, float) if type_ is float else (type_,)
        assert isinstance(value, kinds), (where, value)
        assert type_ is bool or not isinstance(value, bool), where


def _fits(value: Any, type_: Any, where: str) -> bool:
    try:
        check_type(value, type_, where)
    except AssertionError:
        return False
    return True
