"""`adopt`: weights that somebody else wrote, as a state of a store."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlstate.digests import Bytes
from mlstate.errors import (
    FormatError,
    ManifestError,
    ReadOnlyStoreError,
    SignatureError,
    StateNotFoundError,
    concerning,
)
from mlstate.fetch import OnProgress
from mlstate.fetch.progress import Meter, listener
from mlstate.fetch.said import Said
from mlstate.format.encode import TensorSource, check_not_empty
from mlstate.format.tensor_object import TensorSpec
from mlstate.locations import local_path
from mlstate.manifests import Manifest, StateEntry
from mlstate.objects.cache import forget_root, read_roots
from mlstate.operations.adopt_choice import Choice, make_choice
from mlstate.operations.adopt_into_manifest import adopt_into_manifest
from mlstate.operations.adopt_names import AdoptedNames
from mlstate.operations.adopt_report import (
    Adoption,
    AdoptReport,
    ByteCounter,
    added_of,
    digests_in,
    spared_of,
)
from mlstate.operations.sources import find_source
from mlstate.operations.transfer import ObjectCounter, StateTransfer
from mlstate.phrases import ANY_STORE, Phrase, flag
from mlstate.pickled.select import Selected
from mlstate.states import StateKey, check_key
from mlstate.stores.abstract import AnyStore, Found
from mlstate.stores.cache import CacheLike, PathLike
from mlstate.stores.manifest import ManifestStore
from mlstate.stores.save import SavingStore
from mlstate.stores.save_request import Content, SaveRequest, is_same
from mlstate.units import check_size, parse_limit
from mlstate.weights.files import open_weights

__all__ = ["adopt"]


def adopt(
    source: str | os.PathLike[str],
    key: StateKey,
    target: AnyStore | PathLike,
    *,
    files: Mapping[str, Content] | None = None,
    meta: Mapping[str, Any] | None = None,
    select: str | Sequence[str] | None = None,
    tensors_only: bool = False,
    strip_prefix: str = "",
    add_prefix: str = "",
    rename: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    weights: str | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    format: str | None = None,  # noqa: A002  # what a container is called, everywhere
    mirror: bool = False,
    overwrite: bool = False,
    verify: bool = False,
    max_size: int | str | None = None,
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
                                without torch, and nothing in it is run
    ``weights.npz``             NumPy's arrays, compressed or not; read without NumPy
    ``checkpoint-dcp/``         a folder of ``torch.distributed.checkpoint``, its shards joined
    ``https://…``, ``s3://…``   any of the files above, elsewhere
    ``hf://org/repo@revision``  a repository of the Hugging Face hub, as a folder; or a
                                folder, or a file, of one
    ==========================  ==============================================================

    Where the name of a file does not say what it is, its first bytes do. Trust is on first use:
    what the source gives now is what the digest will mean.

    Into a store the tensors are saved. Into a manifest, by ``mirror=True``, goes where they are:
    the source is its mirror, and what was read of it stays in the cache.

    What a safetensors file says of itself (``__metadata__``) is kept with the file's name, as the
    state's layout; `export` and `materialize` write it back.

    Args:
        source: A path or an address.
        key: The key for the state.
        target: A `LocalStateStore`, `MemoryStateStore`, `S3StateStore` or `GitHubReleaseStore`; or
            the path of a manifest, ``something.toml``, which is made if it is missing, and else
            edited: comments in it stay.
        files: Files to keep with it: name -> bytes, or the path of a file, which is read when it
            is needed; of a manifest paths alone, which become the mirrors of the files. They are
            added to those that lie beside the weights in a folder or a repository of the hub:
            config, tokenizer, card. An empty mapping keeps none at all.
        meta: What to note with it: licence, description, metrics.
        select: Of a torch checkpoint, the dotted path of the state dict inside; not needed where
            there is one only. Of several paths each is put in front of the names of its tensors:
            ``model.weight``, ``ema.weight``.
        tensors_only: Of a torch checkpoint, pass over entries of the state dict that are no tensors
            under a name: numbers, lists, None. The report names them.
        strip_prefix: What to take off the front of the names that have it, such as ``module.``. The
            count of an AveragedModel is left with its prefix; a manifest, which cannot say so,
            takes no such source.
        add_prefix: What to put in front of all names, after that.
        rename: Old -> new text; each is replaced wherever it occurs, before `add_prefix`.
        weights: Of a folder or a repository, the file that holds or lists the weights, where there
            are several.
        include: Patterns of files to keep with it, besides those kept by default:
            ``"optimizer.pt"``, ``"2_Dense/*"``.
        exclude: Patterns of files not to keep.
        format: The container (``"safetensors"``, ``"torch"``, ``"torch-gzip"``), where neither name
            nor first bytes tell it.
        mirror: Write the source into a manifest as a mirror.
        overwrite: Replace another state that has the key.
        verify: Read the objects that the store has already, and write anew what is damaged. Of a
            manifest it changes nothing.
        max_size: The most bytes that its tensors may have, and that a compressed file may become:
            a number, or for instance ``"5GB"``. Of a file elsewhere that must be read whole, its
            size, too. By default 1 TiB from elsewhere, and of compressed files 100 times their
            size, or 256 MiB.
        cache: Where what is read from elsewhere comes to first. By default the folder of a
            `LocalStateStore` itself; and else as for `ManifestStore`.
        offline: As for `ManifestStore`.
        progress: As for `ManifestStore`.

    Returns:
        What was done. The same weights under the same key again: nothing, and it says so; but in a
            manifest a source that is not among their mirrors yet is added behind them.

    Raises:
        StateExistsError: Other weights or files have this key; they stay.
        FormatError: This is no source of weights, or holds some that cannot be stored, or more than
            `max_size`; or the target fits not. Nothing was changed.
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
    most = parse_limit(max_size)
    choice = make_choice(
        select=select,
        weights=weights,
        form=format,
        tensors_only=tensors_only,
        strip_prefix=strip_prefix,
        add_prefix=add_prefix,
        rename=rename,
        include=include,
        exclude=exclude,
    )
    into = _check_target(target, mirror=mirror)
    counter = ByteCounter(listener(progress))
    with concerning(key):
        found = find_source(source, choice, offline=offline)
        bare = files is not None and not files
        kept: Mapping[str, Content] = {} if bare else found.files
        if isinstance(files, Mapping):
            kept = {**kept, **files}
        elif files is not None:
            kept = files  # refused with the right words
        request = SaveRequest(kept, meta, overwrite, verify, reused={}, written={})
        if found.layout and isinstance(kept, Mapping):
            request = replace(request, files={**found.indexes, **kept}, layout=found.layout)
        adoption = Adoption(key, found, request, bare, counter)
        if isinstance(into, Path):
            fetching = _fetching(cache, offline, counter, most)
            return adopt_into_manifest(into, adoption, fetching)
        if found.path is not None:
            return _from_file(adoption, found.path, into, choice, most)
        cache = _cache_for(into, key, cache, request)
        fetching = _fetching(cache, offline, counter, most)
        return _from_elsewhere(adoption, into, fetching)


def _fetching(
    cache: CacheLike | None, offline: bool | None, counter: ByteCounter, max_size: int | None
) -> ManifestStore:
    """What brings the source, of at most so many bytes, into a cache."""
    store = ManifestStore(Manifest({}), cache=cache, offline=offline, progress=counter)
    if max_size is not None:
        store.fetcher.max_size = max_size
    return store


def _check_target(target: object, *, mirror: bool) -> SavingStore | Path:
    """The store, or the path of the manifest; refused if it does not go with `mirror`."""
    if isinstance(target, SavingStore):
        if mirror:
            raise FormatError(
                "a store keeps the tensors themselves, and no mirrors",
                path=target,
                remedy="leave "
                + Phrase("mirror", "--mirror")
                + " out, or give the path of a manifest",
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
            remedy="of a folder of states, give "
            + Phrase("LocalStateStore(folder)", "--store FOLDER"),
        )
    if not mirror:
        raise FormatError(
            "a manifest stores no bytes",
            path=path,
            remedy=flag("mirror") + " writes into it where the source is; or give a store",
        )
    return path


def _cache_for(
    target: SavingStore, key: StateKey, cache: CacheLike | None, request: SaveRequest
) -> CacheLike | None:
    """The cache for the bytes of a source elsewhere: a folder's own objects, which write them once.

    Not so if the key is taken, since then most probably nothing is to be stored, or if what is in
    the folder may be damaged.
    """
    if cache is not None or target.fetcher is not None:
        return target.objects if cache is None else cache
    if target.folder is None or request.verify:
        return None
    return None if target.saver.is_taken(key) and not request.overwrite else target.folder


@dataclass(frozen=True)
class _MeteredTensor:
    """A tensor source that tells a meter when it has been read; see `TensorSource`."""

    name: str
    spec: TensorSpec
    memory: Hashable
    source: TensorSource
    meter: Meter

    @contextmanager
    def data(self) -> Iterator[Bytes]:
        with self.source.data() as data:
            yield data
        self.meter.add(self.spec.nbytes)


def _from_file(
    adoption: Adoption, path: Path, target: SavingStore, choice: Choice, max_size: int | None
) -> AdoptReport:
    """Save what lies on this machine, in one pass over its bytes."""
    key, request = adoption.key, adoption.request
    before = _recorded(target, key)
    meter = Meter(str(key), adoption.counter)
    with ExitStack() as stack:
        tensors: list[TensorSource] = []
        chosen: Selected | None = None
        naming = AdoptedNames()
        for part in adoption.source.translated:
            opened = open_weights(
                path,
                select=part.select,
                tensors_only=part.tensors_only,
                weights=choice.weights,
                form=choice.form,
                max_size=max_size,
            )
            found = stack.enter_context(opened)
            chosen = found.chosen if chosen is None else chosen
            sources = {source.name: source for source in found.sources}
            tensors += [
                _MeteredTensor(name, sources[old].spec, sources[old].memory, sources[old], meter)
                for name, old in naming(part, sources).items()
            ]
        naming.warn()
        size = sum(tensor.spec.nbytes for tensor in tensors)
        check_size(size, max_size)
        meter.expect(size)
        try:
            target.saver.save(key, tensors, request)
        finally:
            meter.end()
    after = _recorded(target, key)
    if after is None:
        raise StateNotFoundError("another process deleted this state meanwhile", path=target)
    digest = after.pinned_digest
    existed = (
        before is not None and is_same(before, digest, after) and _said(before) == _said(after)
    )
    spared = size if existed else sum((request.reused or {}).values())
    # A release says neither of what was written nor of what was there.
    added = sum(request.written.values()) if request.written else size - spared
    return adoption.report(
        digest,
        size,
        after.files,
        spared=spared,
        added=0 if existed else added,
        existed=existed,
        tensors=[tensor.name for tensor in tensors],
        chosen=chosen,
        counts=naming.counts,
    )


def _said(entry: StateEntry) -> tuple[object, ...]:
    return (entry.meta, entry.layout)


def _recorded(target: SavingStore, key: StateKey) -> StateEntry | None:
    # What cannot be read is replaced, if it may be.
    with suppress(ManifestError, SignatureError):
        return target.catalog.recorded(key)
    return None


def _from_elsewhere(
    adoption: Adoption, target: SavingStore, fetching: ManifestStore
) -> AdoptReport:
    """Fetch what is elsewhere into a cache, which may be the target's own folder, and save it."""
    key, request = adoption.key, adoption.request
    request.entry(key)  # before anything is fetched: what cannot be kept with it is refused here
    fetcher = fetching.fetcher
    own = fetcher.cache.own
    if own is None or own.root != target.folder:
        own = None
    present = digests_in(own)
    kept = set() if own is None else {root.digest for root in read_roots(own.root)}
    unpinned = StateEntry(key, None, mirrors=(adoption.source.mirror,))
    said: dict[str, Said] = {}
    naming = AdoptedNames()
    pinned = fetcher.pin(fetcher.pin_files(unpinned, adoption.beside), said, naming)
    naming.warn()
    found = Found(adoption.with_layout(pinned, said), fetching.objects)
    request = replace(request, layout=found.entry.layout or request.layout)
    digest = found.entry.pinned_digest
    try:
        transfer = StateTransfer(fetching, found, ObjectCounter(key, None))
        check_not_empty(transfer.encoded.state.specs)
        if found.entry.files:
            request = replace(request, files={**fetching.files_of(found), **request.files})
        wanted = request.entry(key)
        saved = transfer.save_into(target.saver, wanted, request)
    finally:
        if own is not None and digest not in kept:
            forget_root(own.root, digest)  # it is a state of the store now, not of a cache
    state = transfer.encoded.state
    size = state.nbytes
    there = present if own is not None else {*(request.reused or {})}
    return adoption.report(
        digest,
        size,
        wanted.files,
        spared=spared_of(state, digest, there) if saved else size,
        added=added_of(state, digest, there) if saved else 0,
        existed=not saved,
        tensors=state.specs,
        chosen=adoption.chosen(said),
        counts=naming.counts,
    )
