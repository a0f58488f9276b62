"""The command `ls`: which states there are, in the order and with the columns asked for."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlstate.cli.default_store import project_here
from mlstate.cli.keys import chosen_keys
from mlstate.cli.options import Json, StoreArgument, StoreOption, name_of, opened
from mlstate.cli.output import ago, from_here, human_size, note, print_json, print_table
from mlstate.cli.show_du import OWN_TITLE, SHARED_TITLE, complain_of, where_to
from mlstate.cli.verbosity import verbosity
from mlstate.errors import StoreNotFoundError

if TYPE_CHECKING:
    from mlstate.operations.usage_report import StateUsage
    from mlstate.stores.read import StateStore

__all__ = ["ls"]

_COLUMNS = {
    "key": "KEY",
    "alias": "ALIAS",
    "size": ">SIZE",
    "own": OWN_TITLE,
    "shared": SHARED_TITLE,
    "cached": "CACHED",
    "age": "AGE",
    "used": "USED",
    "digest": "DIGEST",
    "meta": "META",
}
_LARGEST_FIRST = ("size", "own", "shared")
_NOTES = "meta."
_PATTERN = "*?["


def ls(
    context: typer.Context,
    where: StoreArgument = None,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATTERN",
            help="Only these states: keys, or patterns such as 'pytorch.resnet*'.",
            show_default=False,
        ),
    ] = None,
    type_: Annotated[
        str | None,
        typer.Option("--type", "-t", metavar="TYPE", help="Only states compatible with this type."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="By key, size, own, shared, age, used, digest, or meta.NAME: sizes and numbers "
            "the largest first, ages the newest first.",
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The other way round.")] = False,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN,...",
            help="These instead: key, alias, size, own, shared, cached, age, used, digest, meta, "
            "or meta.NAME.",
        ),
    ] = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """List states: size, own and shared bytes, whether they are cached, age.

    The size is that of the tensors. "own disk" and "shared disk" are bytes of objects on the disk,
    with their headers, each counted once: those that no other state of the store needs, and those
    that one does. The age is that of the state; of one in a cache, how long ago it was last used.
    """
    from mlstate.operations.usage import usage_of_states
    from mlstate.states import StateType

    if where is not None and _names_states(where):
        where, patterns = None, [str(where), *(patterns or [])]
    chosen_columns = None if columns is None else [_known(name) for name in columns.split(",")]
    order = None if sort is None else _known(sort)
    name = where_to(context, where, store)
    try:
        view = opened(name, quiet=True)
    except StoreNotFoundError as error:
        error.remedy = error.remedy or _as_pattern(where)
        raise
    asked = [*(chosen_columns or []), *([order] if order else [])]
    notes = any(column.startswith("meta") for column in asked)
    kind = None if type_ is None else StateType.parse(type_)
    states = usage_of_states(view, kind, meta=notes)
    if patterns:
        wanted = set(chosen_keys(view, patterns, everything=False))
        states = [state for state in states if state.key in wanted]
    if order is not None:
        states = _sorted(states, order)
    states = states[::-1] if reverse else states
    passed_over = _passed_over(view) if as_json or verbosity() else []
    if as_json:
        listed = {"store": name_of(name), "states": states}
        aliases = {alias: str(key) for alias, key in view.aliases.items()}
        print_json("ls", {**listed, "aliases": aliases, "passed_over": passed_over})
        return
    for path in passed_over:
        note(f"{path} is no manifest, and is passed over")
    if not states:
        note(f"no states in {name_of(name)}" + ("" if type_ is None else f" of type {type_}"))
    _print(view, states, chosen_columns)
    complain_of(states)
    _tell_of_unknown_notes(states, asked)
    _tell_of_manifests(name)


def _names_states(text: str) -> bool:
    """Whether the first word is a pattern of keys: then the store is the default, or an option."""
    return bool(set(text) & set(_PATTERN)) and "://" not in text


def _as_pattern(text: str | None) -> str | None:
    """What to type for a text that is no store, and a part of keys of the default store."""
    if text is None or "/" in text:
        return None
    keys = [str(key) for key in opened(None, quiet=True).get_state_keys()]
    pattern = next(
        (p for p in (f"{text}*", f"*{text}*") if any(fnmatchcase(key, p) for key in keys)), None
    )
    return None if pattern is None else f"for states, a pattern: mlstate ls '{pattern}'"


def _tell_of_unknown_notes(states: Sequence[StateUsage], columns: Sequence[str]) -> None:
    """Say of which notes there are none: their columns stay empty."""
    noted = sorted({name for state in states for name in state.meta or {}})
    for name in dict.fromkeys(one.removeprefix(_NOTES) for one in columns if _NOTES in one):
        if states and name not in noted:
            there = f"; there are {', '.join(noted[:12])}" if noted else ""
            note(f"no state has a note {name!r}{there}")


def _tell_of_manifests(name: str | None) -> None:
    """Say how the states of a project's manifests are listed, where its store was."""
    project = None if name else project_here()
    if project is not None and project.store and project.manifests:
        there = project.folder / project.manifests[0]
        note(f"the states of its manifests are listed by: mlstate ls {from_here(there)}")


