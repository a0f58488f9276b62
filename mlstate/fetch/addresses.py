"""The files behind the address that a mirror gives: shards of an index, weights of a repository."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import quote, urlsplit, urlunsplit

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
    "companions",
    "hub_weights",
    "is_index_name",
    "parse_index",
    "settled_on_hub",
]

_SCHEME = "hf://"
_KEPT = re.compile(
    r"\.(json|jinja|md|model|tiktoken|txt|yaml|yml)$|^(licen[cs]e|notice|readme)[\w.-]*$",
    re.IGNORECASE,
)
"""What a model folder has beside its weights: configs, tokenizers, its card and its licence."""


def any_on_hub(entry: StateEntry) -> bool:
    """Whether a mirror of an entry is on the hub."""
    mirrors = [mirror for mirror in entry.mirrors if isinstance(mirror, Mirror)]
    parts = [part for mirror in mirrors for part in (mirror, *mirror.parts)]
    return any(url.startswith(_SCHEME) for part in parts for url in part.urls)


def settled_on_hub(
    entry: StateEntry, context: Context, beside: Collection[str] | None = None
) -> tuple[StateEntry, dict[str, Mirror]]:
    """The entry with a commit and a file in each address on the hub.

    Also gives the files beside the weights of the first mirror that named a whole repository: by
    name, each with where it is. With ``beside``, those of these names, of the first mirror.

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
        if where.is_commit and where.path is not None and not beside:
            return url  # nothing is to be asked
        listing = context.hub_files(str(replace(where, path=None)))
        exact = HubAddress(where.repo, listing.commit, where.path)
        if (exact.path is None or beside) and not files:
            names = companions(listing.files)
            if beside is not None:
                names = [name for name in beside if name in listing.files]
            files.update((name, Mirror((str(replace(exact, path=name)),))) for name in names)
        if exact.path is None:
            exact = replace(exact, path=hub_weights(listing.files, mirror.format, url))
        return str(exact)

    mirrors = tuple(settle(m) if isinstance(m, Mirror) else m for m in entry.mirrors)
    return replace(entry, mirrors=mirrors), files


def companions(files: tuple[str, ...]) -> list[str]:
    """The files of a repository that belong to its model: configs, tokenizers, card, licence."""
    return sorted(
        name
        for name in files
        if _KEPT.search(posixpath.basename(name))
        and not is_index_name(name)
        and not posixpath.basename(name).startswith(".")
    )


def is_index_name(name: str) -> bool:
    """Whether a name, or an address without a query, is that of an index of shards.

    One of a variant is for instance ``model.safetensors.index.fp16.json``.
    """
    return _INDEX_NAME.search(name) is not None


INDEX = ".safetensors.index.json"
_INDEX_NAME = re.compile(r"\.index(\.\w+)?\.json$", re.IGNORECASE)
_PLAIN_INDEX = re.compile(r"\.safetensors\.index(\.\w+)?\.json$", re.IGNORECASE)

LARGEST_INDEX = 100_000_000
_WEIGHTS = {
    "safetensors": ("model.safetensors", f"model{INDEX}", "adapter_model.safetensors"),
    "torch": ("pytorch_model.bin",),
    "torch-gzip": (),
}


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

    An address that ends in ``.safetensors.index.json`` stands for the shards that it lists, and
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
        address = given
        if given.startswith("hf://") and parse_hub_address(given).path is None:
            listing = context.hub_files(given)
            name = hub_weights(listing.files, mirror.format, given)
            address = f"{given.partition('@')[0]}@{listing.commit}/{name}"
        if _PLAIN_INDEX.search(_path(address)):
            index = _index(address, context, most)
            shards = {_beside(address, name): (index, name) for name in index.shards}
            found.extend(shards)
            if indexes is not None:
                indexes.update(shards)
        else:
            found.append(address)
    return found


def hub_weights(files: tuple[str, ...], form: str, address: str) -> str:
    """The file of a repository that has, or lists, its weights; a FormatError if there is none."""
    usual = _WEIGHTS[form]
    for name in usual:
        if name in files:
            return name
    raise FormatError(
        "this repository has no weights under a usual name",
        path=address,
        expected=" or ".join(usual) or "the path of a file",
        found=", ".join(sorted(files)[:20]) or "no files",
        remedy="give the path of the file after the revision",
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


def _beside(address: str, name: str) -> str:
    """The address of another file in the same folder; a query (a token of a signed URL) stays."""
    if "://" not in address:
        return posixpath.join(posixpath.dirname(address), name)
    split = urlsplit(address)
    name = quote(name) if split.scheme in ("http", "https") else name
    path = posixpath.join(posixpath.dirname(split.path), name)
    return urlunsplit(split._replace(path=path))
