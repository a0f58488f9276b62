"""The commands that take away: `rm`, `prune`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlstate.cli.keys import chosen_keys
from mlstate.cli.mv_meta_alias import editable
from mlstate.cli.options import DryRun, Json, Keys, StoreOption, opened
from mlstate.cli.output import human_count, human_size, note, print_json, put

if TYPE_CHECKING:
    from mlstate.cli.printed import Kept
    from mlstate.digests import Digest

__all__ = ["prune", "rm"]

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", re.IGNORECASE)
_SECONDS = {"": 86400, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def rm(
    keys: Keys = None,
    dry_run: DryRun = False,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Remove states from a store, or from a manifest.

    Their objects stay until prune finds that no state has needed them for a while. Of a manifest
    the entries go; what is in the cache stays there.
    """
    from mlstate.errors import ReadOnlyStoreError
    from mlstate.operations.enlist import unlist
    from mlstate.stores.abstract import DeletingStore

    view = opened(store, quiet=True)
    chosen = chosen_keys(view, keys or [], everything=None)
    target = editable(view, store)
    if view.manifest is not None:
        done = "would no longer be listed" if dry_run else "no longer listed"
        if not dry_run:
            unlist(target, chosen)
    else:
        if not isinstance(view, DeletingStore):
            raise ReadOnlyStoreError("states of this store cannot be deleted here", path=view)
        done = "would be removed" if dry_run else "removed"
        for key in chosen:
            if not dry_run:
                view.delete(key)
            elif error := view.catalog.undeletable(key):
                raise error
    if as_json:
        print_json("rm", {"dry_run": dry_run, "removed": chosen})
        return
    for key in chosen:
        put(f"{key}  {done}")
    if view.catalog.trashed() is not None and not dry_run:
        note("mlstate restore brings them back until prune empties the trash")


