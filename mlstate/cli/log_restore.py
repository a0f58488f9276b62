"""The commands that look back: `log`, `restore`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.options import DryRun, Json, Keys, Overwrite, StoreOption, opened
from mlstate.cli.output import human_size, note, print_json, print_table, put
from mlstate.errors import StateNotFoundError

if TYPE_CHECKING:
    from mlstate.operations.history import Event

__all__ = ["log", "restore"]


def log(
    keys: Keys = None,
    limit: Annotated[
        str | None, typer.Option("--limit", metavar="N", help="At most so many, the newest.")
    ] = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """List what was saved, replaced and deleted in a store, the newest first.

    Of a state that is there its last saving is told. What was replaced or deleted is told of until
    prune empties the trash, 14 days after, and restore brings it back.
    """
    from fnmatch import fnmatchcase

    from mlstate.operations.history import history

    events = history(opened(store, quiet=True))
    for text in keys or []:
        if not any(fnmatchcase(str(event.key), text) for event in events):
            raise StateNotFoundError(
                "nothing is known of such a state", found=text, remedy="see what is: mlstate log"
            )
    if keys:
        events = [event for event in events if any(fnmatchcase(str(event.key), k) for k in keys)]
    if limit is not None:
        if not limit.isdecimal():
            raise typer.BadParameter(f"{limit!r} is no number", param_hint="--limit")
        events = events[: int(limit)]
    if as_json:
        print_json("log", {"events": events})
        return
    print_table(["WHEN", "EVENT", "KEY", "DIGEST", ">SIZE"], map(_cells, events))
    if not events:
        note("nothing was saved here")


def _cells(event: Event) -> list[str]:
    when = "" if event.time is None else time.strftime("%F %T", time.localtime(event.time))
    digest = (event.digest or "")[:12] if event.error is None else "unreadable"
    size = "" if event.nbytes is None else human_size(event.nbytes)
    return [when, event.event, str(event.key), digest, size]


def restore(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The state, as mlstate log names it.")],
    digest: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST",
            help="Which of several that had this key; its first digits will do. By default the "
            "last.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Bring a state back that was removed, or replaced by another."""
    from mlstate.operations.history import restore as bring_back
    from mlstate.states import StateKey

    view = opened(store, quiet=True)
    wanted = StateKey.parse(key)
    event = bring_back(view, wanted, digest=digest, overwrite=overwrite, dry_run=dry_run)
    if as_json:
        print_json("restore", {"dry_run": dry_run}, event)
        return
    done = "would be restored" if dry_run else "restored"
    put(f"{wanted}  {event.digest}  {done}")
