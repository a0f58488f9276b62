"""The commands that look into a store: `show`, `du`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from mlstate.cli.keys import one_key
from mlstate.cli.options import Json, Key, StoreArgument, StoreOption, name_of, opened
from mlstate.cli.output import (
    human_count,
    human_shape,
    human_size,
    note,
    print_fields,
    print_json,
    print_table,
    put,
)
from mlstate.phrases import in_shell
from mlstate.states import StateType

if TYPE_CHECKING:
    from mlstate.operations.describe import Description, TensorInfo
    from mlstate.operations.usage_report import StateUsage
    from mlstate.stores.read import StateStore

__all__ = ["OWN_TITLE", "SHARED_TITLE", "complain_of", "du", "show", "where_to"]

OWN_TITLE, SHARED_TITLE = ">OWN DISK", ">SHARED"
"""What objects take of the disk, with their headers; a size is that of the tensors. Shorter titles
than "SHARED DISK" leave a narrow terminal its lines."""


def where_to(context: typer.Context, where: str | None, store: str | None) -> str | None:
    """The store of the argument or the option, which must agree; MLSTATE_STORE comes last."""
    source = context.get_parameter_source("store")
    if where and store and where != store and source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter(f"two stores: {where}, and --store {store}")
    return where or store


def complain_of(states: Sequence[StateUsage]) -> None:
    """Tell of the states that cannot be read."""
    for state in states:
        if state.error:
            note(f"{state.key} cannot be read: {state.error}")


def show(key: Key, store: StoreOption = None, as_json: Json = False) -> None:
    """Show a state: digest, mirrors, files, meta, and its tensors with whom they are shared.

    Of a state that is elsewhere its tensors are known once its state object is here: a few KB,
    fetched alone where that is possible, and else by mlstate fetch.
    """
    from mlstate.operations.describe import describe

    view = opened(store, quiet=True)
    described = describe(view, one_key(view, key))
    if as_json:
        print_json("show", described)
        return
    print_fields(
        [
            ("key", str(described.key)),
            ("digest", described.digest or _no_digest(view, described)),
            ("pinned", described.pinned_on and f"by you on {described.pinned_on}: mlstate pins"),
            ("size", human_size(described.nbytes)),
            ("listed in", described.origin),
            *(("mirror", mirror) for mirror in described.mirrors),
            *(("objects", address) for address in described.objects),
            *(
                ("file", f"{file.name}  {human_size(file.nbytes)}  {file.digest}")
                for file in described.files
            ),
            *(
                ("weights", f"{file.name}  {file.prefix}*" if file.prefix else file.name)
                for file in described.layout
            ),
            *((f"meta {name}", str(value)) for name, value in described.meta.items()),
        ]
    )
    if described.tensors is None:
        can = described.digest or described.first_use
        note(
            "its tensors are not known here yet" + (f": mlstate fetch {described.key}" * bool(can))
        )
        return
    put()
    encoded = any(tensor.encoded is not None for tensor in described.tensors)
    print_table(
        ["TENSOR", "TYPE", "SHAPE", ">SIZE", *([">ENCODED", "BASE"] * encoded), "SHARED WITH"],
        (
            [
                tensor.name,
                tensor.dtype,
                human_shape(tensor.shape),
                human_size(tensor.nbytes),
                *(_form(tensor) * encoded),
                _with_whom(tensor.same_names, tensor.states),
            ]
            for tensor in described.tensors
        ),
    )


def _form(tensor: TensorInfo) -> list[str]:
    """The size and the base of an encoded tensor; nothing of a plain one."""
    if tensor.encoded is None:
        return ["", ""]
    return [human_size(tensor.encoded), "alone" if tensor.base is None else tensor.base[:12]]


def _no_digest(view: StateStore, described: Description) -> str:
    if described.first_use:
        return f"none yet: mlstate fetch {described.key} pins it, by its publisher's sha256"
    return f"none: {in_shell(view.get(described.key).entry.how_to_lock())}"


def _with_whom(names: tuple[str, ...], states: tuple[str, ...], most: int = 2) -> str:
    listed = [*(f"{name} (here)" for name in names), *states]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _architecture(state: StateUsage) -> StateType:
    kind = state.key.state_type
    return StateType(kind.backend, kind.architecture)


_PARTS = {
    "own": "- of single states",
    "shared": "- shared by states",
    "others": "- of other states here",
    "copies": "- copies in other folders",
    "unnamed": "- in no state",
    "trash": "- trash",
    "unfinished": "- unfinished",
    "records": "- state files, notes",
    "folders": "- folders for frameworks",
    "foreign": "- other files",
}
"""The lines of `du` that add up to what is on the disk, by the field of `DiskUsage`."""
_ALWAYS = ("- of single states", "- shared by states", "- in no state", "- trash")


def du(
    context: typer.Context,
    where: StoreArgument = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Show what takes the space: by architecture, by state, shared, and what prune would take.

    "on disk" is all that lies in the folder, the cache or the bucket, and the lines below add up to
    it. "without sharing" is what the states would take if each had objects of its own.
    """
    from mlstate.operations.usage import usage

    name = where_to(context, where, store)
    used = usage(opened(name, quiet=True))
    if as_json:
        print_json("du", {"store": name_of(name)}, used)
        return
    unknown = {_architecture(state) for state in used.states if state.nbytes is None}
    print_table(
        ["ARCHITECTURE", ">STATES", ">SIZE", OWN_TITLE, SHARED_TITLE],
        (
            [
                str(part.state_type),
                str(part.states),
                human_size(None if part.state_type in unknown else part.nbytes),
                human_size(part.own),
                human_size(part.shared),
            ]
            for part in used.architectures
        ),
    )
    if used.states:
        put()
        largest_first = sorted(used.states, key=lambda state: -(state.own or 0))
        cells = (
            [
                str(state.key),
                human_size(state.nbytes),
                *("" if size is None else human_size(size) for size in (state.own, state.shared)),
            ]
            for state in largest_first
        )
        print_table(["STATE", ">SIZE", OWN_TITLE, SHARED_TITLE], cells)
        put()
    apart = sum((state.own or 0) + (state.shared or 0) for state in used.states)
    total = used.total if used.disk is None else used.disk.total
    fields = [("on disk", f"{human_size(total)} for {human_count(len(used.states), 'state')}")]
    if used.disk is not None:
        sizes = [(title, getattr(used.disk, part)) for part, title in _PARTS.items()]
        fields += [(title, human_size(size)) for title, size in sizes if size or title in _ALWAYS]
    fields.append(("without sharing", human_size(apart)))
    if used.encoded is not None:
        many = human_count(used.encoded.objects, "object")
        fields.append(("encoded", f"{human_size(used.encoded.nbytes)}, {many}"))
        fields.append(("saved by that", human_size(used.encoded.saved)))
    print_fields(fields)
    if used.unnamed:
        note("what is in no state goes when it is old enough: mlstate prune, or prune --grace AGE")
    complain_of(used.states)
