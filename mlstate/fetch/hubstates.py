"""A state on the Hugging Face hub: its exact commit, and what lies beside its weights."""

from __future__ import annotations

import posixpath
from dataclasses import replace

from mlstate.fetch.addresses import INDEX, hub_weights
from mlstate.fetch.context import Ground
from mlstate.locations import Mirror
from mlstate.manifests import StateEntry
from mlstate.transport.hub import HubAddress, parse_hub_address

__all__ = ["any_on_hub", "companions", "settled_on_hub"]

_SCHEME = "hf://"
_KEPT = (".json", ".jinja", ".model", ".tiktoken", ".txt")
"""How the names end of what a model folder needs beside its weights: configs, tokenizers."""


def any_on_hub(entry: StateEntry) -> bool:
    """Whether a mirror of an entry is on the hub."""
    mirrors = [mirror for mirror in entry.mirrors if isinstance(mirror, Mirror)]
    parts = [part for mirror in mirrors for part in (mirror, *mirror.parts)]
    return any(url.startswith(_SCHEME) for part in parts for url in part.urls)


def settled_on_hub(entry: StateEntry, ground: Ground) -> tuple[StateEntry, dict[str, Mirror]]:
    """An entry whose mirrors on the hub name a commit and a file.

    Returns:
        The entry; and the files beside the weights of the first mirror that named a whole
        repository, by name, each with where it is.

    Raises:
        TransportError: The hub does not say.
        FormatError: A repository has no weights under a usual name.
        OfflineError: Sockets are not allowed.
    """
    files: dict[str, Mirror] = {}

    def settle(mirror: Mirror) -> Mirror:
        parts = tuple(settle(part) for part in mirror.parts)
        return replace(mirror, urls=tuple(commit(url, mirror) for url in mirror.urls), parts=parts)

    def commit(url: str, mirror: Mirror) -> str:
        if not url.startswith(_SCHEME):
            return url
        where = parse_hub_address(url)
        listing = ground.hub_files(str(replace(where, path=None)))
        exact = HubAddress(where.repo, listing.commit, where.path)
        if exact.path is None:
            if not files:
                names = companions(listing.files)
                files.update((name, Mirror((str(replace(exact, path=name)),))) for name in names)
            exact = replace(exact, path=hub_weights(listing.files, mirror.format, url))
        return str(exact)

    mirrors = tuple(settle(m) if isinstance(m, Mirror) else m for m in entry.mirrors)
    return replace(entry, mirrors=mirrors), files


def companions(files: tuple[str, ...]) -> list[str]:
    """The files of a repository that `from_pretrained` may look for: configs and tokenizers."""
    return sorted(
        name
        for name in files
        if posixpath.splitext(name)[1] in _KEPT
        and not name.endswith((INDEX, ".bin.index.json"))
        and not posixpath.basename(name).startswith(".")
    )
