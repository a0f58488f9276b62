"""The commands that change what a state is called, and what is noted: `mv`, `meta`, `alias`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlstate.cli.keys import new_key, one_key
from mlstate.cli.options import Json, Key, Overwrite, StoreOption, opened
from mlstate.cli.output import note, print_fields, print_json, put
from mlstate.cli.values import pairs, typed

if TYPE_CHECKING:
    from mlstate.stores.read import StateStore

__all__ = ["alias", "editable", "meta", "mv"]


def editable(view: StateStore, store: str | None) -> Any:
    """What changes of a store's states are made in: the store, or the manifest of this name."""
    from mlstate.errors import ReadOnlyStoreError

    if view.manifest is None:
        return view
    listed = store or getattr(view, "path", None)
    if listed is None:
        raise ReadOnlyStoreError(
            "the default store is several manifests together",
            path=view,
            remedy="give the manifest that lists the state: --store FILE. To make room in the "
            "cache: mlstate prune",
        )
    return listed


def mv(
    old: Key,
    new: Annotated[str, typer.Argument(metavar="NEW", help="The key that it gets.")],
    store: StoreOption = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Give a state another key, in a store or in a manifest.

    No tensor is moved. In a manifest, aliases of the state follow.
    """
    from mlstate.operations.rename import rename

    view = opened(store, quiet=True)
    before, after = one_key(view, old), new_key(new)
    rename(editable(view, store), before, after, overwrite=overwrite)
    if as_json:
        print_json("mv", {"old": before, "new": after})
        return
    put(f"{before}  is {after} now")


def meta(
    key: Key,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[set NAME=VALUE... | unset NAME...]",
            help="What to note, or to take away; by default all is shown.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Show what is noted of a state, or change it: set accuracy=0.93, unset accuracy.

    Numbers, true and false stay what they are; a value in double quotes is a text: 'version="1"'.
    """
    from mlstate.operations.meta import set_meta

    view = opened(store, quiet=True)
    wanted = one_key(view, key)
    verb, *rest = words or ["show"]
    if verb not in ("set", "unset", "show") or bool(rest) is (verb == "show"):
        raise typer.BadParameter("give set NAME=VALUE, or unset NAME")
    if verb == "show":
        noted = view.meta(wanted)
    else:
        values = typed(pairs(rest, "meta set")) if verb == "set" else {}
        unset = rest if verb == "unset" else ()
        noted = set_meta(editable(view, store), wanted, values, unset=unset)
    if as_json:
        print_json("meta", {"key": wanted, "meta": noted})
        return
    print_fields((name, str(value)) for name, value in noted.items())
    if not noted:
        note(f"nothing is noted of {wanted}")


def alias(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="best, say.", show_default=False)
    ] = None,
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="The state that it is to name.", show_default=False),
    ] = None,
    remove: Annotated[bool, typer.Option("--rm", help="Take the alias away.")] = False,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Give a state of a manifest another name, which stands for its key on the command line.

    Without NAME the aliases are listed.
    """
    from mlstate.errors import ReadOnlyStoreError
    from mlstate.operations.alias import set_alias

    view = opened(store, quiet=True)
    if name is not None:
        if bool(key) is remove:
            raise typer.BadParameter("give NAME and KEY, or --rm NAME")
        if key is not None and "." in name and "." not in key:
            raise typer.BadParameter(f"NAME comes before KEY: mlstate alias {key} {name}")
        if view.manifest is None:
            raise ReadOnlyStoreError(
                "aliases are kept in manifests",
                path=view,
                remedy="write one with mlstate copy --manifest FILE, or mlstate add --mirror, and "
                "give it as --store FILE",
            )
        set_alias(editable(view, store), name, None if key is None else one_key(view, key))
        view = opened(store, quiet=True)
    if as_json:
        print_json("alias", {"aliases": dict(view.aliases)})
        return
    print_fields((alias, str(view.aliases[alias])) for alias in sorted(view.aliases))
    if not view.aliases:
        note("there are no aliases here")
