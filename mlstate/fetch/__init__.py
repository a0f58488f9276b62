"""Bringing what is missing: plan it, choose mirrors, fail over, verify everything."""

from mlstate.fetch.fetcher import MAX_SIZE, Fetcher, FetchReport
from mlstate.fetch.progress import OnProgress, Progress

__all__ = ["MAX_SIZE", "FetchReport", "Fetcher", "OnProgress", "Progress"]
