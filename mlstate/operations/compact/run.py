"""The run of a plan: what is encoded, verified, and then needed no more in plain form.

Batch by batch: the encoded forms are written and read back, it is looked whether each can be
decoded with what is there *then* (see `Chains`), the store's settings say that readers have to know
them, and the plain objects go to trash/. A process that is killed leaves plain objects, with
encoded forms beside some, or encoded ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock

from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, LimitError, MlstateError, TransportError
from mlstate.fetch.progress import Meter
from mlstate.format import tensor_object
from mlstate.format.state_object import TensorRef
from mlstate.objects import FolderObjectStore
from mlstate.objects.chains import Chains
from mlstate.objects.encoding import Original, encode_beside, encoded_estimate, tensor_data
from mlstate.objects.interface import EncodingObjectStore, TrashingObjectStore
from mlstate.operations.compact.plan import Step
from mlstate.parallel import THREADS, for_each

__all__ = ["Run", "make_plain", "write_plain"]

_BATCH, _BATCH_BYTES = 256, 1 << 30
"""So many objects, or bytes of them, are retired together: what a kill makes do again."""
_LARGE = 1 << 24
"""Objects of more bytes are encoded one after the other, each by several threads."""


class Run:
    """One run of a plan.

    Args:
        objects: The store.
        chains: What is encoded there.
        threads: How many small objects are encoded at once.
        meter: Is told of each object that is done.

    Attributes:
        sizes: What was encoded, with the sizes of the encoded forms in bytes.
        unread: What could not be read, with the error.
    """

    def __init__(
        self, objects: EncodingObjectStore, chains: Chains, threads: int, meter: Meter
    ) -> None:
        self._objects = objects
        self._chains = chains
        self._threads = threads
        self._meter = meter
        self._lock = Lock()
        self.sizes: dict[Digest, int] = {}
        self._moved: dict[Digest, int] = {}
        self.unread: dict[Digest, MlstateError] = {}
        self._full: list[Exception] = []

    @property
    def trash(self) -> int:
        """The bytes of the plain objects that went to trash/."""
        has_trash = isinstance(self._objects, TrashingObjectStore)
        return sum(self._moved.values()) if has_trash else 0

    def estimate(self, steps: Sequence[Step]) -> None:
        """Say about how large each encoded form would be; nothing is written, nor verified."""

        def look(step: Step) -> None:
            with self._read(step) as (data, base):
                size = encoded_estimate(data, step.ref.spec, base)
            if size is not None:
                self.sizes[step.ref.digest] = size

        for_each(self._noting(look), steps, self._threads)

    def encode(self, steps: Sequence[Step]) -> None:
        """Encode, verify and retire.

        Raises:
            LimitError: The disk has no room for an encoded form. What was done before stays done,
                and all else is as it was.
            OSError: The disk is full, or cannot be written; likewise.
        """
        refs = {step.ref.digest: step.ref for step in steps}
        encoded: list[Digest] = []
        for batch in _batches(steps):
            done = self._encode_all(batch)
            self._retire(done, refs)
            encoded += done
            if self._full:
                raise self._full[0]
        if encoded:  # once more, for what other processes have replaced meanwhile
            self._chains.look(None)
            self._put_back(encoded, refs)

    def _encode_all(self, batch: Sequence[Step]) -> list[Digest]:
        done: dict[Digest, int] = {}

        def encode(step: Step, threads: int) -> None:
            if self._full:
                return
            try:
                with self._read(step) as (data, base):
                    self._check_room(encoded_estimate(data, step.ref.spec, base))
                    size = encode_beside(self._objects, step.ref, data, base, threads)
            except TransportError:
                raise  # the next one would meet the same
            except (OSError, LimitError) as error:
                if isinstance(error, IntegrityError):
                    raise  # a missing object is a missing file, too
                self._full.append(error)
                return
            if size is not None:
                done[step.ref.digest] = size

        large = [step for step in batch if step.ref.spec.nbytes > _LARGE]
        small = [step for step in batch if step.ref.spec.nbytes <= _LARGE]
        for_each(self._noting(lambda step: encode(step, 1)), small, self._threads)
        for_each(self._noting(lambda step: encode(step, THREADS)), large, 1)
        self.sizes |= done
        return list(done)

    def _noting(self, work: Callable[[Step], None]) -> Callable[[Step], None]:
        """Work on a step; what cannot be read is noted, and stays as it is."""

        def noting(step: Step) -> None:
            try:
                work(step)
            except (IntegrityError, FormatError) as error:
                with self._lock:
                    self.unread[step.ref.digest] = error
            self._meter.add(tensor_object.object_size(step.ref.spec))

        return noting

    @contextmanager
    def _read(self, step: Step) -> Iterator[tuple[memoryview, Original | None]]:
        """The data of the object of a step, and of its base."""
        with ExitStack() as stack:
            data = stack.enter_context(tensor_data(self._objects, step.ref))
            base = None
            if step.base is not None:
                its = stack.enter_context(tensor_data(self._objects, step.base))
                base = Original(step.base, its, step.depth - 1)
            yield data, base

    def _check_room(self, needed: int | None) -> None:
        """Refuse, by a LimitError, to begin what the disk has no room for."""
        if needed is None or not isinstance(self._objects, FolderObjectStore):
            return
        free = shutil.disk_usage(self._objects.root).free
        if free < needed:
            raise LimitError(
                "the disk has no room for an encoded object beside the plain one",
                path=self._objects.root,
                expected=f"{needed} bytes",
                found=f"{free} bytes",
                remedy="make room there; mlstate prune empties the trash of what is old",
            )

    def _retire(self, done: Sequence[Digest], refs: dict[Digest, TensorRef]) -> None:
        """Take the plain objects away whose encoded forms were written, where that is safe."""
        if not done:
            return
        self._chains.look(done)
        safe = [digest for digest in done if self._chains.may_go(digest, self._is_plain)]
        for digest in set(done).difference(safe):  # another process has encoded what it is near to
            del self.sizes[digest]
            with suppress(FormatError):  # the plain object is gone: see below
                self._objects.drop_encoded(digest)
        if safe:
            self._objects.say_encoded()

        def retire(digest: Digest) -> None:
            try:
                if self._objects.retire_plain(digest):
                    self._moved[digest] = tensor_object.object_size(refs[digest].spec)
            except FormatError:  # another process has undone it meanwhile: it stays plain
                self.sizes.pop(digest, None)

        for_each(retire, safe, self._threads)
        self._chains.look(done)
        self._put_back(done, refs)

    def _put_back(self, digests: Sequence[Digest], refs: dict[Digest, TensorRef]) -> None:
        """Put the plain objects back that are needed after all, whoever took them away."""
        for digest in digests:
            if self._chains.needs_plain(digest, self._is_plain) and not self._is_plain(digest):
                make_plain(self._objects, refs[digest])
                self._moved.pop(digest, None)
                self.sizes.pop(digest, None)

    def _is_plain(self, digest: Digest) -> bool:
        return self._objects.plain_size(digest) is not None


def make_plain(objects: EncodingObjectStore, ref: TensorRef) -> None:
    """Have an object in plain form in its place again: from the trash, or written anew."""
    if objects.plain_size(ref.digest) is not None:
        return
    if isinstance(objects, TrashingObjectStore):
        objects.restore(ref.digest)
    if objects.plain_size(ref.digest) is None:  # what came back may be its encoded form
        write_plain(objects, ref)


def write_plain(objects: EncodingObjectStore, ref: TensorRef) -> None:
    """Write an object plainly from what it is decoded to, verified.

    Raises:
        IntegrityError: It cannot be decoded.
    """
    with tensor_data(objects, ref) as data:
        writer = objects.writer()
        writer.put(ref.digest, [tensor_object.header(ref.spec), data])
        writer.flush()


def _batches(steps: Sequence[Step]) -> Iterator[list[Step]]:
    batch: list[Step] = []
    nbytes = 0
    for step in steps:
        batch.append(step)
        nbytes += step.ref.spec.nbytes
        if len(batch) == _BATCH or nbytes >= _BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch
