"""Bringing states from one place to another: `fetch`, `copy`, `lock`, `bundle`, `unbundle`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.errors import exit_code
from mlstate.cli.keys import chosen_keys, complete_keys
from mlstate.cli.options import All, Json, Keys, Overwrite, StoreOption, command, opened
from mlstate.cli.output import human_count, human_size, note, print_json, put, put_written

if TYPE_CHECKING:
    from mlstate.cli import schema
    from mlstate.fetch.progress import OnProgress
    from mlstate.stores.view import StateView

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    command(app, "mlstate fetch 'pytorch.resnet18.*' --store manifests/")(fetch)
    command(app, "mlstate copy --all --from weights --to s3://bucket/weights")(copy)
    command(app, "mlstate lock manifests/torchvision.toml")(lock)
    command(app, "mlstate bundle --all --store weights -o weights.tar")(bundle)
    command(app, "mlstate unbundle weights.tar --store weights")(unbundle)


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
            note(f"error: {error}")
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
    as_json: Json = False,
) -> None:
    """Bring states from one store into another: publish them, or mirror them.

    Only what the target lacks is read and written, and all of it is verified on its way.
    """
    from mlstate.stores.copying import copy as copy_states

    sending = opened(source)
    receiving = opened(target, create=True, quiet=True)
    chosen = chosen_keys(sending, keys or [], everything=everything)
    report = copy_states(
        sending, receiving, chosen, overwrite=overwrite, progress=_besides(sending)
    )
    if manifest is not None:
        from mlstate.stores.enlisting import enlist
        from mlstate.stores.local import LocalStateStore

        addresses = list(objects or [])
        if not addresses and isinstance(receiving, LocalStateStore):
            addresses = [_seen_from(Path(manifest).parent, receiving.folder)]
        enlist(manifest, receiving, chosen, objects=addresses, overwrite=overwrite)
    if as_json:
        copied: schema.Copy = {
            "schema": "mlstate.copy/1",
            "copied": [str(key) for key in report.copied],
            "present": [str(key) for key in report.present],
            "bytes": report.nbytes,
            "manifest": manifest,
        }
        print_json(copied)
        return
    for key in report.copied:
        put(f"{key}  copied")
    for key in report.present:
        put(f"{key}  there already")
    note(f"{human_size(report.nbytes)} of tensors copied")
    if manifest is not None:
        note(f"{human_count(len(chosen), 'state')} listed in {manifest}")


def _besides(store: StateView) -> OnProgress | bool | None:
    """Progress of reading a store; one that fetches shows its own, and one bar is enough."""
    from mlstate.cli.progress import progress
    from mlstate.stores.fetching import FetchingView

    return None if isinstance(store, FetchingView) else progress()


def _seen_from(folder: Path, place: Path) -> str:
    """A folder as a manifest names it: relative, if it is below the manifest's own."""
    whole, base = place.resolve(), folder.resolve()
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else str(whole)


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
    as_json: Json = False,
) -> None:
    """Pin states: fetch each that has no digest, and write its digest into the manifest."""
    from mlstate.cli.progress import progress
    from mlstate.stores.manifest import ManifestStore
    from mlstate.stores.pinning import lock as lock_states

    chosen = chosen_keys(ManifestStore(manifest), keys, everything=False) if keys else None
    pinned = lock_states(manifest, chosen, progress=progress())
    if as_json:
        locked: schema.Lock = {
            "schema": "mlstate.lock/1",
            "pinned": [
                {"key": str(key), "digest": entry.pinned_digest, "bytes": entry.size}
                for key, entry in pinned.items()
            ],
        }
        print_json(locked)
        return
    for key, entry in pinned.items():
        put(f"{key}  {entry.digest}  {human_size(entry.size)}")
    if not pinned:
        note("nothing to pin: all of these have a digest and a size")


def bundle(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE.tar", help="The tar to write.")
    ],
    keys: Keys = None,
    everything: All = False,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Write states and all that they need into one tar, for machines without any network."""
    from mlstate.stores.bundles import bundle as write_bundle

    view = opened(store)
    chosen = chosen_keys(view, keys or [], everything=everything)
    write_bundle(view, chosen, output, progress=_besides(view))
    size = human_size(Path(output).stat().st_size)
    put_written("bundle", chosen, output, as_json=as_json)
    note(f"{human_count(len(chosen), 'state')}, {size}; there: mlstate unbundle")


def unbundle(
    path: Annotated[
        str, typer.Argument(metavar="FILE.tar", help="The bundle; - for standard input.")
    ],
    store: StoreOption = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Bring the states of a bundle into a store, all verified, or none. By default: the cache."""
    from mlstate.cli.progress import progress
    from mlstate.errors import ReadOnlyStoreError
    from mlstate.stores.bundles import unbundle as read_bundle
    from mlstate.stores.saving import SavingStore

    target = None if store is None else opened(store, create=True)
    if target is not None and not isinstance(target, SavingStore):
        raise ReadOnlyStoreError(
            "nothing can be unbundled into this store",
            path=target,
            expected="a folder, or a bucket",
            remedy="leave --store out: the cache is what every manifest reads",
        )
    came = read_bundle(path, target, overwrite=overwrite, progress=progress())
    if as_json:
        unbundled: schema.Unbundle = {
            "schema": "mlstate.unbundle/1",
            "states": [str(key) for key in came],
        }
        print_json(unbundled)
        return
    for key in came:
        put(str(key))
