"""The commands for states as one tar: `bundle`, `unbundle`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mlstate.cli.default_store import saves_by_default
from mlstate.cli.keys import chosen_keys
from mlstate.cli.options import (
    All,
    Json,
    Keys,
    MaxSize,
    Overwrite,
    StoreOption,
    opened,
    pinned_now,
    store_option,
)
from mlstate.cli.output import human_count, human_size, note, print_json, put, put_written
from mlstate.phrases import in_shell
from mlstate.settings import cache_folder

__all__ = ["bundle", "unbundle"]


def bundle(
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE.tar", help="The tar to write; - for standard output."
        ),
    ],
    keys: Keys = None,
    everything: All = False,
    store: StoreOption = None,
    overwrite: Overwrite = False,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            "-k",
            metavar="FILE",
            help="Sign each state of it with this SSH key. By default signatures stay as they are.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write states and all that they need into one tar, for machines without any network."""
    from mlstate.cli.progress import progress_of
    from mlstate.operations.bundle import bundle as write_bundle

    if output == "-":
        _check_standard_output(as_json=as_json)
    view = opened(store)
    chosen = chosen_keys(view, keys or [], everything=everything)
    write_bundle(
        view, chosen, output, overwrite=overwrite, progress=progress_of(view), signing_key=key
    )
    if output == "-":
        note(f"{human_count(len(chosen), 'state')}; there: mlstate unbundle -")
        return
    size = human_size(Path(output).expanduser().stat().st_size)
    put_written("bundle", chosen, output, pinned_now=pinned_now(view), as_json=as_json)
    note(f"{human_count(len(chosen), 'state')}, {size}; there: mlstate unbundle {output}")


def _check_standard_output(*, as_json: bool) -> None:
    if as_json:
        raise typer.BadParameter("--json prints where -o - writes: give one of them")
    if sys.stdout.isatty():
        raise typer.BadParameter("-o - writes bytes: send them into a pipe, or a file: -o FILE.tar")


def unbundle(
    path: Annotated[
        str, typer.Argument(metavar="FILE.tar", help="The bundle; - for standard input.")
    ],
    store: Annotated[
        str | None,
        store_option(
            "Where to: a folder, which may be new, or s3://bucket/prefix. By default the store "
            "of the project; without one the cache, where every manifest finds what it needs."
        ),
    ] = None,
    overwrite: Overwrite = False,
    max_size: MaxSize = None,
    as_json: Json = False,
) -> None:
    """Bring the states of a bundle into a store, all verified, or none."""
    from mlstate.cli.progress import progress
    from mlstate.operations.bundle import unbundle as read_bundle

    target = opened(store, create=True) if store is not None or saves_by_default() else None
    came = read_bundle(path, target, overwrite=overwrite, max_size=max_size, progress=progress())
    if as_json:
        print_json("unbundle", {"states": came})
        return
    for key in came:
        put(str(key))
    note(f"in {f'the cache, {cache_folder()}' if target is None else in_shell(target)}")