def prune(
    dry_run: DryRun = False,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of a cache: what all its states may need, 50GB say."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="30d, 12h. Of a cache: states that were not used for so long go. Of a store: the "
            "same as --grace.",
        ),
    ] = None,
    grace: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="What is younger stays. Of a store what no state needs: 14d by default. Of a "
            "cache what was used or fetched: 1h.",
        ),
    ] = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Make room: in the cache whole states, in a store what no state needs.

    In a cache those go first that were not used for longest; they are fetched again when they are
    needed. In a store objects go to its trash first, and the next prune deletes them. What stays
    though it would have gone is named, with the reason.
    """
    from mlstate.units import parse_size

    view = opened(store, quiet=True)
    age, spared = (None if text is None else _seconds(text) for text in (older_than, grace))
    if hasattr(view, "prune") and view.manifest is not None:
        size = None if max_size is None else parse_size(max_size)
        done = _prune_cache(view, size, age, spared, dry_run)
    else:
        if age is not None and spared is not None:
            raise typer.BadParameter("of a store --older-than is --grace: give one of both")
        done = _prune_store(view, max_size, age if spared is None else spared, dry_run)
    if as_json:
        from mlstate.cli.printed import Folder, Objects

        gone, moved = (Objects(len(one), sum(one.values())) for one in (done.taken, done.trashed))
        pruned = {"dry_run": dry_run, "states": done.states, "deleted": gone, "trashed": moved}
        pruned |= {"in_use": done.in_use, "future": done.future, "kept": done.kept}
        folders = [Folder(path, nbytes) for path, nbytes in done.folders.items()]
        pruned |= {"swept": done.swept, "restored": done.restored, "folders": folders}
        print_json("prune", pruned)
        return
    _print(done, dry_run)


def _print(done: _Pruned, dry_run: bool) -> None:
    for key in done.states:
        put(f"{key}  {'would leave' if dry_run else 'left'} the cache")
    for kept in done.kept:
        for key in kept.states:
            put(f"{key}  stays: {_REASONS[kept.reason]}")
    would = "would be " if dry_run else ""
    for folder, nbytes in done.folders.items():
        put(f"{folder}  {human_size(nbytes)}, {would}deleted")
    put(_line(f"{would}deleted", done.taken))
    if done.trashed:
        put(_line(f"{would}moved to the trash", done.trashed))
        if not dry_run:
            note("the next prune deletes what is still unused then")
    if done.restored:
        count = human_count(len(done.restored), "object")
        put(f"{count} {would}put back from the trash: needed, or too young")
    if done.swept:
        put(f"{human_count(len(done.swept), 'other file')} {would}deleted")
    _note_what_stays(done)


_REASONS: dict[str, str] = {
    "in use": "it is in use",
    "recent": "it was used or fetched a short while ago (--grace)",
    "saved": "it was saved in this folder, by unbundle say, and may be nowhere else",
}
"""Why a state stays, by the reason that --json gives."""


def _note_what_stays(done: _Pruned) -> None:
    for kept in done.kept:
        held = f"{human_count(kept.objects, 'object')}, {human_size(kept.nbytes)}"
        if kept.reason == "young":
            note(f"{held}: no state needs them; they stay for {done.grace} (--grace AGE)")
        elif kept.reason == "unfinished":
            files = f"{human_count(kept.objects, 'file')}, {human_size(kept.nbytes)}"
            note(
                f"{files}: of unfinished work, or of deleted states, which restore brings back; "
                f"they stay for {done.grace} (--grace AGE), or are in use"
            )
        elif kept.reason == "recent folders":
            folders = f"{human_count(kept.objects, 'folder')}, {human_size(kept.nbytes)}"
            note(f"{folders}: used by frameworks a short while ago (--grace)")
        elif kept.reason == "saved":
            note(f"{held}: of what was saved here; mlstate rm KEY --store {done.folder}")
    for path in done.future:
        note(f"{path} is dated in the future, and stays: a clock was or is wrong")
    if done.limit is not None and done.staying > done.limit:
        note(f"{human_size(done.staying)} stay, more than {human_size(done.limit)}")


@dataclass(frozen=True)
class _Pruned:
    """What a pruning of either kind did."""

    taken: Mapping[Digest, int]
    trashed: Mapping[Digest, int]
    future: list[str]
    kept: list[Kept]
    swept: list[str]
    restored: list[Digest] = field(default_factory=list)  # to a store, from its trash
    states: list[str] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    grace: str = ""  # for how long what is young stays
    folder: str = ""
    staying: int = 0  # bytes of all states and folders that stay in a cache
    limit: int | None = None
    folders: Mapping[str, int] = field(default_factory=dict)


def _kept(reason: str, sizes: Mapping[Any, int]) -> list[Kept]:
    from mlstate.cli.printed import Kept

    return [Kept(reason, [], len(sizes), sum(sizes.values()))] if sizes else []


def _prune_cache(
    view: Any, size: int | None, age: float | None, grace: float | None, dry_run: bool
) -> _Pruned:
    from mlstate.cli.printed import Kept

    made = view.prune(max_size=size, older_than=age, grace_seconds=grace, dry_run=dry_run)
    if size is None and age is None:
        note("all fetched states stay: give --max-size or --older-than to make room")
    in_use, recent = sorted(made.in_use.values()), sorted(made.recent.values())
    kept = [Kept("in use", in_use, 0, 0)] if in_use else []
    kept += [Kept("recent", recent, 0, 0)] if recent else []
    if made.saved and (size is not None or age is not None):
        kept.append(
            Kept("saved", list(map(str, made.saved)), made.saved_objects, made.saved_nbytes)
        )
    kept += _kept("young", made.spared) + _kept("unfinished", made.waiting)
    kept += _kept("recent folders", made.recent_folders)
    return _Pruned(
        made.objects,
        {},
        list(made.future),
        kept,
        list(made.swept),
        [],
        sorted(made.states.values()),
        in_use,
        _said(grace) or ("14 days" if made.saved else "an hour"),
        str(view.fetcher.cache.own.root),
        made.nbytes,
        size,
        made.folders,
    )


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
    kept = _kept("young", report.spared) + _kept("unfinished", report.waiting)
    waited = _said(age) or "14 days"
    moved, future = report.trashed, report.future
    back = report.restored
    return _Pruned(report.deleted, moved, future, kept, report.swept, back, grace=waited)


def _said(seconds: float | None) -> str | None:
    """A time that was asked for, for people."""
    if seconds is None:
        return None
    days, hours = seconds / 86400, seconds / 3600
    return f"{days:g} days" if days >= 1 else f"{hours:g} hours"


def _line(what: str, objects: Mapping[Digest, int]) -> str:
    size = human_size(sum(objects.values()))
    return f"{human_count(len(objects), 'object')}, {size}, {what}"


def _seconds(text: str) -> float:
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no age; expected 30d, 12h, 45m, say")
    if not match[2] and float(match[1]):
        raise typer.BadParameter(f"{text!r} has no unit: {match[1]}d is days, {match[1]}h hours")
    return float(match[1]) * _SECONDS[match[2].lower()]
