"""Pinning: bring what has no digest yet, and say what it is."""

from __future__ import annotations

import uuid

from mlstate.digests import Digest
from mlstate.fetch.attempts import Attempts, name_of
from mlstate.fetch.context import Ground
from mlstate.fetch.download import bring_whole
from mlstate.fetch.unsized import UnknownGathering
from mlstate.format.state_object import StateObject
from mlstate.locations import Mirror
from mlstate.manifests import FileEntry
from mlstate.objects.cache import write_root
from mlstate.transport.hub import parse_hub_address

__all__ = ["Pinning"]


class Pinning(Attempts):
    """Brings a state, or a file, of which nobody knows the digest."""

    def pin(self, max_size: int) -> tuple[Digest, StateObject]:
        """Bring a state of which nobody knows the digest, and say what it is.

        Args:
            max_size: The most bytes of tensor data.

        Raises:
            MlstateError: As `Fetcher.fetch`.
        """
        size = self.entry.size
        for mirror in self.mirrors:
            identity = _fixed(mirror) or uuid.uuid4().hex
            gathering = UnknownGathering(self.receiver, identity, None, size, max_size)
            self.gather(mirror, gathering, max_bytes=max_size, check_sums=True)
            if gathering.digest is not None and gathering.state is not None:
                self.receiver.flush()
                write_root(self.receiver.store.root, gathering.digest, str(self.entry.key), ())
                return gathering.digest, gathering.state
            if _fixed(mirror) is None:
                gathering.discard()
        raise self.failure("no mirror of an unpinned state could be read", None)

    def pin_file(self, name: str, mirror: Mirror) -> FileEntry:
        """Bring a file of which nobody knows the digest, and say what it is.

        Raises:
            MlstateError: As `Fetcher.fetch`.
        """
        found: list[Digest] = []

        def bring(ground: Ground) -> None:
            found.append(bring_whole(ground.open(mirror.urls[0]), None, None, ground))

        if not self.attempt(name_of(mirror), bring):
            raise self.failure(f"the file {name!r} of a state could not be fetched", None)
        return FileEntry(found[0], (mirror,))


def _fixed(mirror: Mirror) -> str | None:
    """What a mirror is, if its files can never change; else None.

    Of a state without a digest nobody could tell a mixture from the whole. So what one run left
    is used by a later one only if it must be of the same files.
    """
    parts = mirror.parts or (mirror,)
    fixed = all(
        part.sha256 is None and url.startswith("hf://") and parse_hub_address(url).is_commit
        for part in parts
        for url in part.urls
    )
    return repr(mirror) if fixed else None
