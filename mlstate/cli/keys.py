"""The states that a command is about: keys, patterns, or all; their completion in a shell."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING

import typer

from mlstate.cli.default_store import default_store
from mlstate.cli.output import note
from mlstate.errors import FormatError, MlstateError, StateNotFoundError
from mlstate.states import StateKey

if TYPE_CHECKING:
    from mlstate.stores.read import StateStore

__all__ = ["chosen_keys", "complete_keys", "new_key", "one_key"]

_VERSION = re.compile(r"\d\.\d[^.]*\Z")
"""A text that ends as a version does: the dot in it begins another part of a key."""


def one_key(store: StateStore, text: str) -> StateKey:
    """The one state that a text names, by its key or an alias.

    A `StateNotFoundError` names near misses.
    """
    if text in store.aliases:
        text = str(store.aliases[text])
    try:
        key = StateKey.parse(text)
    except FormatError as error:
        near = f"to look into it: mlstate ls {text}" if _is_place(text) else None
        error.remedy = near or _near_misses(store, text) or error.remedy or "see: mlstate ls"
        raise
    if not store.exists(key):
        raise StateNotFoundError(
            "there is no such state here",
            key=text,
            path=store,
            remedy=_near_misses(store, text) or "see what is there: mlstate ls",
        )
    return key


def _is_place(text: str) -> bool:
    """Whether a text that is no key is a manifest or a folder on this machine."""
    return os.path.exists(text)


def new_key(text: str) -> StateKey:
    """The key that a text gives to something new; what may be read in more than one way is told."""
    key = StateKey.parse(text)
    extra = key.state_type.extra
    if extra:
        note(f"understood as {_in_parts(key)}")
        if _VERSION.search(text):
            last = f"{extra[-1]}-{key.training_id}"
            note(f"if {extra[-1]}.{key.training_id} is one name, write it as {last}")
    return key


def _in_parts(key: StateKey) -> str:
    kind = key.state_type
    extra = " and ".join(kind.extra)
    return (
        f"backend {kind.backend}, architecture {kind.architecture}, extra {extra}, "
        f"training id {key.training_id}"
    )


def chosen_keys(
    store: StateStore, texts: Sequence[str], *, everything: bool | None
) -> list[StateKey]:
    """The states that a command line names, each once, in its order.

    Texts are keys, or patterns with ``*``, ``?`` and ``[...]``. ``everything`` is None for a
    command that has no option ``--all``. Raises a `StateNotFoundError` if a state is not there or
    nothing fits a pattern, and a `typer.BadParameter` unless either keys or ``--all`` were given.
    """
    if not texts and not everything:
        raise typer.BadParameter("give keys" if everything is None else "give keys, or --all")
    if texts and everything:
        raise typer.BadParameter("give keys or --all, not both")
    if everything:
        return store.get_state_keys()
    keys: dict[StateKey, None] = {}
    having: list[StateKey] | None = None
    for text in texts:
        if not set(text) & set("*?["):
            keys[one_key(store, text)] = None
            continue
        having = store.get_state_keys() if having is None else having
        fitting = [key for key in having if fnmatchcase(str(key), text)]
        if not fitting:
            raise StateNotFoundError("no state fits this pattern", path=store, found=text)
        keys.update(dict.fromkeys(fitting))
    return list(keys)


def complete_keys(context: typer.Context, incomplete: str) -> list[str]:
    """The keys that begin with a text, of a store on this machine, which answers at once."""
    where = next(filter(None, map(context.params.get, ("store", "source", "manifest"))), None)
    try:
        if "://" in str(where) or str(where).startswith("github:"):
            return []
        if where is None:
            store = default_store(offline=True)
        else:
            from mlstate.stores.open import open_store

            store = open_store(where, offline=True)
        keys, aliases = store.get_state_keys(), sorted(store.aliases)
    except (MlstateError, OSError):
        return []
    return [name for name in [*map(str, keys), *aliases] if name.startswith(incomplete)]


def _near_misses(store: StateStore, text: str) -> str | None:
    names = [*map(str, store.get_state_keys()), *store.aliases]
    near = _having_part(store, text) or get_close_matches(text, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else None


def _having_part(store: StateStore, text: str, most: int = 3) -> list[str]:
    """The first keys that a text is a part of, by their dots."""
    having = (str(key) for key in store.get_state_keys())
    return list(islice((key for key in having if f".{text}." in f".{key}."), most))
