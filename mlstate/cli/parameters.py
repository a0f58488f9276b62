"""Commands whose parameters are texts: what was typed needs no conversion.

typer converts every value by way of pydantic, whose import takes longer than all else that a
command such as ``ls`` does (50 of 150 ms, measured). All parameters here are texts, lists of texts
and flags, so nothing is left to convert.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["TextCommand", "TextGroup"]


class _AsTyped:
    """A conversion, as typer asks for one, that keeps every value."""

    def coerce(self, value: Any, *, param: Any, ctx: Any) -> Any:
        """The value; of a parameter that may be repeated a list."""
        return list(value or ()) if param.multiple or param.nargs == -1 else value


def _as_typed(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if parameter.type_descriptor.annotation in (str, list[str], bool):
            parameter.get_runtime_param = _AsTyped
    return parameters


class TextCommand(TyperCommand):
    """A command that takes its parameters as they were typed."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters of the command and ``--help``."""
        return _as_typed(super().get_params(ctx))


class TextGroup(TyperGroup):
    """A group of commands that takes its own parameters as they were typed."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters of the group and ``--help``."""
        return _as_typed(super().get_params(ctx))
