"""`warn`: a warning names the first line outside of the package."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

_INSIDE = """
from contextlib import contextmanager
from mlstate.warn import warn

def direct():
    warn("spoken")

def nested():
    direct()

@contextmanager
def scope():
    yield
    warn("spoken")

def managed():
    with scope():
        pass

def calls(function):
    function()
"""


def _package(name: str) -> dict[str, Any]:
    """A module with the functions above, as if it were in the package."""
    module: dict[str, Any] = {"__name__": name}
    exec(_INSIDE, module)
    return module


def _line_here() -> int:
    return inspect.stack()[1].lineno


@pytest.mark.parametrize("name", ["mlstate", "mlstate.stores.read", "mlstate.cli.app"])
@pytest.mark.parametrize("function", ["direct", "nested", "managed"])
def test_the_line_of_the_caller(name: str, function: str) -> None:
    inside = _package(name)
    with pytest.warns(UserWarning, match="spoken") as caught:
        inside[function](), (line := _line_here())
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, line)]


def test_a_callback_of_the_callers_own_is_outside() -> None:
    inside = _package("mlstate.fetch")

    def callback() -> None:
        inside["nested"]()

    with pytest.warns(UserWarning, match="spoken") as caught:
        inside["calls"](callback)
    first = callback.__code__.co_firstlineno
    assert (caught[0].filename, caught[0].lineno) == (__file__, first + 1)


def test_a_package_with_a_similar_name_is_outside() -> None:
    similar = _package("mlstatement.models")
    with pytest.warns(UserWarning, match="spoken") as caught:
        similar["nested"]()
    assert caught[0].filename == "<string>"


def test_without_any_frame_outside_the_outermost_is_named() -> None:
    program = f"__name__ = 'mlstate.program'\n{_INSIDE}\nnested()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("UserWarning: spoken")) == (0, 1)


def test_each_line_is_told_of_once(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("default")
    inside: dict[str, Callable[[], None]] = _package("mlstate")
    for _ in range(3):
        inside["nested"]()
    inside["nested"]()
    assert len(recwarn) == 2
