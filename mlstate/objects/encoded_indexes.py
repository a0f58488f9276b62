"""The index of a state's encoded objects, made from what a store has: see `EncodedIndex`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

from mlstate.digests import Digest
from mlstate.errors import FormatError, ObjectNotFoundError
from mlstate.format.encoded_index import EncodedForm, EncodedIndex
from mlstate.format.encoded_object import HEAD_SIZE, Head
from mlstate.format.state_object import StateObject
from mlstate.objects.interface import EncodedObjectStore, EncodingObjectStore
from mlstate.parallel import for_each

__all__ = ["index_of", "is_said", "write_index"]


def write_index(
    store: EncodingObjectStore, digest: Digest, state: StateObject, threads: int
) -> bool:
    """Write which objects of a state are encoded, for whoever copies it; or that none is.

    Args:
        store: Where they are.
        digest: The state digest.
        state: Its state object.
        threads: How many objects are asked for at once.

    Returns:
        Whether some are there in encoded form only.
    """
    index = index_of(store, digest, {ref.digest for ref in state.refs.values()}, threads)
    try:
        data = index.encode() if index.forms else None
    except FormatError:  # it would be longer than anybody reads
        data = None
    store.put_encoded_index(digest, data)
    return not all(form.plain for form in index.forms.values())


def is_said(store: EncodingObjectStore, digest: Digest, needed: Iterable[Digest]) -> bool:
    """Whether the index of a state says of these objects that they are there encoded, and only so.

    Not so, for one, if a compaction was killed before it wrote that.
    """
    try:
        data = store.encoded_index(digest)
        forms = {} if data is None else EncodedIndex.parse(data, digest).forms
    except FormatError:
        return False
    return all(one in forms and not forms[one].plain for one in needed)


def index_of(
    store: EncodedObjectStore, state: Digest, objects: Iterable[Digest], threads: int
) -> EncodedIndex:
    """The index of a state with these objects; what goes at this moment is left out."""
    forms: dict[Digest, EncodedForm] = {}
    wanted = set(objects)

    def look(digest: Digest) -> None:
        if store.encoded_size(digest) is None:  # one in trash/ can be opened, and is not served
            return
        try:
            with closing(store.open_encoded(digest)) as file:
                head = Head.peek(file.read(0, min(HEAD_SIZE, file.size)))
                plain = store.plain_size(digest) is not None
                forms[digest] = EncodedForm(file.size, head.base, head.depth, plain)
        except (ObjectNotFoundError, FormatError):
            pass

    asked: set[Digest] = set()
    while wanted:
        for_each(look, wanted, threads)
        asked |= wanted
        wanted = {form.base for form in forms.values() if form.base is not None} - asked
    return EncodedIndex(state, _sound(forms))


def _sound(forms: dict[Digest, EncodedForm]) -> dict[Digest, EncodedForm]:
    """The forms that readers take: each base is of a lower depth."""

    def is_sound(form: EncodedForm) -> bool:
        base = None if form.base is None else forms.get(form.base)
        return base is None or base.depth < form.depth

    return {digest: form for digest, form in forms.items() if is_sound(form)}
