"""The commands that bring states somewhere, and pin them: `fetch`, `copy`, `lock`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.default_store import project_here
from mlstate.cli.exit_codes import OK, exit_code
from mlstate.cli.failures import failure_of
from mlstate.cli.keys import chosen_keys, complete_keys
from mlstate.cli.options import (
    All,
    DryRun,
    Json,
    Keys,
    MaxSize,
    Overwrite,
    StoreOption,
    Verify,
    opened,
    pinned_now,
    unreached_servers,
)
from mlstate.cli.output import complain, human_count, human_size, note, print_json, put
from mlstate.errors import CopyError, FetchError, FormatError, IntegrityError, StateNotFoundError
from mlstate.units import parse_size

if TYPE_CHECKING:
    from mlstate.cli.printed import FetchedState
    from mlstate.manifests import StateEntry
    from mlstate.operations.copy import CopyReport
    from mlstate.states import StateKey
    from mlstate.stores.read import StateStore

__all__ = ["copy", "fetch", "lock"]


def fetch(
    keys: Keys = None,
    everything: All = False,
    dry_run: DryRun = False,
    store: StoreOption = None,
    as_json: Json = False,
) -> int:
    """Bring states from a manifest, a bucket or a release into the cache.

    A fetch that was stopped goes on where it was. What is in the cache already is spared.
    """
    from mlstate.cli.printed import FetchedState, UnreachedServer
    from mlstate.errors import MlstateError

    chosen = _to_fetch(store, keys or [], everything=everything)
    code, rows = OK, list[FetchedState]()
    for view, key in chosen:
        try:
            if dry_run:
                row, line = _planned(view, key)
                rows.append(row)
                if not as_json:
                    put(line)
                continue
            report = view.fetch(key)
        except MlstateError as error:
            if not everything:
                raise
            code = code or exit_code(error)
            rows.append(FetchedState(key, None, 0, 0, error.message, failure=failure_of(error)))
            complain(error)
            continue
        rows.append(
            FetchedState(key, report.digest, report.fetched, report.spared, None, report.pinned_now)
        )
        if not as_json:
            came = f"{human_size(report.fetched)} fetched" if report.fetched else "in the cache"
            spared = f", {human_size(report.spared)} spared" if report.spared else ""
            put(f"{key}  {came}{spared}")
    if as_json:
        views = {id(view): view for view, _ in chosen}.values()
        unreached = [UnreachedServer(*down) for view in views for down in unreached_servers(view)]
        print_json("fetch", {"dry_run": dry_run, "states": rows, "unreached": unreached})
    return code


def _to_fetch(
    store: str | None, texts: list[str], *, everything: bool
) -> list[tuple[StateStore, StateKey]]:
    """The states to fetch, each with the store that lists it.

    Of a project these are its manifests; and for keys that they do not list the manifests that
    come with mlstate and other libraries.
    """
    view = opened(store, manifests=True)
    if store is not None or everything or not texts or project_here() is None:
        if view.fetcher is None:
            raise _nothing_to_fetch(view)
        return [(view, key) for key in chosen_keys(view, texts, everything=everything)]
    found: list[tuple[StateStore, StateKey]] = []
    others: StateStore | None = None
    for text in texts:
        try:
            keys = chosen_keys(view, [text], everything=False)
            if view.fetcher is None:
                raise _nothing_to_fetch(view)
            found += [(view, key) for key in keys]
        except StateNotFoundError as error:
            others = others or opened("")
            try:
                keys = chosen_keys(others, [text], everything=False)
            except StateNotFoundError:
                raise error from None
            found += [(others, key) for key in keys]
    return list(dict.fromkeys(found))


def _nothing_to_fetch(view: StateStore) -> FormatError:
    return FormatError(
        "this store has its bytes already, so there is nothing to fetch",
        path=view,
        remedy="give a manifest, a bucket or a release; to bring states elsewhere: mlstate copy",
    )


def _planned(view: StateStore, key: StateKey) -> tuple[FetchedState, str]:
    """A state that would be fetched, for programs and for people."""
    from mlstate.cli.printed import FetchedState
    from mlstate.operations.plan import planned_fetch

    plan = planned_fetch(view, key)
    line = "in the cache"
    if plan.missing:
        size = "of unknown size" if plan.nbytes is None else human_size(plan.nbytes)
        line = f"{size} would be fetched" + (", and pinned" if plan.digest is None else "")
    if plan.missing and plan.spared:
        line += f", {human_size(plan.spared)} spared"
    fetched = plan.nbytes if plan.missing else 0
    row = FetchedState(key, plan.digest, fetched, plan.spared, None, plan.digest is None)
    return row, f"{key}  {line}"


def copy(
    target: Annotated[
        str,
        typer.Option("--to", metavar="STORE", help="Where to; as --store. A folder may be new."),
    ],
    keys: Keys = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            envvar="MLSTATE_STORE",
            show_envvar=True,
            metavar="STORE",
            help="Where the states are; as --store.",
        ),
    ] = None,
    everything: All = False,
    manifest: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the copies into a manifest, with their mirrors."),
    ] = None,
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--objects",
            metavar="URL",
            help="Under which address others read the target, for --manifest: "
            "https://weights.example.org, say.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    verify: Verify = False,
    encode: Annotated[
        bool,
        typer.Option(
            "--encode",
            help="Write tensors as the difference to near ones that the target has, where that "
            "saves a tenth; a folder or a bucket then needs readers that know it.",
        ),
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Bring states from one store into another: publish them, or mirror them.

    Only what the target lacks is read and written, and all of it is verified on its way. A state
    that cannot be copied does not keep the others from it.
    """
    _check_manifest(manifest, objects)
    from mlstate.cli.printed import CopyFailure
    from mlstate.cli.progress import progress_of
    from mlstate.operations.copy import copy as copy_states
    from mlstate.operations.enlist import enlist, own_objects

    sending = opened(source)
    receiving = opened(target, create=True, quiet=True)  # which writes nothing yet
    chosen = chosen_keys(sending, keys or [], everything=everything)
    done: CopyReport | CopyError
    code = OK
    try:
        done = copy_states(
            sending,
            receiving,
            chosen,
            overwrite=overwrite,
            verify=verify,
            encode=encode or None,
            progress=progress_of(sending),
            dry_run=dry_run,
        )
    except CopyError as error:
        done, code = error, exit_code(error)
        for key, failure in error.failures:
            complain(failure, key)
    there = [*done.copied, *done.present]
    if manifest is not None and there and not dry_run:
        objects = objects or own_objects(receiving, manifest)
        if any(Path(place).is_absolute() for place in objects):
            note(f"{manifest} names a folder of this machine; for others give --objects URL")
        enlist(manifest, receiving, there, objects=objects, overwrite=overwrite)
    if as_json:
        failures = done.failures if isinstance(done, CopyError) else ()
        failed = [CopyFailure(str(key), why.message, failure_of(why)) for key, why in failures]
        report = {"copied": done.copied, "present": done.present, "failed": failed}
        more = {
            "pinned_now": pinned_now(sending),
            "dry_run": dry_run,
            "bytes": done.nbytes,
            "manifest": manifest,
        }
        print_json("copy", {**report, **more})
        return code
    for key in done.copied:
        put(f"{key}  would be copied" if dry_run else f"{key}  copied")
    for key in done.present:
        put(f"{key}  there already")
    note(f"{human_size(done.nbytes)} of tensor objects {'would be ' if dry_run else ''}copied")
    if manifest is not None and not dry_run:
        note(f"{human_count(len(there), 'state')} listed in {manifest}")
    return code


