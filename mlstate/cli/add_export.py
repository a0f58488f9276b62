"""The commands from and to files of other tools: `add`, `export`, `materialize`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mlstate.cli.keys import one_key
from mlstate.cli.options import (
    Json,
    Key,
    MaxSize,
    Overwrite,
    StoreOption,
    Verify,
    opened,
    store_option,
)
from mlstate.cli.output import human_size, note, print_json, put, put_written

__all__ = ["add", "export", "materialize"]

ShardSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Split into files of at most so much, with an index: 5GB."),
]


def add(
    key: Annotated[str, typer.Argument(metavar="KEY", help="What it is to be called.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A .safetensors file, a folder, a torch checkpoint, a URL of one, or "
            "hf://org/repo@revision.",
        ),
    ],
    store: Annotated[
        str | None,
        store_option(
            "Where to: a folder, which may be new, s3://bucket/prefix, github:owner/repo; "
            "or with --mirror a manifest."
        ),
    ] = None,
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
            help="What to note with it: licence=MIT; may be repeated.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    verify: Verify = False,
    max_size: MaxSize = None,
    as_json: Json = False,
) -> None:
    """Adopt weights from a file, a URL or the Hugging Face hub: into a store, or a manifest."""
    from mlstate.cli.progress import progress
    from mlstate.operations.adopt import adopt
    from mlstate.states import StateKey

    if store is None:
        raise typer.BadParameter(
            "say where to: a folder, s3://..., github:..., or a manifest with --mirror",
            param_hint="--store",
        )
    target: Any = store if store.endswith(".toml") else opened(store, create=True, quiet=True)
    report = adopt(
        source,
        StateKey.parse(key),
        target,
        files=_files(file or []) or None,
        meta=_pairs(meta or [], "--meta") or None,
        select=select or None,
        tensors_only=tensors_only,
        weights=weights,
        include=include or (),
        exclude=exclude or (),
        strip_prefix=strip_prefix or "",
        add_prefix=add_prefix or "",
        rename=_pairs(rename or [], "--rename"),
        format=container,
        mirror=mirror,
        overwrite=overwrite,
        verify=verify,
        max_size=max_size,
        progress=progress(),
    )
    if as_json:
        print_json("add", report)
        return
    put(f"{report.key}  {report.digest}  {human_size(report.size)}")
    if report.existed:
        note("it was there already")
    if report.prefix:
        note(
            f"all names begin with {report.prefix} as those of a wrapped model do; "
            f"--strip-prefix {report.prefix} takes it off"
        )
    if report.select:
        note(f"what {report.select} holds in the checkpoint, and nothing else of it")
    if report.passed_over:
        note(f"without {_listed(report.passed_over)}: no tensors")
    if report.files:
        note(f"with {', '.join(report.files)}")
    if report.skipped:
        note(f"not taken: {_listed(report.skipped)}")


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            form = "OLD=NEW" if option == "--rename" else "NAME=VALUE"
            raise typer.BadParameter(f"{text!r} is not {form}", param_hint=option)
        if name in pairs:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        pairs[name] = value
    return pairs


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
    max_shard_size: ShardSize = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a state's tensors as a plain .safetensors file, which anything reads.

    A folder gets the files that the tensors were adopted in. For one with the state's other files,
    too: mlstate materialize.
    """
    from mlstate.operations.export import export as write_export

    view = opened(store)
    wanted = one_key(view, key)
    written = write_export(
        view,
        wanted,
        destination,
        format="torch" if torch else None,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
    )
    put_written("export", [wanted], written, as_json=as_json)


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
    put_written("materialize", [wanted], written, as_json=as_json)
