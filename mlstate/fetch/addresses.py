"""The files behind the address that a mirror gives: shards of an index, weights of a repository."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from mlstate.candidates import (
    companions,
    is_index_name,
    named_container,
    possible_weights,
    shown_names,
    usual_shards,
)
from mlstate.errors import FormatError, concerning
from mlstate.fetch.attempts import Context
from mlstate.fetch.reader import read_exactly
from mlstate.locations import Mirror, check_file_names
from mlstate.manifests import StateEntry
from mlstate.texts import load_json
from mlstate.transport import Resource
from mlstate.transport.hub import HubAddress, HubListing, parse_hub_address
from mlstate.warn import warn

__all__ = [
    "LARGEST_INDEX",
    "Places",
    "ShardIndex",
    "addresses_of",
    "any_on_hub",
    "beside",
    "hub_weights",
    "parse_index",
    "settled_on_hub",
]

_SCHEME = "hf://"


def any_on_hub(entry: StateEntry) -> bool:
    """Whether a mirror of an entry is on the hub."""
    mirrors = [mirror for mirror in entry.mirrors if isinstance(mirror, Mirror)]
    parts = [part for mirror in mirrors for part in (mirror, *mirror.parts)]
    return any(url.startswith(_SCHEME) for part in parts for url in part.urls)


def settled_on_hub(entry: StateEntry, context: Context) -> tuple[StateEntry, dict[str, Mirror]]:
    """The entry with a commit and a file in each address on the hub.

    Also gives the files beside the weights of the first mirror that named a whole repository: by
    name, each with where it is.

    Raises:
        TransportError: The hub does not say.
        FormatError: A repository has no weights, or several that may be meant.
        OfflineError: Sockets are not allowed.
    """
    files: dict[str, Mirror] = {}

    def settle(mirror: Mirror) -> Mirror:
        parts = tuple(settle(part) for part in mirror.parts)
        urls = tuple(exact for url in mirror.urls for exact in commit(url, mirror))
        return replace(mirror, urls=urls, parts=parts)

    def commit(url: str, mirror: Mirror) -> tuple[str, ...]:
        if not url.startswith(_SCHEME):
            return (url,)
        where = parse_hub_address(url)
        if where.is_commit and where.path is not None:
            return (url,)  # nothing is to be asked
        listing = context.hub_files(str(replace(where, path=None)))
        exact = HubAddress(where.repo, listing.commit, where.path)
        if exact.path is not None:
            return (str(exact),)
        if not files:
            names = companions(listing.files)
            files.update((name, Mirror((str(replace(exact, path=name)),))) for name in names)
        chosen = hub_weights(listing.files, mirror.format, url)
        return tuple(str(replace(exact, path=name)) for name in chosen)

    mirrors = tuple(settle(m) if isinstance(m, Mirror) else m for m in entry.mirrors)
    return replace(entry, mirrors=mirrors), files


LARGEST_INDEX = 100_000_000


@dataclass(frozen=True)
class ShardIndex:
    """An index of shards: what it says of the files beside it.

    Attributes:
        address: Where it is.
        places: The shard of each tensor, by the tensor's name.
        total_size: The bytes of all tensors, or None if it does not say.
    """

    address: str
    places: Mapping[str, str]
    total_size: int | None

    @property
    def shards(self) -> list[str]:
        """The names of the shards, sorted."""
        return sorted(set(self.places.values()))

    def check(self, found: Mapping[str, Mapping[str, int]]) -> None:
        """Compare it with what the shards have: each by its name, with the bytes of its tensors.

        A shard of another version has other names or sizes. That is said in a warning, and no
        error: programs that convert models list the names of tied tensors that they left out.
        """
        lacking = [n for n, shard in sorted(self.places.items()) if n not in found.get(shard, ())]
        size = sum(sum(tensors.values()) for tensors in found.values())
        said = []
        if lacking:
            more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
            said.append(f"that there is {lacking[0]!r}{more}, which its shards do not have")
        if self.total_size not in (None, size):
            said.append(f"that the tensors have {self.total_size} bytes, and they have {size}")
        if said:
            warn(
                f"{self.address} says {' and '.join(said)}: see that all shards are those of this "
                "index"
            )


class Places(Protocol):
    """What opens addresses: the `Context` of an attempt, say."""

    def open(self, address: str) -> Resource:
        """The resource at an address."""

    def hub_files(self, address: str) -> HubListing:
        """The commit and the files of a repository on the hub."""


def addresses_of(
    mirror: Mirror,
    context: Places,
    most: int = LARGEST_INDEX,
    indexes: dict[str, tuple[ShardIndex, str]] | None = None,
) -> list[str]:
    """The addresses of all files of a mirror, or of one part of one.

    An address that ends as that of an index stands for the shards that it lists, and
    one of a whole repository on the hub for the weights in it.

    Args:
        mirror: The mirror, or the part.
        context: What opens addresses.
        most: How long an index may be, in bytes.
        indexes: Takes the index, and the name in it, of each shard, by the shard's address.

    Raises:
        TransportError: An index or a repository cannot be read.
        FormatError: It does not say what it should.
    """
    found: list[str] = []
    for given in mirror.urls:
        addresses = [given]
        if given.startswith(_SCHEME) and parse_hub_address(given).path is None:
            listing = context.hub_files(given)
            exact = HubAddress(parse_hub_address(given).repo, listing.commit)
            chosen = hub_weights(listing.files, mirror.format, given)
            addresses = [str(replace(exact, path=name)) for name in chosen]
        for address in addresses:
            if is_index_name(_path(address)):
                index = _index(address, context, most)
                shards = {beside(address, name): (index, name) for name in index.shards}
                found.extend(shards)
                if indexes is not None:
                    indexes.update(shards)
            else:
                found.append(address)
    return found


def hub_weights(files: tuple[str, ...], form: str, address: str) -> tuple[str, ...]:
    """The file of a repository that has, or lists, its weights; or all shards without an index.

    Raises:
        FormatError: It has none in this container, or several that may be meant.
    """
    of_form = [n for n in files if "/" not in n and not n.startswith(".")]
    of_form = [name for name in of_form if named_container(name) == form]
    found = possible_weights(of_form, address, usual_shards(of_form))
    if len(found) == 1:
        return found[0]
    others = [name for name in files if named_container(name) is not None] or files
    raise FormatError(
        "this repository has several files of weights"
        if found
        else "this repository has no weights of this format",
        path=address,
        expected=f"one file of weights of the format {form}, not in a folder of the repository",
        found=shown_names([unit[0] for unit in found] or others) or "no files",
        remedy="give the path of the file after the revision, and its format",
    )


def _index(address: str, context: Places, most: int) -> ShardIndex:
    with context.open(address).read() as stream:
        text = read_exactly(stream, most + 1)
    return parse_index(text, address, most)


def parse_index(text: bytes, address: str, most: int = LARGEST_INDEX) -> ShardIndex:
    """Read an index of shards; ``address`` is where it is.

    Raises:
        FormatError: It is too long, does not say what it should, or names something outside its
            folder.
    """
    with concerning(path=address):
        index = load_json(text, "an index of shards", most=most)
    shards = index.get("weight_map")
    if (
        not isinstance(shards, dict)
        or not shards
        or not all(isinstance(name, str) for name in shards.values())
    ):
        raise FormatError(
            "an index of shards has no weight_map", path=address, found=json.dumps(index)[:200]
        )
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    found = ShardIndex(address, shards, total if type(total) is int else None)
    check_file_names(found.shards)
    return found


def _path(address: str) -> str:
    return urlsplit(address).path if "://" in address else address


def beside(address: str, name: str) -> str:
    """The address of another file in the same folder; a query (a token of a signed URL) stays."""
    if "://" not in address:
        return os.path.join(os.path.dirname(address), name)
    split = urlsplit(address)
    name = quote(name) if split.scheme in ("http", "https") else name
    path = posixpath.join(posixpath.dirname(split.path), name)
    return urlunsplit(split._replace(path=path))
