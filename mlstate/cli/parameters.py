"""Parameters that are texts stay texts: what was typed needs no conversion.

typer converts every value by way of pydantic, whose import takes longer than all else that a
command such as ``ls`` does (50 of 150 ms, measured). All parameters here are texts, lists of texts
and flags, so nothing is left to convert.
"""

from __future__ import annotations

from typing import Any

import typer

__all__ = ["keep_texts"]


class _AsTyped:
    """What typer asks to convert a value; see ``typer._coercion.RuntimeParam``."""

    def coerce(self, value: Any, *, param: Any, ctx: Any) -> Any:
        if param.multiple or param.nargs == -1:
            return list(value or ())
        return value


def keep_texts(tree: Any) -> None:
    """Spare all texts of a command line the way through pydantic.

    Args:
        tree: The commands, as typer has built them. A version of typer that does it otherwise
            looks past what is set here.
    """
    for command in (tree, *tree.commands.values()):
        context = typer.Context(command, **tree.context_settings)
        for parameter in command.get_params(context):  # --help, too
            described = getattr(parameter, "type_descriptor", None)
            if described is not None and described.annotation in (str, list[str], bool):
                parameter._runtime_param = _AsTyped()
