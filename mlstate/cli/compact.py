"""The command that makes a store smaller without losing anything: `compact`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.exit_codes import INTEGRITY, OK
from mlstate.cli.keys import chosen_keys, complete_keys
from mlstate.cli.options import (
    DryRun,
    Json,
    StoreArgument,
    StoreOption,
    opened,
    store_and_keys,
)
from mlstate.cli.output import human_count, human_size, note, print_json, print_table, put

if TYPE_CHECKING:
    from mlstate.operations.compact.report import CompactReport
    from mlstate.states import StateKey
    from mlstate.stores.read import StateStore

__all__ = ["compact"]


def compact(
    context: typer.Context,
    where: StoreArgument = None,
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY",
            help="States, or patterns; by default all. With --chain keys are in their order, the "
            "oldest first.",
            autocompletion=complete_keys,
            show_default=False,
        ),
    ] = None,
    chain: Annotated[
        bool,
        typer.Option(
            "--chain",
            help="These are checkpoints of one run: each becomes the difference to the next newer "
            "one, and the newest stays plain. What was chained before stays so, and its newest "
            "plain: to join later checkpoints, --undo first.",
        ),
    ] = False,
    alone: Annotated[
        bool,
        typer.Option(
            "--alone",
            help="Encode what is near to nothing else alone, whatever its type; by default "
            "bfloat16 only.",
        ),
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Bring the plain objects back.")] = False,
    dry_run: DryRun = False,
    store: StoreOption = None,
    as_json: Json = False,
) -> int:
    """Keep tensors as differences to near ones: lossless, the same digests, fewer bytes.

    It pays where all weights changed a little: fine-tunes, checkpoints of a run. What saves less
    than a tenth stays as it is. Each tensor is read back and verified before its plain object goes
    to the trash, where it takes room until prune deletes it. Older versions of mlstate refuse the
    store until --undo. With --store, what would be STORE is the first KEY.
    """
    from mlstate.cli.progress import progress
    from mlstate.operations.compact.compact import compact as compact_states

    name, words = store_and_keys(context, where, keys or [], store)
    view = opened(name, quiet=True)
    report = compact_states(
        view,
        _chosen(view, words, in_time=chain) if words else None,
        chain=chain,
        alone=alone,
        undo=undo,
        dry_run=dry_run,
        progress=progress(),
    )
    if as_json:
        print_json("compact", {"dry_run": dry_run, "saved": report.saved}, report)
    else:
        _print(report, dry_run=dry_run)
    return INTEGRITY if report.unread else OK


def _chosen(view: StateStore, words: list[str], *, in_time: bool) -> list[StateKey]:
    """The states that were named; what a pattern names is in the order in which it was saved."""
    chosen = chosen_keys(view, words, everything=False)
    if in_time and any(set(word) & set("*?[") for word in words):
        times = {listing.key: listing.modified or 0.0 for listing in view.listing()}
        chosen.sort(key=lambda key: (times.get(key, 0.0), key))
    return chosen


def _print(report: CompactReport, *, dry_run: bool) -> None:
    about = "about " if report.estimated and not report.undone else ""
    if report.states:
        print_table(
            ["STATE", ">OBJECTS", ">BEFORE", ">AFTER", "BASES"],
            (
                [
                    str(state.key),
                    str(state.objects),
                    human_size(state.before),
                    about + human_size(state.after),
                    _some(state.bases),
                ]
                for state in report.states
            ),
        )
        put()
    done = "plain again" if report.undone else "encoded"
    done = f"would be {done}" if dry_run else done
    sizes = f"{human_size(report.before)} before, {about}{human_size(report.after)} after"
    put(f"{report.objects} of {human_count(report.looked_at, 'object')} {done}: {sizes}")
    if report.trash:
        note(f"{human_size(report.trash)} went to the trash: mlstate prune, or prune --grace AGE")
    if report.left:
        note(
            f"{human_count(report.left, 'object')} still encoded, and older versions refuse the "
            "store: of other states, or of none, which mlstate prune removes after the grace "
            "period; then give this command again"
        )
    for one in report.unread:
        what = str(one.key) if one.tensor is None else f"{one.key}, object {one.tensor}"
        note(f"{what} cannot be read, and stays as it is: {one.error}")


def _some(bases: tuple[str, ...], most: int = 2) -> str:
    more = f" and {len(bases) - most} more" if len(bases) > most else ""
    return ", ".join(bases[:most]) + more
