"""The index beside the encoded objects of a store, for each state: what they cost on the wire.

It is a hint for whoever fetches a state: see `mlstate.format.encoded_index`. It is written after
the objects have changed their form; one that is missing, or old, is no damage.
"""

from __future__ import annotations

from contextlib import suppress

from mlstate.digests import Digest
from mlstate.errors import FormatError, ObjectNotFoundError
from mlstate.format import layout
from mlstate.format.encoded_index import EncodedForm, EncodedIndex
from mlstate.format.state_object import StateObject
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.durable import write_in_store
from mlstate.objects.encoded_forms import head_of
from mlstate.objects.folder import FolderObjectStore
from mlstate.objects.interface import EncodedObjectStore
from mlstate.parallel import for_each

__all__ = ["write_encoded_index"]


def write_encoded_index(
    store: EncodedObjectStore, digest: Digest, state: StateObject, threads: int
) -> None:
    """Write the index of a state as its objects are now; without an encoded one there is none.

    Args:
        store: The store; one in memory has no indexes.
        digest: The state digest.
        state: The state.
        threads: How many objects are looked at at once.

    Raises:
        OSError: It cannot be written.
        TransportError: The bucket cannot be asked.
    """
    forms = _forms(store, {ref.digest for ref in state.refs.values()}, threads)
    try:
        data = EncodedIndex(digest, forms).encode() if forms else None
    except FormatError:  # another process changes their forms at this moment
        return
    name = layout.encoded_index_path(digest)
    if isinstance(store, FolderObjectStore):
        if data is not None:
            write_in_store(store.root, name, [data])
        else:
            (store.root / name).unlink(missing_ok=True)
    elif isinstance(store, BucketObjectStore):
        path = store.place.path(name)
        if data is not None:
            store.place.uploads.put(path, data)
        elif store.place.client.head(path) is not None:
            store.place.client.delete(path)


def _forms(
    store: EncodedObjectStore, wanted: set[Digest], threads: int
) -> dict[Digest, EncodedForm]:
    """The encoded forms of some objects, and of what they are built on."""
    forms: dict[Digest, EncodedForm] = {}

    def look(digest: Digest) -> None:
        size = store.encoded_size(digest)
        if size is not None:
            with suppress(FormatError, ObjectNotFoundError):  # it is damaged, or goes
                head = head_of(store, digest)
                is_plain = store.plain_size(digest) is not None
                forms[digest] = EncodedForm(size, head.base, head.depth, is_plain)

    seen: set[Digest] = set()
    while wanted:
        for_each(look, wanted, threads)
        seen |= wanted
        bases = {forms[digest].base for digest in wanted if digest in forms}
        wanted = {base for base in bases if base is not None} - seen
    return forms
