"""Which weights a manifest means, exactly: `lock`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.errors import OK, exit_code
from mlstate.cli.keys import chosen_keys, complete_keys
from mlstate.cli.options import Json, command
from mlstate.cli.output import complain, human_size, note, print_json, put
from mlstate.errors import FetchError, IntegrityError, StateNotFoundError

if TYPE_CHECKING:
    from mlstate.cli import schema
    from mlstate.manifests import StateEntry
    from mlstate.states import StateKey

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    command(app, "Pin the states of a manifest.", "mlstate lock manifests/torchvision.toml")(lock)


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
) -> int:
    """Pin states: fetch each that has no digest, and write its digest into the manifest.

    Keys that MANIFEST does not list yet are taken over from the default store: so the states that
    come with mlstate are pinned in a manifest of one's own.
    """
    from mlstate.cli.progress import progress
    from mlstate.operations.lock import lock as lock_states

    pinned: dict[StateKey, StateEntry] = {}
    code = OK
    for key in _to_pin(manifest, keys or []):
        try:
            pinned |= lock_states(manifest, [key], progress=progress())
        except (FetchError, IntegrityError) as error:
            code = code or exit_code(error)
            complain(error)
    if as_json:
        locked: schema.Lock = {
            "schema": "mlstate.lock/1",
            "pinned": [
                {"key": str(key), "digest": entry.pinned_digest, "bytes": entry.size}
                for key, entry in pinned.items()
            ],
        }
        print_json(locked)
        return code
    for key, entry in pinned.items():
        put(f"{key}  {entry.digest}  {human_size(entry.size)}")
    if not pinned and code == OK:
        note("nothing to pin: all of these have a digest and a size")
    return code


def _to_pin(manifest: str, texts: list[str]) -> list[StateKey]:
    """The states to pin: those named, taken over into the manifest where need be; or all."""
    from mlstate.locations import local_path
    from mlstate.manifests import manifest_files
    from mlstate.operations.enlist import enlist
    from mlstate.stores.manifest import ManifestStore, Store

    if Path(manifest).exists() or not texts:
        manifest_files(local_path(manifest))  # which refuses a store: its states are pinned
        known = ManifestStore(manifest)
    else:
        known = None
    if not texts:
        assert known is not None
        return [k for k, e in known.manifest.states.items() if e.digest is None or e.size is None]
    chosen: list[StateKey] = []
    for text in texts:
        if known is not None:
            with suppress(StateNotFoundError):
                chosen += chosen_keys(known, [text], everything=False)
                continue
        new = chosen_keys(Store(), [text], everything=False)
        enlist(manifest, Store(), new)
        chosen += new
    return list(dict.fromkeys(chosen))
