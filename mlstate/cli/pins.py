"""The command `pins`: what the first use of states has pinned on this machine."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated

import typer

from mlstate.cli.options import Json
from mlstate.cli.output import note, print_json, print_table, put
from mlstate.errors import StateNotFoundError
from mlstate.states import StateKey

__all__ = ["pins"]

_SHOWN = 12
_ALL = 64


def pins(
    action: Annotated[
        str, typer.Argument(metavar="list|rm", help="What to do; list by default.")
    ] = "list",
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY",
            help="For rm: states, or patterns such as 'pytorch.resnet*'.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the states that their first use has pinned here, or forget pins.

    A state whose manifest gives no digest, but of whose files the publisher gives the SHA-256 or
    eight digits of it, is pinned when it is first fetched, as SSH does with hosts. Its digest is
    required ever after. After mlstate pins rm KEY the next use is the first again.
    """
    from mlstate.manifests.pins import Pins
    from mlstate.operations.pins import list_pins, remove_pins

    listed = list_pins()
    path = Pins.of_user().path
    if action == "rm":
        chosen = _chosen([pin.key for pin in listed], keys or [], path)
        removed = remove_pins(chosen)
        if as_json:
            print_json("pins", {"path": path, "pins": list_pins(), "removed": removed})
            return
        for pin in removed:
            put(f"{pin.key}  forgotten")
        return
    if action != "list":
        raise typer.BadParameter(f"{action!r} is neither list nor rm")
    if keys:
        raise typer.BadParameter("list takes no keys: it lists all pins")
    if as_json:
        print_json("pins", {"path": path, "pins": listed, "removed": []})
        return
    print_table(
        ["KEY", "DIGEST", ">DIGITS", "DATE", "MANIFEST"],
        (
            [
                str(pin.key),
                pin.digest[:_SHOWN],
                "all" if pin.digits == _ALL else str(pin.digits),
                pin.date[:10],
                pin.manifest or "",
            ]
            for pin in listed
        ),
    )
    note(f"in {path}" if listed else f"no pins in {path}")


def _chosen(having: list[StateKey], texts: list[str], path: object) -> list[StateKey]:
    if not texts:
        raise typer.BadParameter("give the keys to forget")
    chosen: dict[StateKey, None] = {}
    for text in texts:
        if not set(text) & set("*?["):
            chosen[StateKey.parse(text)] = None
            continue
        fitting = [key for key in having if fnmatchcase(str(key), text)]
        if not fitting:
            raise StateNotFoundError("no pin fits this pattern", path=path, found=text)
        chosen.update(dict.fromkeys(fitting))
    return list(chosen)
