"""The commands that tell whether weights are the right ones: `verify`, `diff`, `digest`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlstate.cli.exit_codes import FINDING, OK, exit_code
from mlstate.cli.failures import failure_of, in_our_words
from mlstate.cli.keys import chosen_keys, complete_keys, one_key
from mlstate.cli.options import All, Json, Keys, MaxSize, StoreOption, opened
from mlstate.cli.output import (
    complain,
    from_here,
    human_count,
    human_shape,
    human_size,
    note,
    print_json,
    print_table,
    put,
    put_lines,
    put_marked,
)
from mlstate.locations import local_path
from mlstate.phrases import in_shell

if TYPE_CHECKING:
    from mlstate.operations.diff import Change, StateDiff
    from mlstate.operations.verify.report import VerifyReport
    from mlstate.states import StateKey
    from mlstate.stores.read import StateStore

__all__ = ["diff", "digest", "verify"]


def verify(
    keys: Keys = None,
    everything: All = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Set damaged objects aside, and fetch them from a mirror; and what is missing of "
            "the states that are named, or of all with --strict.",
        ),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="What could not be checked is a finding, of all states."),
    ] = False,
    mirrors: Annotated[
        bool,
        typer.Option(
            "--mirrors", help="Ask each mirror of each state for what it should have, by size."
        ),
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="With --mirrors: read every byte of each mirror.")
    ] = False,
    store: StoreOption = None,
    as_json: Json = False,
) -> int:
    """Read every byte of states, and compare it with their digests. Without keys: of all states.

    Of states from a manifest or a release, what is in the cache is verified. A state that is named
    and is not there, or in part, is a finding; of all states their number is told. With --mirrors
    the mirrors are asked in the place of the cache, and nothing is stored. Exit code 1 if anything
    is damaged, missing or unchecked and was not repaired.
    """
    from mlstate.cli.progress import progress
    from mlstate.operations.verify.verify import verify as verify_states

    view = opened(store)
    chosen = chosen_keys(view, keys or [], everything=everything or not keys)
    report = verify_states(
        view,
        chosen if keys else None,
        repair=repair,
        strict=True if strict else None,
        mirrors=mirrors,
        deep=deep,
        progress=progress(),
    )
    if as_json:
        print_json("verify", {"ok": report.ok, "checked": report.checked}, report)
    else:
        for finding in report.findings:
            put_lines(finding)
        _sum_up(view, report, mirrors=mirrors)
    return OK if report.ok else FINDING


def _sum_up(view: StateStore, report: VerifyReport, *, mirrors: bool) -> None:
    open_ = sum(not finding.repaired for finding in report.findings)
    if mirrors:
        parts = [
            f"{human_count(len(report.mirrors), 'mirror')} of "
            f"{human_count(len(report.states), 'state')} asked"
        ]
        what, right = "file", "all have what they should"
    else:
        absent, partial = len(report.absent), len(report.partial)
        parts = [f"{human_count(len(report.checked), 'state')} checked"]
        parts += [f"{partial:,} here in part"] if partial else []
        parts += [f"{absent:,} not here"] if absent else []
        what = "object"
        right = "all that is here is as it should be" if parts[1:] else "all as they should be"
    result = human_count(open_, "finding") if open_ else right
    if not (open_ or report.states):
        result = "no state was checked" if report.objects else "nothing was checked"
    read = "read" if not mirrors else "in all"
    done = f"{human_count(report.objects, what)}, {human_size(report.nbytes)} {read}"
    put(f"{', '.join(parts)}; {done}: {result}")
    for keys, told in (
        (report.unpinned, f"without a digest: {_how_to_pin(view, report.unpinned)}"),
        (report.unverifiable, "checkpoints of an older layout, without a digest"),
        (report.unmirrored, "without a mirror"),
    ):
        if keys:
            note(f"{human_count(len(keys), 'state')} {told}")


def _how_to_pin(view: StateStore, keys: Sequence[StateKey]) -> str:
    """How to pin these states: all of a manifest at once, or the first of several manifests."""
    path = getattr(view, "path", None)
    if path is not None:
        return f"mlstate lock {shlex.quote(from_here(path))}"
    first = in_shell(view.get(keys[0]).entry.how_to_lock()) if keys else ""
    return first + (" pins the first" if keys[1:] else "")


_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".json", ".gz", ".ckpt")
Select = Annotated[
    str | None,
    typer.Option(
        "--select",
        metavar="PATH",
        help="Where in a torch checkpoint the weights are: model.state_dict, say.",
    ),
]
_Side = Annotated[
    str,
    typer.Argument(
        metavar="KEY|FILE",
        help="A state, a weights file, or a manifest.",
        autocompletion=complete_keys,
    ),
]


def diff(
    first: _Side,
    second: _Side,
    store: StoreOption = None,
    names_only: Annotated[
        bool, typer.Option("--names-only", help="Say which tensors differ, not by how much.")
    ] = False,
    select: Select = None,
    max_size: MaxSize = None,
    as_json: Json = False,
) -> int:
    """Compare two states: which tensors differ, by how much, which are only in one of them.

    By digest first, so what is equal is not read. Of two manifests (OLD.toml NEW.toml) it says
    which states the newer one adds, drops, renames and moves to another digest, what else changed,
    and which layers did where both states are in the cache. Exit code 1 if something differs.
    """
    if _is_manifest(first) and _is_manifest(second):
        return _diff_manifests(first, second, as_json=as_json)
    from mlstate.operations.diff import diff as compare

    view = opened(store) if not (_is_file(first) and _is_file(second)) else None
    sides = _side(view, first), _side(view, second)
    found = compare(*sides, values=not names_only, select=select, max_size=max_size)
    if as_json:
        named = {
            "first": first,
            "second": second,
            "same_weights": found.same_weights,
            "same_but_for_ties": found.same_but_for_ties,
        }
        print_json("diff", named, found)
    else:
        _show_diff(first, second, found)
    return OK if found.same_weights else FINDING


def _is_manifest(text: str) -> bool:
    return text.endswith(".toml") or text == os.devnull


def _diff_manifests(first: str, second: str, *, as_json: bool) -> int:
    from mlstate.cli.manifest_diff import manifest_diff_lines
    from mlstate.operations.diff_manifests import diff_manifests

    found = diff_manifests(first, second)
    if as_json:
        print_json("manifest-diff", {"first": first, "second": second, "same": found.same}, found)
    else:
        for colour, word, rest in manifest_diff_lines(found):
            put_marked(colour, word, rest)
    return OK if found.same else FINDING


def _is_file(text: str) -> bool:
    """Whether a text names a file: there is one, or the text cannot be a key."""
    return text == "-" or Path(text).exists() or "/" in text or text.endswith(_ENDINGS)


def _side(view: StateStore | None, text: str) -> Any:
    """The file or the state that a text names, as `mlstate.diff` takes it."""
    if _is_file(text) or view is None:
        return local_path(text)
    return view, one_key(view, text)


def _show_diff(first: str, second: str, found: StateDiff) -> None:
    if found.same_weights:
        put(f"the same weights: equal on all {human_count(len(found.equal), 'name')}")
    else:
        shared = len(found.equal) + len(found.changed)
        equal = f"all {shared}" if not found.changed else f"{len(found.equal)} of {shared}"
        put(f"equal on {equal} shared names" if shared else "no names in common")
    if found.same_but_for_ties:
        put("the same but for tied names: a model that has them tied is the same with both")
    if found.changed:
        put()
        titles = ["CHANGED", "SHAPE", ">ELEMENTS", ">MAX", ">RELATIVE", ">NAN OR INF"]
        print_table(*_without_empty(titles, [_change(change) for change in found.changed]))
    tied = dict(found.tied)
    moved = {name for pair in found.renamed for name in pair}
    for title, names in ((f"only in {first}", found.removed), (f"only in {second}", found.added)):
        if alone := [name for name in names if name not in moved]:
            put(f"{title}: {', '.join(_with_tie(name, tied) for name in alone)}")
    for line in _renamed(found.renamed):
        put(f"renamed: {line}")
    for name in found.files:
        put(f"another file, or on one side only: {name}")


def _without_empty(titles: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that have nothing in any row."""
    kept = [column for column in range(len(titles)) if any(row[column] for row in rows)]
    return [titles[column] for column in kept], [[row[column] for column in kept] for row in rows]