def _check_manifest(manifest: str | None, objects: list[str] | None) -> None:
    """Refuse options that do not go together, before anything is copied."""
    if objects and manifest is None:
        raise typer.BadParameter("--objects is for --manifest FILE")
    if manifest is not None and not manifest.endswith(".toml"):
        raise typer.BadParameter(f"a manifest ends in .toml, and {manifest} does not")


def lock(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="A file, or a folder.")],
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY",
            help="States, or patterns; by default all that are not pinned.",
            autocompletion=complete_keys,
            show_default=False,
        ),
    ] = None,
    from_pins: Annotated[
        bool,
        typer.Option(
            "--from-pins",
            help="Fetch nothing: write what the first use of these states has pinned here. Without "
            "KEY: of all that are listed without a digest; of a new MANIFEST, of all pinned states "
            "of the default store.",
        ),
    ] = False,
    max_size: MaxSize = None,
    as_json: Json = False,
) -> int:
    """Pin states: fetch each that has no digest, and write its digest into the manifest.

    Keys that MANIFEST does not list yet are taken over from the default store: so the states that
    come with mlstate are pinned in a manifest of one's own.
    """
    from mlstate.cli.printed import LockFailure, PinnedState
    from mlstate.cli.progress import progress
    from mlstate.fetch import MAX_SIZE
    from mlstate.operations.lock import lock as lock_states
    from mlstate.operations.lock import unpinned

    most = MAX_SIZE if max_size is None else parse_size(max_size)
    pinned: dict[StateKey, StateEntry] = {}
    failed: list[LockFailure] = []
    code = OK
    chosen: list[StateKey] = []
    source: StateStore | None = None
    if from_pins:
        pinned = _pins_written(manifest, keys)
    else:
        chosen, source = _to_pin(manifest, keys) if keys else (unpinned(manifest), None)
    for key in chosen:
        try:
            pinned |= lock_states(
                manifest, [key], source=source, max_size=most, progress=progress()
            )
        except (FetchError, IntegrityError) as error:
            code = code or exit_code(error)
            failed.append(LockFailure(key, failure_of(error)))
            complain(error)
    if as_json:
        states = [
            PinnedState(key, e.pinned_digest, e.size, not from_pins) for key, e in pinned.items()
        ]
        print_json("lock", {"pinned": states, "failed": failed})
        return code
    for key, entry in pinned.items():
        put(f"{key}  {entry.digest}  {human_size(entry.size)}")
    if not pinned and code == OK:
        note(
            "nothing to pin: none of these has a pin, or all have a digest"
            if from_pins
            else "nothing to pin: all of these have a digest and a size"
        )
    return code


