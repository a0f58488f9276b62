"""`adopt`: weights that somebody else wrote, as a state of a store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlstate.errors import (
    FormatError,
    ManifestError,
    ReadOnlyStoreError,
    StateNotFoundError,
    concerning,
)
from mlstate.fetch import OnProgress
from mlstate.fetch.progress import listener
from mlstate.format.encode import TensorSource
from mlstate.locations import local_path
from mlstate.manifests import Manifest, StateEntry
from mlstate.objects.roots import forget_root, read_roots
from mlstate.operations.adopt_mirror import mirror_into
from mlstate.operations.intake import Adoption, AdoptReport, Arrivals, Told, digests_in, spared_of
from mlstate.operations.sources import find_source
from mlstate.operations.transfer import Cargo, Count
from mlstate.phrases import ANY_STORE, flag
from mlstate.reading import VerifiedFiles
from mlstate.states import StateKey
from mlstate.stores.abstract import check_key
from mlstate.stores.cache import CacheLike, PathLike
from mlstate.stores.fetching import FetchingView
from mlstate.stores.local import LocalStateStore
from mlstate.stores.manifest import ManifestStore
from mlstate.stores.read import Found, StateView
from mlstate.stores.request import Content, Saves, Wish, is_same
from mlstate.weights.files import sources_of_file

__all__ = ["adopt"]


def adopt(
    source: str | os.PathLike[str],
    key: StateKey,
    target: Saves | PathLike,
    *,
    files: Mapping[str, Content] | None = None,
    meta: Mapping[str, Any] | None = None,
    select: str | None = None,
    mirror: bool = False,
    overwrite: bool = False,
    verify: bool = False,
    cache: CacheLike | None = None,
    offline: bool | None = None,
    progress: OnProgress | bool | None = None,
) -> AdoptReport:
    """Take in weights that are in a file: a state with a key and a digest is made of them.

    ==========================  ==============================================================
    ``model.safetensors``       a safetensors file
    ``….index.json``            the index of a sharded one; its shards are beside it
    a folder                    one of these or a checkpoint in it, with config and tokenizer
    ``resnet18.pth``            what ``torch.save`` wrote, compressed with gzip or not; read
                                with ``weights_only=True``
    ``https://…``, ``s3://…``   any of the files above, elsewhere
    ``hf://org/repo@revision``  a repository of the Hugging Face hub, with config and
                                tokenizer, or a file of one
    ==========================  ==============================================================

    Where the name of a file does not say what it is, its first bytes do. Trust is on first use:
    what the source gives now is what the digest will mean.

    Into a store the tensors are saved. Into a manifest, by ``mirror=True``, goes where they are:
    the source is its mirror, and what was read of it stays in the cache.

    Args:
        source: A path or an address.
        key: The key for the state.
        target: A `LocalStateStore`, `MemoryStateStore`, `S3StateStore` or `GitHubReleaseStore`; or
            the path of a manifest, ``something.toml``, which is made if it is missing, and else
            edited: comments in it stay.
        files: Files to keep with it: name -> bytes, or the path of a file, which is read when it
            is needed; of a manifest paths alone, which become the mirrors of the files. By default
            those that lie beside the weights in a folder or a repository of the hub.
        meta: What to note with it: licence, description, metrics.
        select: Of a torch checkpoint, the dotted path of the state dict inside.
        mirror: Write the source into a manifest as a mirror.
        overwrite: Replace another state that has the key.
        verify: Read the objects that the store has already, and write anew what is damaged. Of a
            manifest it changes nothing.
        cache: Where what is read from elsewhere comes to first. By default the folder of a
            `LocalStateStore` itself; and else as for `ManifestStore`.
        offline: As for `ManifestStore`.
        progress: As for `ManifestStore`.

    Returns:
        What was done. The same weights under the same key again: nothing, and it says so; but in a
            manifest a source that is not among their mirrors yet is added behind them.

    Raises:
        StateExistsError: Other weights or files have this key; they stay.
        FormatError: This is no source of weights, or holds some that cannot be stored; or the
            target fits not. Nothing was changed.
        ManifestError: The manifest cannot be read or edited; nothing was changed.
        FetchError: The source cannot be read.
        OfflineError: It is elsewhere, and the network may not be used.
        ReadOnlyStoreError: Nothing can be saved into the target.

    Example:
        >>> import tempfile, torch
        >>> from mlstate import LocalStateStore
        >>> file = tempfile.mkdtemp() + "/ones.pt"
        >>> torch.save({"weight": torch.ones(2)}, file)
        >>> store = LocalStateStore(tempfile.mkdtemp())
        >>> report = adopt(file, StateKey.parse("pytorch.linear.ones"), store)
        >>> report.digest == store.digest(report.key), report.size, report.existed
        (True, 8, False)
    """
    check_key(key)
    store = _check_target(target, mirror=mirror)
    arrivals = Arrivals(listener(progress))
    with concerning(key):
        found = find_source(source, select, offline=offline)
        wish = Wish(found.files if files is None else files, meta, overwrite, verify, reused={})
        adoption = Adoption(key, found, wish, files is not None, arrivals)
        if isinstance(store, Saves) and found.path is not None:
            return _from_file(adoption, store)
        if isinstance(store, Saves):
            cache = _cache_for(store, key, cache, wish)
        fetching = ManifestStore(Manifest({}), cache, offline=offline, progress=arrivals)
        if isinstance(store, Saves):
            return _from_elsewhere(adoption, store, fetching)
        return mirror_into(store, adoption, fetching)


def _check_target(target: object, *, mirror: bool) -> Saves | Path:
    """The store, or the path of the manifest.

    Raises:
        FormatError: It does not go with `mirror`.
        ReadOnlyStoreError: Nothing can be saved there.
    """
    if isinstance(target, Saves):
        if mirror:
            raise FormatError(
                "a store keeps the tensors themselves, and no mirrors",
                path=target,
                remedy="leave mirror out, or give the path of a manifest",
            )
        return target
    if not isinstance(target, str | os.PathLike):
        raise ReadOnlyStoreError(
            "nothing can be adopted into this store",
            path=target,
            expected=ANY_STORE,
            remedy="to add to a manifest, give its path, and " + flag("mirror"),
        )
    path = local_path(target)
    if path.suffix.lower() != ".toml":
        raise FormatError(
            "the path of a manifest ends in .toml",
            path=path,
            remedy="of a folder of states, give LocalStateStore(folder)",
        )
    if not mirror:
        raise FormatError(
            "a manifest stores no bytes",
            path=path,
            remedy=flag("mirror") + " writes into it where the source is; or give a store",
        )
    return path


def _cache_for(
    target: Saves, key: StateKey, cache: CacheLike | None, wish: Wish
) -> CacheLike | None:
    """Where the bytes of a source elsewhere come to first.

    Into a folder's own objects, so that they are written once; unless the key is taken, for then
    most probably nothing is to be stored; and unless what is there may be damaged.
    """
    if cache is None and isinstance(target, LocalStateStore):
        taken = target.exists(key) or target.states.case_variant(key)
        return None if wish.verify or (taken and not wish.overwrite) else target.folder
    if cache is None and isinstance(target, FetchingView):
        return target.objects
    return cache


def _from_file(adoption: Adoption, target: Saves) -> AdoptReport:
    """Save what lies on this machine, in one pass over its bytes."""
    key, source, wish = adoption.key, adoption.source, adoption.wish
    assert source.path is not None
    before = _recorded(target, key)
    with (
        sources_of_file(source.path, select=source.mirror.select) as sources,
        adoption.arrivals.meter(key) as meter,
    ):
        size = sum(tensor.spec.nbytes for tensor in sources)
        meter.expect(size)
        told: list[TensorSource] = [Told.of(tensor, meter) for tensor in sources]
        target._save(key, told, wish)
    after = _recorded(target, key)
    if after is None:
        raise StateNotFoundError("another process deleted this state meanwhile", path=target)
    digest = after.pinned_digest
    existed = before is not None and is_same(before, digest, after) and before.meta == after.meta
    spared = size if existed else sum((wish.reused or {}).values())
    return adoption.report(digest, size, after.files, spared=spared, existed=existed)


def _recorded(target: Saves, key: StateKey) -> StateEntry | None:
    assert isinstance(target, StateView)
    with suppress(ManifestError):  # what cannot be read is replaced, if it may be
        return target.recorded(key)
    return None


def _from_elsewhere(adoption: Adoption, target: Saves, fetching: ManifestStore) -> AdoptReport:
    """Fetch what is elsewhere into a cache, which may be the target's own folder, and save it."""
    key, wish = adoption.key, adoption.wish
    wish.entry(key)  # before anything is fetched: what cannot be kept with it is refused here
    fetcher = fetching._fetcher
    own = fetcher.cache.own
    if not isinstance(target, LocalStateStore) or own is None or own.root != target.folder:
        own = None
    having = digests_in(own)
    kept = set() if own is None else {root.digest for root in read_roots(own.root)}
    unpinned = StateEntry(key, None, mirrors=(adoption.source.mirror,))
    found = Found(fetcher.pin(fetcher.settle(unpinned)), fetching.objects)
    digest = found.entry.pinned_digest
    try:
        cargo = Cargo(fetching, found, Count(key, None))
        if not adoption.by_caller:
            files = VerifiedFiles(found.entry, lambda name: fetching.read_file(found, name))
            wish = replace(wish, files=files)
        wish = replace(wish, source=cargo)
        wanted = wish.entry(key)
        with cargo.blamed():
            saved = target._receive(cargo.encoded, wanted, wish)
    finally:
        if own is not None and digest not in kept:
            forget_root(own.root, digest)  # it is a state of the store now, not of a cache
    state = cargo.encoded.state
    size = spared = state.nbytes
    if saved:
        spared = sum((wish.reused or {}).values()) if own is None else spared_of(state, having)
    return adoption.report(digest, size, wanted.files, spared=spared, existed=not saved)
