"""The commands from and to files of other tools: `add`, `export`, `materialize`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlstate.cli.add_all import add_all
from mlstate.cli.default_store import how_to_save_by_default, saves_by_default
from mlstate.cli.exit_codes import OK
from mlstate.cli.keys import new_key, one_key
from mlstate.cli.options import (
    Json,
    Key,
    MaxSize,
    Overwrite,
    StoreOption,
    Verify,
    opened,
    pinned_now,
    store_option,
)
from mlstate.cli.output import human_size, note, print_json, put, put_written
from mlstate.cli.values import pairs, typed
from mlstate.errors import FormatError, WeightsNotFoundError
from mlstate.states import StateKey

if TYPE_CHECKING:
    from mlstate.operations.adopt_report import AdoptReport

__all__ = ["add", "export", "materialize"]

_MOST_JOBS = 64
_REPOSITORY = re.compile(r"(?:hf:)?([A-Za-z0-9_-][\w.-]*)/([A-Za-z0-9_-][\w.-]*)")

ShardSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Split into files of at most so much, with an index: 5GB."),
]


def add(
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="What it is to be called.", show_default=False),
    ] = None,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A .safetensors file, a folder, a torch checkpoint, a URL of one, or "
            "hf://org/repo@revision; a .npz, or a folder of torch.distributed.checkpoint.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        str | None,
        store_option(
            "Where to: a folder, which may be new, s3://bucket/prefix, github:owner/repo; "
            "or with --mirror a manifest. By default the store of the project."
        ),
    ] = None,
    everything: Annotated[
        str | None,
        typer.Option(
            "--all",
            metavar="DIR",
            help="Instead of KEY and SOURCE: all weights below a folder, each file or model folder "
            "as a state.",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="TEMPLATE",
            help="With --all, the key of each: 'pytorch.bert.{parent}.{stem}'. {parent} is the "
            "folder of the file, {stem} its name without endings, {folders} all folders below DIR.",
        ),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(
            "--match", metavar="PATTERN", help="With --all, only these paths; may be repeated."
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip", metavar="PATTERN", help="With --all, not these paths; may be repeated."
        ),
    ] = None,
    jobs: Annotated[
        str | None,
        typer.Option(
            "--jobs", "-j", metavar="N", help="With --all, so many at once; 1 by default."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="With --all, say what would be done, and do nothing."),
    ] = False,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror", help="STORE is a manifest: name the source there, and store nothing else."
        ),
    ] = False,
    select: Annotated[
        list[str] | None,
        typer.Option(
            "--select",
            metavar="PATH",
            help="Where in a torch checkpoint the weights are: model.state_dict. Repeated, each is "
            "put in front of its names.",
        ),
    ] = None,
    tensors_only: Annotated[
        bool,
        typer.Option(
            "--tensors-only", help="Pass over what is no tensor in the state dict of a checkpoint."
        ),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a folder or a repository, the file of weights."),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include", metavar="PATTERN", help="Keep these files, too; may be repeated."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", metavar="PATTERN", help="Do not keep these files; may be repeated."
        ),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="Another file that belongs to the state; may be repeated.",
        ),
    ] = None,
    strip_prefix: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Take this off the front of names: module."),
    ] = None,
    add_prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Put this in front of all names.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename", metavar="OLD=NEW", help="Replace a text in names; may be repeated."
        ),
    ] = None,
    container: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="safetensors, torch or torch-gzip, where the source does not say.",
        ),
    ] = None,
    meta: Annotated[
        list[str] | None,
        typer.Option(
            "--meta",
            metavar="NAME=VALUE",
            help="What to note with it: licence=MIT, accuracy=0.93; may be repeated. Numbers stay "
            "numbers.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    verify: Verify = False,
    max_size: MaxSize = None,
    as_json: Json = False,
) -> int:
    """Adopt weights from a file, a URL or the Hugging Face hub: into a store, or a manifest.

    With --all, all weights below a folder. Two that would have the same key are refused before
    anything is stored; one that cannot be adopted does not keep the others from it.
    """
    from mlstate.cli.progress import progress
    from mlstate.operations.adopt import adopt

    for_all = {"--key": template, "--match": match, "--skip": skip, "--jobs": jobs}
    for_one = {"KEY": key, "--weights": weights, "--include": include, "--exclude": exclude}
    _check_kind(everything, {**for_all, "--dry-run": dry_run}, {**for_one, "--file": file})
    if store is None and not saves_by_default():
        raise typer.BadParameter(
            "say where to: a folder, s3://..., github:..., or a manifest with --mirror; or "
            + how_to_save_by_default(),
            param_hint="--store",
        )
    manifest = store is not None and store.endswith(".toml")
    target: Any = store if manifest else opened(store, create=True, quiet=True)
    options: dict[str, Any] = {
        "meta": typed(pairs(meta or [], "--meta")) or None,
        "select": select or None,
        "tensors_only": tensors_only,
        "strip_prefix": strip_prefix or "",
        "add_prefix": add_prefix or "",
        "rename": pairs(rename or [], "--rename", "OLD=NEW"),
        "format": container,
        "mirror": mirror,
        "overwrite": overwrite,
        "verify": verify,
        "max_size": max_size,
        "progress": progress(),
    }
    if everything is not None:
        options |= {"match": match or (), "skip": skip or (), "jobs": _count(jobs or "1")}
        options |= {"dry_run": dry_run, "as_json": as_json}
        return add_all(everything, target, template or "", **options)
    if key is None or source is None:
        raise typer.BadParameter("give KEY and SOURCE; or --all DIR with --key TEMPLATE")
    _check_order(key, source)
    wanted = new_key(key)
    try:
        report = adopt(
            source,
            wanted,
            target,
            files=_files(file or []) or None,
            weights=weights,
            include=include or (),
            exclude=exclude or (),
            **options,
        )
    except (WeightsNotFoundError, FormatError) as error:
        error.remedy = _on_the_hub(source) or error.remedy
        raise
    if as_json:
        kind = wanted.state_type
        from mlstate.cli.printed import KeyParts

        parts = KeyParts(kind.backend, kind.architecture, [*kind.extra], wanted.training_id)
        print_json("add", report, {"understood": parts})
    else:
        _print_added(report)
    return OK


def _print_added(report: AdoptReport) -> None:
    put(f"{report.key}  {report.digest}  {human_size(report.size)}")
    if report.existed:
        note("it was there already")
    else:
        note(f"{human_size(report.added)} new, {human_size(report.spared)} shared")
    if report.prefix:
        note(
            f"all names begin with {report.prefix} as those of a wrapped model do; "
            f"--strip-prefix {report.prefix} takes it off"
        )
    if report.select:
        note(f"what {report.select} holds in the checkpoint, and nothing else of it")
    if report.passed_over:
        note(f"without {_listed(report.passed_over)}: no tensors of the model")
    if report.files:
        note(f"with {', '.join(report.files)}")
    if report.skipped:
        note(f"not taken: {_listed(report.skipped)}")


def _check_kind(
    everything: str | None, for_all: Mapping[str, object], for_one: Mapping[str, object]
) -> None:
    """Refuse what does not go with one source, or with all below a folder."""
    given = for_one if everything is not None else for_all
    wrong = next((name for name, value in given.items() if value), None)
    if wrong is not None and everything is not None:
        raise typer.BadParameter(
            f"{wrong} is for one source, not for --all; --match and --skip choose among sources"
        )
    if wrong is not None:
        raise typer.BadParameter(f"{wrong} is for --all DIR")
    if everything is not None and not for_all["--key"]:
        raise typer.BadParameter("--all needs --key, 'pytorch.bert.{parent}.{stem}' say")


def _check_order(key: str, source: str) -> None:
    """Refuse KEY and SOURCE the other way round."""
    with suppress(FormatError):
        StateKey.parse(source)
        if not Path(source).exists() and ("://" in key or Path(key).expanduser().exists()):
            words = f"mlstate add {shlex.quote(source)} {shlex.quote(key)}"
            raise typer.BadParameter(f"KEY comes before SOURCE: {words}")


def _on_the_hub(source: str) -> str | None:
    """What to write for a text that is the name of a repository on the hub, and no path here."""
    match = _REPOSITORY.fullmatch(source)
    if match is None or Path(source).exists() or Path(match[1]).exists():
        return None
    return f"check the path; a repository on the hub is hf://{match[1]}/{match[2]}"


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MOST_JOBS:
        raise typer.BadParameter(
            f"{text!r} is no number from 1 to {_MOST_JOBS}", param_hint="--jobs"
        )
    return int(text)


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _files(paths: list[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in map(Path, paths):
        if path.name in files:
            raise typer.BadParameter(
                f"two files have the name {path.name!r}: {files[path.name]} and {path}",
                param_hint="--file",
            )
        files[path.name] = path
    return files


def export(
    key: Key,
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="A .safetensors file, or a folder.")
    ],
    store: StoreOption = None,
    torch: Annotated[
        bool, typer.Option("--torch", help="A checkpoint that torch.load reads, instead.")
    ] = False,
    dcp: Annotated[
        bool,
        typer.Option("--dcp", help="A folder that torch.distributed.checkpoint reads, instead."),
    ] = False,
    max_shard_size: ShardSize = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a state's tensors as a plain .safetensors file, which anything reads.

    A folder gets the files that the tensors were adopted in. For one with the state's other files,
    too: mlstate materialize.
    """
    from mlstate.operations.export import export as write_export

    if torch and dcp:
        raise typer.BadParameter("--torch and --dcp are two formats; give one of them")
    view = opened(store)
    wanted = one_key(view, key)
    written = write_export(
        view,
        wanted,
        destination,
        format="torch" if torch else "dcp" if dcp else None,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
    )
    put_written("export", [wanted], written, pinned_now=pinned_now(view), as_json=as_json)


def materialize(
    key: Key,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder; made if missing.")],
    store: StoreOption = None,
    max_shard_size: ShardSize = None,
    component: Annotated[
        str | None,
        typer.Option("--component", metavar="NAME", help="Of a pipeline, one model: unet."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a state as a folder for from_pretrained, vLLM and the like: weights, config, tokenizer.

    What was adopted from a folder is written under the names that it had there. A folder that holds
    an earlier state is brought up to date: only what differs is written.
    """
    view = opened(store)
    wanted = one_key(view, key)
    written = view.materialize(
        wanted, folder, max_shard_size=max_shard_size, overwrite=overwrite, component=component
    )
    put_written("materialize", [wanted], written, pinned_now=pinned_now(view), as_json=as_json)
