"""The commands that take away: `rm`, `prune`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlstate.cli.keys import chosen_keys
from mlstate.cli.options import DryRun, Json, Keys, StoreOption, opened
from mlstate.cli.output import human_count, human_size, note, print_json, put
from mlstate.cli.printed import Folder, Objects

if TYPE_CHECKING:
    from mlstate.digests import Digest

__all__ = ["prune", "rm"]

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", re.IGNORECASE)
_SECONDS = {"": 86400, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def rm(keys: Keys = None, store: StoreOption = None, as_json: Json = False) -> None:
    """Remove states from a store, or from a manifest.

    Their objects stay until prune finds that no state has needed them for a while. Of a manifest
    the entries go; what is in the cache stays there.
    """
    from mlstate.errors import ReadOnlyStoreError
    from mlstate.operations.enlist import unlist
    from mlstate.stores.abstract import DeletingStore

    view = opened(store, quiet=True)
    chosen = chosen_keys(view, keys or [], everything=None)
    if view.manifest is not None:
        if store is None:
            raise ReadOnlyStoreError(
                "the default store is several manifests together",
                path=view,
                remedy="give the manifest that lists the state: --store FILE. To make room in the "
                "cache: mlstate prune",
            )
        unlist(store, chosen)
        done = "no longer listed"
    else:
        if not isinstance(view, DeletingStore):
            raise ReadOnlyStoreError("states of this store cannot be deleted here", path=view)
        for key in chosen:
            view.delete(key)
        done = "removed"
    if as_json:
        print_json("rm", {"removed": chosen})
        return
    for key in chosen:
        put(f"{key}  {done}")


def prune(
    dry_run: DryRun = False,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of a cache: what its states may need, 50GB say."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="30d, 12h. Of a cache: states that were not used for so long go. Of a store: "
            "what no state names and is older goes; 14d by default.",
        ),
    ] = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Make room: in the cache whole states, in a store what no state needs.

    In a cache those go first that were not used for longest; they are fetched again when they are
    needed. In a store objects go to its trash first, and the next prune deletes them.
    """
    from mlstate.units import parse_size

    view = opened(store, quiet=True)
    age = None if older_than is None else _seconds(older_than)
    if hasattr(view, "prune") and view.manifest is not None:
        size = None if max_size is None else parse_size(max_size)
        done = _prune_cache(view, size, age, dry_run)
    else:
        done = _prune_store(view, max_size, age, dry_run)
    for path in done.future:
        note(f"{path} is dated in the future, and stays: a clock was or is wrong")
    if as_json:
        gone, moved = (Objects(len(one), sum(one.values())) for one in (done.taken, done.trashed))
        pruned = {"dry_run": dry_run, "states": done.states, "deleted": gone, "trashed": moved}
        folders = [Folder(path, nbytes) for path, nbytes in done.folders.items()]
        pruned |= {"in_use": done.in_use, "future": done.future, "folders": folders}
        print_json("prune", pruned)
        return
    for key in done.states:
        put(f"{key}  {'would leave' if dry_run else 'left'} the cache")
    for key in done.in_use:
        put(f"{key}  stays: it is in use")
    would = "would be " if dry_run else ""
    for folder, nbytes in done.folders.items():
        put(f"{folder}  {human_size(nbytes)}, {would}deleted")
    put(_line(f"{would}deleted", done.taken))
    if done.trashed:
        put(_line(f"{would}moved to the trash", done.trashed))
        if not dry_run:
            note("the next prune deletes what is still unused then")


@dataclass(frozen=True)
class _Pruned:
    """What a pruning of either kind did."""

    taken: Mapping[Digest, int]
    trashed: Mapping[Digest, int]
    future: list[str]
    states: list[str] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    folders: Mapping[str, int] = field(default_factory=dict)


def _prune_cache(view: Any, size: int | None, age: float | None, dry_run: bool) -> _Pruned:
    made = view.prune(max_size=size, older_than=age, dry_run=dry_run)
    if size is None and age is None:
        note("all fetched states stay: give --max-size or --older-than to make room")
    elif made.states and not made.objects:
        note("what was fetched or used within the last hour stays; prune again after it")
    states, in_use = sorted(made.states.values()), sorted(made.in_use.values())
    return _Pruned(made.objects, {}, list(made.future), states, in_use, made.folders)


def _prune_store(view: Any, max_size: str | None, age: float | None, dry_run: bool) -> _Pruned:
    from mlstate.errors import FormatError, ReadOnlyStoreError

    if max_size is not None:
        raise FormatError(
            "--max-size is for a cache: a store keeps every state that was saved",
            path=view,
            remedy="remove states with mlstate rm",
        )
    if not hasattr(view, "prune"):
        raise ReadOnlyStoreError("there is nothing to prune in this store", path=view)
    graced = {} if age is None else {"grace_seconds": age}
    report = view.prune(dry_run=dry_run, **graced)
    return _Pruned(report.deleted, report.trashed, report.future)


def _line(what: str, objects: Mapping[Digest, int]) -> str:
    size = human_size(sum(objects.values()))
    return f"{human_count(len(objects), 'object')}, {size}, {what}"


def _seconds(text: str) -> float:
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no age; expected 30d, 12h, 45m, say")
    return float(match[1]) * _SECONDS[match[2].lower()]