def _pins_written(manifest: str, texts: list[str] | None) -> dict[StateKey, StateEntry]:
    """Write the digests of the user's pins into a manifest."""
    from mlstate.operations.lock import lock as lock_states
    from mlstate.stores.manifest import Store

    default: StateStore | None = None
    keys: list[StateKey] | None = None
    if texts:
        keys, default = _to_pin(manifest, texts)
    elif not Path(manifest).exists():
        default = Store(pins="first-use")
    return lock_states(manifest, keys, source=default, from_pins=True)


def _to_pin(manifest: str, texts: list[str]) -> tuple[list[StateKey], StateStore | None]:
    """The states that texts name in a manifest or else in the default store; that store if so."""
    from mlstate.locations import local_path
    from mlstate.manifests import manifest_files
    from mlstate.stores.manifest import ManifestStore, Store

    known = default = None
    if Path(manifest).exists():
        manifest_files(local_path(manifest))  # which refuses a store: its states are pinned
        known = ManifestStore(manifest, require_signature=False)  # it is signed once it is pinned
    chosen: list[StateKey] = []
    for text in texts:
        if known is not None:
            with suppress(StateNotFoundError):
                chosen += chosen_keys(known, [text], everything=False)
                continue
        default = default or Store(pins="first-use")
        chosen += chosen_keys(default, [text], everything=False)
    return list(dict.fromkeys(chosen)), default
