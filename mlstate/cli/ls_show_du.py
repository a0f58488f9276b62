"""The commands that look at a store: `ls`, `show`, `du`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.keys import one_key
from mlstate.cli.options import Json, Key, StoreArgument, StoreOption, name_of, opened
from mlstate.cli.output import (
    ago,
    human_count,
    human_shape,
    human_size,
    note,
    print_fields,
    print_json,
    print_table,
    put,
)

if TYPE_CHECKING:
    from mlstate.operations.usage_report import StateUsage, Usage

__all__ = ["du", "ls", "show"]


def ls(
    context: typer.Context,
    where: StoreArgument = None,
    type_: Annotated[
        str | None,
        typer.Option("--type", "-t", metavar="TYPE", help="Only states compatible with this type."),
    ] = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """List states: size, own and shared bytes, whether they are cached, age.

    The size is that of the tensors and files. "own" and "shared" are bytes of objects on the disk,
    with their headers, each counted once: those that no other state of the store needs, and those
    that one does. The age is that of the state; of one in a cache, how long ago it was last used.
    """
    from mlstate.operations.usage import usage
    from mlstate.states import StateType

    name = _where(context, where, store)
    view = opened(name, quiet=True)
    keys = None if type_ is None else view.get_state_keys(StateType.parse(type_))
    used = usage(view, keys)
    if as_json:
        print_json("ls", {"store": name_of(name), "states": used.states})
        return
    if not used.states:
        note(f"no states in {name_of(name)}" + ("" if type_ is None else f" of type {type_}"))
    cached = any(state.cached is not None for state in used.states)
    titles = ["KEY", ">SIZE", ">OWN", ">SHARED", *(["CACHED", "USED"] if cached else ["AGE"])]
    print_table(titles, (_cells(state, cached=cached) for state in used.states))
    _complain_of(used)


def _where(context: typer.Context, where: str | None, store: str | None) -> str | None:
    """The store of the argument or the option, which must agree; MLSTATE_STORE comes last."""
    source = context.get_parameter_source("store")
    if where and store and where != store and source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter(f"two stores: {where}, and --store {store}")
    return where or store


def _cells(state: StateUsage, *, cached: bool) -> list[str]:
    unknown = state.own is None
    return [
        str(state.key),
        human_size(state.nbytes),
        "" if unknown else human_size(state.own),
        "" if unknown else human_size(state.shared),
        *([state.cached or ("" if state.digest else "not pinned")] if cached else []),
        _trouble(state) or ago(state.modified),
    ]


def _trouble(state: StateUsage) -> str:
    if state.unsigned:
        return "unsigned"
    return "damaged" if state.error else ""


def _complain_of(used: Usage) -> None:
    for state in used.states:
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
            ("digest", described.digest or "none: pin it with mlstate lock"),
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
        note(f"its tensors are not known here yet: mlstate fetch {described.key}")
        return
    put()
    print_table(
        ["TENSOR", "TYPE", "SHAPE", ">SIZE", "SHARED WITH"],
        (
            [
                tensor.name,
                tensor.dtype,
                human_shape(tensor.shape),
                human_size(tensor.nbytes),
                _with_whom(tensor.same_names, tensor.states),
            ]
            for tensor in described.tensors
        ),
    )


def _with_whom(names: tuple[str, ...], states: tuple[str, ...], most: int = 2) -> str:
    listed = [*(f"{name} (here)" for name in names), *states]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def du(
    context: typer.Context,
    where: StoreArgument = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Show what takes the space: by architecture, by state, shared, and what prune would take."""
    from mlstate.operations.usage import usage

    name = _where(context, where, store)
    used = usage(opened(name, quiet=True))
    if as_json:
        print_json("du", {"store": name_of(name)}, used)
        return
    print_table(
        ["ARCHITECTURE", ">STATES", ">SIZE", ">OWN", ">SHARED"],
        (
            [
                str(part.state_type),
                str(part.states),
                human_size(part.nbytes),
                human_size(part.own),
                human_size(part.shared),
            ]
            for part in used.architectures
        ),
    )
    if used.states:
        put()
        largest_first = sorted(used.states, key=lambda state: -(state.own or 0))
        cells = (_cells(state, cached=False)[:4] for state in largest_first)
        print_table(["STATE", ">SIZE", ">OWN", ">SHARED"], cells)
        put()
    logical = sum(state.nbytes or 0 for state in used.states if state.own is not None)
    print_fields(
        [
            ("on disk", f"{human_size(used.total)} for {human_count(len(used.states), 'state')}"),
            ("as files of their own", human_size(logical)),
            ("in no state", None if used.unnamed is None else human_size(used.unnamed)),
            ("trash", None if used.trash is None else human_size(used.trash)),
            ("folders for frameworks", human_size(used.folders) if used.folders else None),
        ]
    )
    _complain_of(used)
