"""Commands whose parameters are texts: what was typed needs no conversion.

typer converts every value by way of pydantic, whose import takes longer than all else that a
command such as ``ls`` does (50 of 150 ms, measured). All parameters here are texts, lists of texts
and flags, so nothing is left to convert.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["TextCommand", "TextGroup"]


_MEANT_OPTIONS = {
    ("copy", "--store"): ["--from", "--to"],
    ("copy", "-s"): ["--from", "--to"],
    ("unbundle", "--to"): ["--store"],
    ("add", "--to"): ["--store"],
    ("fetch", "--from"): ["--store"],
    ("export", "-o"): ["DEST"],
    ("export", "--output"): ["DEST"],
}
"""A command with an option that it does not have, and what is meant most probably."""
_MEANT_COMMANDS = {
    **dict.fromkeys(["list", "dir"], "ls"),
    **dict.fromkeys(["info", "cat", "inspect"], "show"),
    **dict.fromkeys(["pull", "download", "get"], "fetch"),
    **dict.fromkeys(["push", "upload", "publish", "cp", "sync"], "copy"),
    **dict.fromkeys(["import", "adopt", "save", "put"], "add"),
    **dict.fromkeys(["remove", "delete", "del"], "rm"),
    **dict.fromkeys(["rename", "move"], "mv"),
    **dict.fromkeys(["gc", "clean", "clear"], "prune"),
    **dict.fromkeys(["fsck", "scrub"], "verify"),
    **dict.fromkeys(["history"], "log"),
    **dict.fromkeys(["undelete", "undo"], "restore"),
    **dict.fromkeys(["tag"], "alias"),
    **dict.fromkeys(["usage", "df"], "du"),
    **dict.fromkeys(["hash", "sum"], "digest"),
    **dict.fromkeys(["pin", "freeze"], "lock"),
}
"""What commands are called in other tools, and here."""


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

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the words; an option that another command has under this name leads to the own."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            option = getattr(error, "option_name", None)
            if meant := _MEANT_OPTIONS.get((self.name or "", option or "")):
                error.possibilities = meant  # type: ignore[attr-defined]
            raise


class TextGroup(TyperGroup):
    """A group of commands that takes its own parameters as they were typed."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters of the group and ``--help``."""
        return _as_typed(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a word; a word that other tools have for one leads to ours."""
        try:
            return super().resolve_command(ctx, args)
        except typer.TyperException as error:
            if args and (meant := _MEANT_COMMANDS.get(args[0])):
                error.message = f"No such command {args[0]!r}. Did you mean {meant!r}?"
            raise
