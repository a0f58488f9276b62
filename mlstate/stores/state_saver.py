"""Saving states: objects first, then the state object, then the state file, in this order.

So a crash at any point leaves the complete state or none, and at most objects that nothing names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from mlstate.digests import Bytes, Digest
from mlstate.errors import ManifestError, SignatureError, concerning
from mlstate.format import tensor_object
from mlstate.format.encode import (
    EncodedState,
    TensorSource,
    check_not_empty,
    check_sources,
    encode_state,
)
from mlstate.log import info
from mlstate.manifests import StateEntry
from mlstate.objects import WritableObjectStore
from mlstate.objects.interface import EncodingObjectStore
from mlstate.objects.saving import EncodeObject, ObjectSaver, absent
from mlstate.parallel import THREADS, for_each
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey
from mlstate.stores.catalog import Catalog
from mlstate.stores.save_request import (
    Content,
    SaveRequest,
    case_variant_exists,
    check_same,
    content_of,
)
from mlstate.stores.statefiles import StateFiles

__all__ = ["StateSaver"]

_LARGE = 1 << 24


class StateSaver:
    """Saves into state files and an object store; see `Saver`.

    The catalog is that of the store, which may have states without state files. So many threads
    hash and write objects at once.
    """

    def __init__(
        self,
        files: StateFiles,
        objects: WritableObjectStore,
        catalog: Catalog,
        threads: int = THREADS,
    ) -> None:
        self.files = files
        self.objects = objects
        self.threads = threads
        self._catalog = catalog

    def is_taken(self, key: StateKey) -> bool:
        """Whether the key is taken; see `Saver.is_taken`."""
        return self._catalog.exists(key) or self.files.case_variant(key) is not None

    def delete(self, key: StateKey) -> bool:
        """Remove a state file; see `Saver.delete`. The objects stay until pruning takes them."""
        removed = self.files.remove(key)
        info("%s %s", key, "removed" if removed else "was not there")
        return removed

    def change(self, key: StateKey, old: bytes, new: bytes) -> bool:
        """Write a state file over exactly this content; see `Saver.change`."""
        return self.files.change(key, old, new)

    def save(self, key: StateKey, sources: list[TensorSource], request: SaveRequest) -> None:
        """Save a state, each object hashed and written in one pass; see `Saver.save`."""
        with concerning(key):
            # Before anything is written: meta that TOML cannot hold is refused here.
            wanted = request.entry(key)
            check_not_empty(sources)
            check_sources(sources)
            if self._is_settled(wanted, request, lambda: encode_state(sources)):
                return
            if self._encodes(request):
                encoded = encode_state(sources, threads=self.threads)
                saver = self._encoding_saver(encoded, wanted.key, request)
                self._put_all(saver, encoded, wanted, request)
                self._complete(saver, encoded, wanted, request, encodes=True)
                return
            saver = self.object_saver(verify=request.verify)
            with saver.settled():
                encoded = encode_state(sources, threads=self.threads, store=saver.store)
                self.take_files(saver, wanted, request)
            with saver.settled():
                saver.take(encoded.digest, [encoded.data])
                self._complete(saver, encoded, wanted, request)

    def receive(self, encoded: EncodedState, wanted: StateEntry, request: SaveRequest) -> bool:
        """Save a state of another store; see `Saver.receive`."""
        with concerning(wanted.key):
            if self._is_settled(wanted, request, lambda: encoded):
                return False
            encodes = self._encodes(request)
            if encodes:
                saver = self._encoding_saver(encoded, wanted.key, request)
            else:
                saver = self.object_saver(verify=request.verify)
            self._put_all(saver, encoded, wanted, request)
            self._complete(saver, encoded, wanted, request, encodes=encodes)
        return True

    def _encodes(self, request: SaveRequest) -> bool:
        """Whether tensors are encoded at once: the caller says so, or the store's settings."""
        if not isinstance(self.objects, EncodingObjectStore):
            return False
        return self.objects.compacts() if request.compact is None else bool(request.compact)

    def _encoding_saver(
        self, encoded: EncodedState, key: StateKey, request: SaveRequest
    ) -> ObjectSaver:
        """What saves objects in encoded form where that saves a tenth."""
        from mlstate.stores.bases import StateEncoder, bases_in_family, bases_in_state

        objects = self.objects
        assert isinstance(objects, EncodingObjectStore)
        named = request.compact if isinstance(request.compact, StateKey) else None
        if named is None:
            bases = bases_in_family(objects, self._catalog, key)
        else:
            bases = bases_in_state(objects, self._catalog, named)
        objects.writer()  # which makes it a store
        near = None if request.source is None else request.source.objects
        deeper = named is not None
        encoder = StateEncoder(objects, encoded.state, bases, deeper=deeper, near=near)
        return self.object_saver(verify=request.verify, encode=encoder.encode)

    def stored(self, key: StateKey) -> tuple[StateEntry | None, bool]:
        """The entry of a key, and whether it was saved: otherwise it is that of a checkpoint."""
        entry = self._catalog.recorded(key)
        if entry is not None:
            return entry, True
        found = self._catalog.checkpoint(key)
        return (None if found is None else found.entry), False

    def existing(self, wanted: StateEntry, request: SaveRequest) -> tuple[StateEntry | None, bool]:
        """The entry that has the key already, and whether it was saved; see `stored`.

        Raises:
            StateExistsError: A state has a key that differs from it in case only.
            ManifestError: The state file cannot be read, and is not to be overwritten.
        """
        try:
            existing, is_saved = self.stored(wanted.key)
        except (ManifestError, SignatureError) as error:
            if not request.overwrite:
                error.remedy = "save with " + OVERWRITE + " to replace it"
                raise
            existing, is_saved = None, False
        if existing is None and (variant := self.files.case_variant(wanted.key)):
            raise case_variant_exists(variant)
        return existing, is_saved

    def _is_settled(
        self, wanted: StateEntry, request: SaveRequest, encode: Callable[[], EncodedState]
    ) -> bool:
        """Whether the state is stored already, and stays; then objects that it lacks are put again.

        Raises:
            StateExistsError: Another state has the key, or one that differs from it in case only.
            ManifestError: The state file cannot be read, and is not to be overwritten.
        """
        existing, is_saved = self.existing(wanted, request)
        if existing is None:
            return False
        encoded = encode()
        if not request.stays(existing, encoded.digest, wanted, is_saved=is_saved):
            return False
        needed = _sizes(encoded, wanted)
        if is_saved and (request.verify or absent(self.objects, needed, self.threads)):
            saver = self.object_saver(verify=request.verify)
            self._put_all(saver, encoded, wanted, request)
        request.warn_of_other_meta(existing, wanted)
        return True

    def _complete(
        self,
        saver: ObjectSaver,
        encoded: EncodedState,
        wanted: StateEntry,
        request: SaveRequest,
        *,
        encodes: bool = False,
    ) -> None:
        """Write the state file, once all objects have been taken."""
        self.publish(saver, encoded, wanted, request, encodes=encodes)
        # Pruning may have taken a reused object before the state file named it: put it again.
        if saver.lost():
            self._put_all(self.object_saver(verify=False), encoded, wanted, request)
        sizes = {digest: source.spec.nbytes for digest, source in encoded.sources.items()}
        sizes[encoded.digest] = encoded.state.inline_nbytes
        if request.reused is not None:
            request.reused.update({d: sizes[d] for d in sizes if d in saver.reused})
        if request.written is not None:
            request.written.update({d: sizes[d] for d in sizes if d not in saver.reused})

    def _say_encoded(self, encoded: EncodedState) -> None:
        """Say what is encoded: in the settings, and in an index what it costs on the wire.

        In the settings once more: an undoing that saw nothing encoded yet may have taken it away.
        One that comes later sees what is there now.
        """
        from mlstate.objects.encoded_indexes import write_index

        objects = self.objects
        assert isinstance(objects, EncodingObjectStore)
        if write_index(objects, encoded.digest, encoded.state, self.threads):
            objects.say_encoded()

    def publish(
        self,
        saver: ObjectSaver,
        encoded: EncodedState,
        wanted: StateEntry,
        request: SaveRequest,
        *,
        encodes: bool = False,
    ) -> None:
        """Make durable what this saver took, the last of a state's objects; write the state file.

        Raises:
            StateExistsError: Another state has got the key meanwhile.
        """
        saver.flush()
        if encodes or saver.took_encoded:
            self._say_encoded(encoded)
        entry = replace(wanted, digest=encoded.digest, size=encoded.state.nbytes)
        self._write_state_file(entry, overwrite=request.overwrite)
        info("%s saved: %s, %d objects reused", entry.key, encoded.digest, len(saver.reused))

    def take_files(self, saver: ObjectSaver, wanted: StateEntry, request: SaveRequest) -> None:
        """Store the files that are kept with a state."""
        for name, entry in wanted.files.items():
            saver.take(entry.digest, [content_of(request.files[name])])

    def _write_state_file(self, entry: StateEntry, *, overwrite: bool) -> None:
        data = self.files.format(entry)
        if overwrite:
            self.files.replace(entry.key, data)
            return
        while not self.files.create(entry.key, data):
            winner = self._catalog.recorded(entry.key)
            if winner is None:
                continue  # it was deleted since: the key is free again
            check_same(winner, entry.pinned_digest, entry)
            return

    def object_saver(self, *, verify: bool, encode: EncodeObject | None = None) -> ObjectSaver:
        """Begin to save objects; ``encode`` is as of `ObjectSaver`."""
        return ObjectSaver(self.objects, verify=verify, threads=self.threads, encode=encode)

    def _put_all(
        self, saver: ObjectSaver, encoded: EncodedState, wanted: StateEntry, request: SaveRequest
    ) -> None:
        """Put the objects that are not there, the state object last, and make them durable."""
        sizes = encoded.sizes()
        if request.source is not None:
            needed = _sizes(encoded, wanted)
            request.source.bring(lambda: absent(self.objects, needed, self.threads))

        def put(digest: Digest) -> None:
            saver.take_if_needed(digest, sizes[digest], partial(_parts, encoded.sources[digest]))
            if request.source is not None:
                request.source.passed(digest, sizes[digest])

        # Few large ones at once: a store may have to hold all of one in memory.
        with saver.settled():
            for large, threads in ((True, min(THREADS, self.threads)), (False, self.threads)):
                chosen = [digest for digest in encoded.sources if (sizes[digest] > _LARGE) is large]
                for_each(put, sorted(chosen, key=lambda digest: -sizes[digest]), threads)
            for name, file in wanted.files.items():
                content = partial(_content_parts, request.files, name)
                saver.take_if_needed(file.digest, None, content)
        with saver.settled():
            saver.take(encoded.digest, [encoded.data])
            saver.flush()


def _sizes(encoded: EncodedState, wanted: StateEntry) -> dict[Digest, int | None]:
    """All objects of a state with their sizes; None for files, whose sizes no entry gives."""
    sizes: dict[Digest, int | None] = {file.digest: None for file in wanted.files.values()}
    sizes.update(encoded.sizes())
    return sizes


@contextmanager
def _parts(source: TensorSource) -> Iterator[list[Bytes]]:
    with source.data() as data:
        yield [tensor_object.header(source.spec), data]


@contextmanager
def _content_parts(files: Mapping[str, Content], name: str) -> Iterator[list[Bytes]]:
    yield [content_of(files[name])]