def _renamed(pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The new names, a line each; those that differ by one prefix, as of a wrapper, together."""
    alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for old, new in pairs:
        ending = old if new.endswith(old) else new if old.endswith(new) else ""
        fronts = (old.removesuffix(ending), new.removesuffix(ending)) if ending else (old, new)
        alike.setdefault(fronts, []).append((old, new))
    for (old_front, new_front), group in alike.items():
        if len(group) == 1:
            yield f"{group[0][0]} -> {group[0][1]}"
        elif new_front:
            yield f"{len(group)} names, with {new_front} before them in the second"
        else:
            yield f"{len(group)} names, with {old_front} before them in the first"


def _with_tie(name: str, tied: Mapping[str, str]) -> str:
    return f"{name} (the same tensor as {tied[name]})" if name in tied else name


def _change(change: Change) -> list[str]:
    old, new = (f"{spec.dtype} {human_shape(spec.shape)}" for spec in (change.first, change.second))
    return [
        change.name,
        old if old == new else f"{old} -> {new}",
        "" if change.differing is None else f"{change.differing:,}",
        "" if change.max_abs is None else f"{change.max_abs:.3g}",
        "" if change.relative is None else f"{change.relative:.3g}",
        "" if not change.nonfinite else f"{change.nonfinite:,}",
    ]


def digest(
    paths: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Weights files, or folders with shards.")
    ],
    select: Select = None,
    max_size: MaxSize = None,
    as_json: Json = False,
) -> int:
    """Print the state digest of weights files: the same digest, the same weights.

    Whatever they are in: safetensors, shards, a torch checkpoint; the order of the tensors and the
    file's own metadata do not matter.
    """
    from mlstate.cli.printed import FileDigest, FileFailure
    from mlstate.errors import MlstateError
    from mlstate.weights.files import file_digest

    code, found, failed = OK, list[FileDigest](), list[FileFailure]()
    for path in paths:
        try:
            digest = file_digest(path, select=select, max_size=max_size)
            found.append(FileDigest(path, digest))
        except (MlstateError, OSError) as error:
            code = code or exit_code(error)
            failed.append(FileFailure(path, failure_of(error)))
            complain(in_our_words(error))
            continue
        if not as_json:
            put(f"{found[-1].digest}  {path}")
    if as_json:
        print_json("digest", {"files": found, "failed": failed})
    return code
