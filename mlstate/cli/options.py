"""Options and arguments that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlstate.cli.default_store import default_name, default_store
from mlstate.cli.keys import complete_keys
from mlstate.cli.output import warning

if TYPE_CHECKING:
    from mlstate.states import StateKey
    from mlstate.stores.read import StateStore

__all__ = [
    "All",
    "DryRun",
    "Json",
    "Key",
    "Keys",
    "MaxSize",
    "Overwrite",
    "StoreArgument",
    "StoreOption",
    "Verify",
    "name_of",
    "opened",
    "pinned_now",
    "store_and_keys",
    "store_option",
    "unreached_servers",
]

STORE_HELP = (
    "A folder, a manifest or a folder of them, s3://bucket/prefix, or github:owner/repo. "
    "By default that of the project; without one the manifests that come with mlstate and other "
    "libraries, and those of MLSTATE_MANIFESTS."
)


def store_option(help_: str) -> Any:
    """The option ``--store`` of a command, with a help of its own."""
    return typer.Option(
        "--store", "-s", envvar="MLSTATE_STORE", show_envvar=True, help=help_, metavar="STORE"
    )


StoreOption = Annotated[str | None, store_option(STORE_HELP)]
StoreArgument = Annotated[
    str | None, typer.Argument(metavar="STORE", help="The same as --store.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Key = Annotated[
    str,
    typer.Argument(
        metavar="KEY", help="A state, as mlstate ls names it.", autocompletion=complete_keys
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY",
        help="States, or patterns such as 'pytorch.resnet*'.",
        autocompletion=complete_keys,
        show_default=False,
    ),
]
All = Annotated[bool, typer.Option("--all", "-a", help="All states of the store.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", "-n", help="Change nothing, say what would be done.")
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify", help="Read what is there already, and write anew what of it is damaged."
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option(
        "--max-size",
        metavar="SIZE",
        help="Refuse what is larger, or becomes larger when it is decompressed: 50GB, say.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def name_of(store: str | None) -> str:
    """The name of a store for people."""
    return store or default_name()


def store_and_keys(
    context: typer.Context, where: str | None, keys: list[str], store: str | None
) -> tuple[str | None, list[str]]:
    """The store and the keys: the first word is the store, unless ``--store`` was typed."""
    source = context.get_parameter_source("store")
    if where is not None and source is not None and source.name == "COMMANDLINE":
        return store, [where, *keys]
    return where or store, keys


def opened(
    store: str | None, *, create: bool = False, quiet: bool = False, manifests: bool = False
) -> StateStore:
    """The store that an option names, or else the default; it shows progress unless ``quiet``.

    With ``create`` it may be a folder that is missing or empty; with ``manifests`` it is, by
    default, that of the manifests of a project. A server that cannot be reached is named once.
    """
    from mlstate.cli.progress import progress

    shown = None if quiet else progress()
    if store is None:
        return _told_of_outages(default_store(manifests=manifests, progress=shown))
    from mlstate.stores.open import open_store

    return _told_of_outages(open_store(store, create=create, progress=shown))


def _told_of_outages(view: StateStore) -> StateStore:
    """A store that names each server that cannot be reached, once."""
    if view.fetcher is not None:
        view.fetcher.outages.tell = _tell_of_outage
    return view


def _tell_of_outage(server: str, reason: str) -> None:
    warning(f"{server}: {reason}; asked last from now on")


def pinned_now(view: StateStore) -> list[StateKey]:
    """The states whose first use was this command: it has pinned them."""
    return [] if view.first_use is None else view.first_use.done


def unreached_servers(view: StateStore) -> list[tuple[str, str]]:
    """The servers that a store could not reach, with the reasons."""
    return [] if view.fetcher is None else view.fetcher.outages.known()
