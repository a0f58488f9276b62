"""Reading with proof: no byte leaves here before its digest was compared."""

from __future__ import annotations

from mlstate.digests import Digest, Hasher
from mlstate.errors import IntegrityError
from mlstate.objects.interface import ObjectStore

__all__ = ["check_digest", "check_size", "digest_of", "read_verified"]

_REMEDY = "restore this object from a backup, or save the state again with verify=True"


def read_verified(
    store: ObjectStore, digest: Digest, *, what: str, max_size: int | None = None
) -> bytes:
    """Read a whole object and verify it.

    Args:
        store: Where from.
        digest: Which object.
        what: What it is, for the error: "the state object", say.
        max_size: The most bytes that it may have; checked before memory is spent.

    Returns:
        Its bytes.

    Raises:
        ObjectNotFoundError: It is not there.
        IntegrityError: Its bytes are others than its digest says, or too many.
    """
    with store.open(digest) as file:
        size = file.seek(0, 2)
        if max_size is not None and size > max_size:
            raise IntegrityError(
                f"{what} is too large",
                path=store.locate(digest),
                expected=f"at most {max_size} bytes",
                found=f"{size} bytes",
            )
        file.seek(0)
        data = file.read()
    check_digest(store, digest, Digest.of(data), what=what)
    return data


def digest_of(store: ObjectStore, digest: Digest) -> Digest:
    """The digest of the bytes that an object really has, read piece by piece.

    Raises:
        ObjectNotFoundError: It is not there.
    """
    hasher = Hasher()
    with store.open(digest) as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return hasher.digest()


def check_digest(store: ObjectStore, expected: Digest, found: Digest, *, what: str) -> None:
    """Refuse an object whose bytes have another digest.

    Raises:
        IntegrityError: They have.
    """
    if found != expected:
        raise IntegrityError(
            f"{what} is damaged: its bytes are not those that its digest names",
            path=store.locate(expected),
            expected=expected,
            found=found,
            remedy=_REMEDY,
        )


def check_size(store: ObjectStore, digest: Digest, expected: int, found: int, *, what: str) -> None:
    """Refuse an object of the wrong length, without reading it.

    Raises:
        IntegrityError: It is too short or too long.
    """
    if found != expected:
        raise IntegrityError(
            f"{what} is damaged: it has the wrong length",
            path=store.locate(digest),
            expected=f"{expected} bytes",
            found=f"{found} bytes",
            remedy=_REMEDY,
        )
