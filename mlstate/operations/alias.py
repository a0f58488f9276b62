"""`set_alias` gives a state another name in a manifest: ``best``, ``latest``."""

from __future__ import annotations

from dataclasses import replace

from mlstate.errors import StateNotFoundError
from mlstate.locations import local_path
from mlstate.manifests import Manifest
from mlstate.manifests.entries import check_alias
from mlstate.manifests.update import change_manifest
from mlstate.operations.enlist import read_manifests
from mlstate.states import StateKey, check_key
from mlstate.stores.cache import PathLike

__all__ = ["set_alias"]


def set_alias(manifest: PathLike, name: str, key: StateKey | None) -> StateKey | None:
    """Give a state another name in a manifest, which moves if it names another state now.

    The command line takes an alias wherever it takes a key; in Python it is looked up in
    ``store.aliases``. The digest that a load asks for is that of the state: where an alias moves,
    the manifest says so in a line that is seen in a diff.

    Args:
        manifest: A manifest file; or a folder of them, of which the file is written that has the
            alias, else the one that lists the state.
        name: The alias: letters, digits, ``-`` and ``_``, without dots.
        key: A state that the manifest lists; None: take the alias away.

    Returns:
        The state that had this alias before, or None.

    Raises:
        FormatError: This is no name of an alias.
        StateNotFoundError: The manifest has no such state, or no alias to take away.
        ManifestError: A manifest cannot be read or edited.
    """
    check_alias(name)
    if key is not None:
        check_key(key)
    files = read_manifests(manifest, [] if key is None else [key])
    having = [path for path, read in files if name in read.aliases]
    listing = [path for path, read in files if key in read.states]
    if key is None and not having:
        raise StateNotFoundError(
            "the manifest has no such alias",
            path=local_path(manifest),
            expected=", ".join(sorted({a for _, read in files for a in read.aliases})) or "none",
            found=name,
        )
    before: list[StateKey] = []

    def change(old: Manifest) -> Manifest:
        before[:] = [old.aliases[name]] if name in old.aliases else []
        others = {alias: other for alias, other in old.aliases.items() if alias != name}
        return replace(old, aliases=others if key is None else {**others, name: key})

    for path in having or listing[:1]:
        change_manifest(path, change)
    return before[0] if before else None
