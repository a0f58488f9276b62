"""What every part of one attempt at one mirror shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlstate.fetch.reader import Reader
from mlstate.objects.receiving import Receiver
from mlstate.transport import Resource, Transports
from mlstate.transport.hub import HubListing

__all__ = ["Ground"]


@dataclass(frozen=True)
class Ground:
    """Opens addresses, reads streams, takes what arrives.

    Attributes:
        transports: Opens addresses.
        reader: Reads streams.
        receiver: Takes what arrives.
        base: The folder that relative addresses are relative to.
        max_bytes: The most bytes of a file that are read from front to back.
    """

    transports: Transports
    reader: Reader
    receiver: Receiver
    base: Path | None
    max_bytes: int

    def open(self, address: str) -> Resource:
        """A resource that tries again what may pass."""
        return self.reader.patient(self.transports.open(address, base=self.base))

    def hub_files(self, address: str) -> HubListing:
        """The commit and the files of a repository on the hub; what may pass is tried again."""
        return self.reader.patiently(lambda: self.transports.hub_files(address))
