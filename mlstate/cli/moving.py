"""Bringing states from one place to another: `fetch`, `copy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.errors import OK, exit_code
from mlstate.cli.keys import chosen_keys
from mlstate.cli.options import (
    All,
    Json,
    Keys,
    Overwrite,
    StoreOption,
    Verify,
    command,
    opened,
)
from mlstate.cli.output import complain, human_count, human_size, note, print_json, put
from mlstate.errors import CopyError
from mlstate.phrases import in_shell

if TYPE_CHECKING:
    from mlstate.cli import schema
    from mlstate.operations.copy import CopyReport
    from mlstate.states import StateKey
    from mlstate.stores.read import StateView

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    command(
        app, "Bring states into the cache.", "mlstate fetch 'pytorch.resnet18.*' --store manifests/"
    )(fetch)
    command(
        app,
        "Bring states from one store into another.",
        "mlstate copy --all --from weights --to s3://bucket/weights",
    )(copy)


def fetch(
    keys: Keys = None,
    everything: All = False,
    store: StoreOption = None,
    as_json: Json = False,
) -> int:
    """Bring states from a manifest, a bucket or a release into the cache.

    A fetch that was stopped goes on where it was. What is in the cache already is spared.
    """
    from mlstate.errors import FormatError, MlstateError
    from mlstate.stores.fetching import FetchingView

    view = opened(store)
    if not isinstance(view, FetchingView):
        raise FormatError(
            "this store has its bytes already, so there is nothing to fetch",
            path=view,
            remedy="give a manifest, a bucket or a release; to bring states elsewhere: mlstate "
            "copy",
        )
    rows: list[schema.FetchState] = []
    code = 0
    for key in chosen_keys(view, keys or [], everything=everything):
        try:
            report = view.fetch(key)
        except MlstateError as error:
            if not everything:
                raise
            code = code or exit_code(error)
            why = error.message
            rows.append({"key": str(key), "digest": None, "fetched": 0, "spared": 0, "error": why})
            complain(error)
            continue
        rows.append(
            {
                "key": str(key),
                "digest": report.digest,
                "fetched": report.fetched,
                "spared": report.spared,
                "error": None,
            }
        )
        if not as_json:
            came = f"{human_size(report.fetched)} fetched" if report.fetched else "in the cache"
            spared = f", {human_size(report.spared)} spared" if report.spared else ""
            put(f"{key}  {came}{spared}")
    if as_json:
        fetched: schema.Fetch = {"schema": "mlstate.fetch/1", "states": rows}
        print_json(fetched)
    return code


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
    as_json: Json = False,
) -> int:
    """Bring states from one store into another: publish them, or mirror them.

    Only what the target lacks is read and written, and all of it is verified on its way. A state
    that cannot be copied does not keep the others from it.
    """
    if objects and manifest is None:
        raise typer.BadParameter("--objects is for --manifest FILE")
    from mlstate.cli.progress import progress_of
    from mlstate.operations.copy import copy as copy_states

    sending = opened(source)
    receiving = opened(target, create=True, quiet=True)
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
            progress=progress_of(sending),
        )
    except CopyError as error:
        done, code = error, exit_code(error)
        for key, failure in error.failures:
            complain(f"{key}: {failure.text(in_shell)}")
    there = [*done.copied, *done.present]
    if manifest is not None and there:
        _list(manifest, receiving, there, objects or [], overwrite=overwrite)
    if as_json:
        failures = done.failures if isinstance(done, CopyError) else ()
        copied: schema.Copy = {
            "schema": "mlstate.copy/1",
            "copied": [str(key) for key in done.copied],
            "present": [str(key) for key in done.present],
            "failed": [{"key": str(key), "error": why.message} for key, why in failures],
            "bytes": done.nbytes,
            "manifest": manifest,
        }
        print_json(copied)
        return code
    for key in done.copied:
        put(f"{key}  copied")
    for key in done.present:
        put(f"{key}  there already")
    note(f"{human_size(done.nbytes)} of tensors copied")
    if manifest is not None:
        note(f"{human_count(len(there), 'state')} listed in {manifest}")
    return code


def _list(
    manifest: str,
    store: StateView,
    keys: list[StateKey],
    objects: list[str],
    *,
    overwrite: bool,
) -> None:
    """Write states into a manifest: with the addresses given, or the store's own."""
    from mlstate.operations.enlist import enlist
    from mlstate.stores.local import LocalStateStore

    if not objects and isinstance(store, LocalStateStore):
        place = _seen_from(Path(manifest).parent, store.folder)
        if Path(place).is_absolute():
            note(f"{manifest} names a folder of this machine; for others give --objects URL")
        objects = [place]
    enlist(manifest, store, keys, objects=objects, overwrite=overwrite)


def _seen_from(folder: Path, place: Path) -> str:
    """A folder as a manifest names it: relative, if it is below the manifest's own."""
    whole, base = place.resolve(), folder.resolve()
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else str(whole)