def _known(column: str) -> str:
    """A column, if there is such a one."""
    name = column.strip()
    if name in _COLUMNS or (name.startswith(_NOTES) and name != _NOTES):
        return name
    raise typer.BadParameter(f"{name!r} is no column; there are {', '.join(_COLUMNS)}, meta.NAME")


def _print(view: StateStore, states: Sequence[StateUsage], columns: list[str] | None) -> None:
    named: dict[Any, list[str]] = {}
    for alias, key in sorted(view.aliases.items()):
        named.setdefault(key, []).append(alias)
    if columns is None:
        cached = any(state.cached is not None for state in states)
        columns = ["key", *(["alias"] if named else []), "size", "own", "shared"]
        columns += ["cached", "used"] if cached else ["age"]
    titles = [_COLUMNS.get(column, column.removeprefix(_NOTES).upper()) for column in columns]
    print_table(titles, ([_cell(state, c, named) for c in columns] for state in states))


def _cell(state: StateUsage, column: str, aliases: dict[Any, list[str]]) -> str:
    unknown = state.own is None
    if column in ("own", "shared") and unknown:
        return ""
    if column in _LARGEST_FIRST:
        return human_size(_size(state, column))
    if column == "cached":
        return state.cached or ("" if state.digest else "not pinned")
    if column in ("age", "used"):
        return _trouble(state) or ago(state.modified)
    if column == "alias":
        return ", ".join(aliases.get(state.key, ()))
    noted = state.meta or {}
    if column == "meta":
        return ", ".join(f"{name}={value}" for name, value in noted.items())
    if column.startswith(_NOTES):
        return str(noted.get(column.removeprefix(_NOTES), ""))
    return str(state.key) if column == "key" else str(state.digest or "")


def _size(state: StateUsage, column: str) -> int | None:
    return {"size": state.nbytes, "own": state.own, "shared": state.shared}[column]


def _sorted(states: Sequence[StateUsage], column: str) -> list[StateUsage]:
    """States by a column; those that have nothing in it come last, in the order of their keys."""

    def value(state: StateUsage) -> Any:
        if column in _LARGEST_FIRST:
            return _size(state, column)
        if column in ("age", "used"):
            return state.modified
        if column.startswith(_NOTES):
            return (state.meta or {}).get(column.removeprefix(_NOTES))
        return _cell(state, column, {}) or None

    having = [(value(state), state) for state in states]
    numbers = [(v, s) for v, s in having if isinstance(v, int | float)]
    texts = [(str(v), s) for v, s in having if v is not None and not isinstance(v, int | float)]
    numbers.sort(key=lambda pair: pair[0], reverse=True)
    texts.sort(key=lambda pair: pair[0])
    rest = [state for v, state in having if v is None]
    return [state for _, state in (*numbers, *texts)] + rest


def _trouble(state: StateUsage) -> str:
    if state.unsigned:
        return "unsigned"
    return "damaged" if state.error else ""


def _passed_over(view: StateStore) -> list[str]:
    """The TOML files in a folder of manifests that are none."""
    from mlstate.manifests.folder import toml_files

    path = getattr(view, "path", None)
    if path is None or not path.is_dir():
        return []
    return [from_here(file) for file in toml_files(path).others]
