"""What a release gives to anybody: its assets, at addresses that are a convention. No API."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from urllib.parse import quote

from mlstate.errors import FormatError, OfflineError, TransportError
from mlstate.fetch import Fetcher
from mlstate.fetch.reader import read_exactly
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from mlstate.states import StateKey
from mlstate.stores.github.assets import LEGACY, MAX_POINTER, OLD, POINTER, parse_pointer, stem_of
from mlstate.stores.remote import without_local_places
from mlstate.transport import retrying

__all__ = ["ReleaseWeb"]

_CHUNK = 1 << 20


class ReleaseWeb:
    """Reads pointers, and checkpoints of the predecessor.

    Args:
        fetcher: Has the way to the network, and the cache.
        folder_of: The address that all assets of a key's release have in front.
    """

    def __init__(self, fetcher: Fetcher, folder_of: Callable[[StateKey], str]) -> None:
        self._fetcher = fetcher
        self.folder_of = folder_of
        self._pinned: dict[StateKey, StateEntry] = {}

    def url(self, key: StateKey, suffix: str) -> str:
        """Where an asset of a state is downloaded."""
        return f"{self.folder_of(key)}/{quote(stem_of(key) + suffix)}"

    def pointed(self, key: StateKey) -> StateEntry | None:
        """What the pointer says; the old one while another takes its place. None without one."""
        for suffix in (POINTER, OLD, POINTER):  # it may change between the first and the second
            url = self.url(key, suffix)
            data = self._read(url, MAX_POINTER)
            if data is not None:
                return without_local_places(parse_pointer(data, key, url))
        return None

    def has_legacy(self, key: StateKey) -> bool:
        """Whether there is a checkpoint of the predecessor."""
        try:
            with self._fetcher.transports() as transports:
                retrying(transports.open(self.url(key, LEGACY)), self._fetcher.retries).size()
        except TransportError as error:
            if error.status != 404:
                raise
            return False
        return True

    def legacy(self, key: StateKey) -> StateEntry | None:
        """A checkpoint of the predecessor, brought into the cache once; None without one.

        Raises:
            FetchError: It cannot be read, or is no checkpoint of plain tensors.
        """
        if key not in self._pinned:
            if not self.has_legacy(key):
                return None
            url = self.url(key, LEGACY)
            mirror = parse_mirror({"url": url, "format": "torch-gzip"})
            self._pinned[key] = self._fetcher.pin(
                StateEntry(key, None, None, (mirror,), origin=url)
            )
        return self._pinned[key]

    def legacy_bytes(self, key: StateKey) -> bytes | None:
        """What is in a checkpoint of the predecessor, unpacked; None without one.

        Raises:
            FormatError: It is damaged, or larger than what may be fetched.
        """
        url, most = self.url(key, LEGACY), self._fetcher.max_size
        data = self._read(url, most)
        if data is None:
            return None
        try:
            content = bytearray()
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                while len(content) <= most and (chunk := file.read(_CHUNK)):
                    content += chunk
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise FormatError("this checkpoint is damaged", path=url, found=error) from None
        if max(len(data), len(content)) > most:
            raise FormatError(
                "this is larger than what may be fetched",
                path=url,
                expected=f"at most {most} bytes",
            )
        return bytes(content)

    def _read(self, url: str, most: int) -> bytes | None:
        """A file, or the first bytes of a larger one: one more than `most`. None without one."""
        try:
            with self._fetcher.transports() as transports:
                resource = retrying(transports.open(url), self._fetcher.retries)
                with resource.read() as stream:
                    data = read_exactly(stream, most + 1)
        except OfflineError as error:
            error.remedy = "unset MLSTATE_OFFLINE, or load by digest= or through a manifest"
            raise
        except TransportError as error:
            if error.status != 404:
                raise
            return None
        return data
