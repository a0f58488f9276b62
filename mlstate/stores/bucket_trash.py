"""What a pruning of a bucket holds in trash/, brought into the cache by a load that lacks it.

A pruning beside a save moves an object to trash/ for a moment, and back; one that is killed leaves
it there until the next one. To read it there takes no right to write to the bucket.
"""

from __future__ import annotations

from contextlib import suppress

from mlstate.buckets.values import Item
from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, TransportError
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.manifests import StateEntry
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.cache import Cache
from mlstate.objects.decoded import DecodedObject
from mlstate.objects.receiving import Receiver
from mlstate.reading import Names, needs_of

__all__ = ["BucketTrash"]


class BucketTrash:
    """The trash of a store in a bucket, for the loads of that store."""

    def __init__(self, objects: BucketObjectStore, cache: Cache) -> None:
        self._objects = objects
        self._cache = cache

    def bring(self, entry: StateEntry, names: Names, *, files: bool) -> bool:
        """Bring what is missing of a state, and is in the trash, into the cache, verified.

        Arguments as of `needs_of`.

        Returns:
            Whether to fetch again: something came, or is in its place in the bucket by now.
        """
        own = self._cache.own
        if own is None:
            return False
        helped = False
        with suppress(TransportError, IntegrityError):  # the error of the fetch is the one to tell
            trashed, there = self._objects.trashed(), self._objects.survey()
            receiver = Receiver(own)
            for _ in range(2):  # the state object names the others
                for digest, spec in self._missing(entry, names, files=files).items():
                    came = self._bring(trashed.get(digest, []), digest, receiver)
                    came = came or self._decode(digest, spec, receiver)
                    helped |= came or there.size(digest) is not None
            receiver.flush()
        return helped

    def _missing(
        self, entry: StateEntry, names: Names, *, files: bool
    ) -> dict[Digest, TensorSpec | None]:
        """What is missing; of tensors with type and shape."""
        needs = needs_of(entry, self._cache, names, files=files)
        missing: dict[Digest, TensorSpec | None] = {}
        if needs.lacks_state:
            missing[entry.pinned_digest] = None
        missing |= {ref.digest: ref.spec for ref in needs.refs.values()}
        return missing | {file.digest: None for file in needs.files.values()}

    def _decode(self, digest: Digest, spec: TensorSpec | None, receiver: Receiver) -> bool:
        """Bring a tensor that the bucket has in encoded form, or in such a form in the trash."""
        if spec is None:
            return False
        with suppress(TransportError, IntegrityError, FormatError):
            memory = DecodedObject(self._objects, TensorRef(spec, digest)).memory
            with receiver.arriving() as arriving:
                arriving.fill(iter([memory]))
                arriving.publish(digest)
            return True
        return False

    def _bring(self, items: list[Item], digest: Digest, receiver: Receiver) -> bool:
        client = self._objects.place.client
        for item in items:
            # It may have been put back meanwhile, or be damaged.
            with suppress(TransportError, IntegrityError):
                with client.reading(item.path) as reading, receiver.arriving() as arriving:
                    arriving.fill(reading.chunks)
                    arriving.publish(digest)
                return True
        return False
