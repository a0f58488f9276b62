"""Bytes from elsewhere: web servers, the Hugging Face hub, files. Never trusted, only moved.

`Transports` opens addresses, what it opens is a `Resource`, and `retrying` makes one persistent.
"""

from __future__ import annotations

from mlstate.transport.interface import Resource, Stream
from mlstate.transport.open import Transports
from mlstate.transport.retry import Retries, retried, retrying

__all__ = ["Resource", "Retries", "Stream", "Transports", "retried", "retrying"]
