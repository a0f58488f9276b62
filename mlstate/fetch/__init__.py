"""Bringing what is missing of a state into a cache, from mirrors, verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlstate.lazy import exports

if TYPE_CHECKING:
    from mlstate.fetch.fetcher import MAX_SIZE, Fetcher, FetchReport
    from mlstate.fetch.progress import OnProgress, Progress

__all__ = ["MAX_SIZE", "FetchReport", "Fetcher", "OnProgress", "Progress"]

_HOMES = {
    "FetchReport": "mlstate.fetch.fetcher",
    "Fetcher": "mlstate.fetch.fetcher",
    "MAX_SIZE": "mlstate.fetch.fetcher",
    "OnProgress": "mlstate.fetch.progress",
    "Progress": "mlstate.fetch.progress",
}

__getattr__, __dir__ = exports(__name__, _HOMES)
