"""Reading bytes from addresses: of web servers, the Hugging Face hub, buckets, files.

`Transports` opens addresses, what it opens is a `Resource`, and `retrying` makes one persistent.
"""

from __future__ import annotations

from mlstate.retries import Patience, Retries, retried
from mlstate.transport.interface import Resource, Stream
from mlstate.transport.open import Transports
from mlstate.transport.resuming import retrying

__all__ = ["Patience", "Resource", "Retries", "Stream", "Transports", "retried", "retrying"]
