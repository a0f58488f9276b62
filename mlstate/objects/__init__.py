"""Object stores: places with immutable bytes, each named by its BLAKE3 digest."""

from mlstate.objects.cache import ChainObjectStore
from mlstate.objects.folder import FolderObjectStore
from mlstate.objects.interface import (
    ListedObjectStore,
    ObjectStore,
    ObjectWriter,
    WritableObjectStore,
)
from mlstate.objects.memory import MemoryObjectStore
from mlstate.objects.verified import read_verified

__all__ = [
    "ChainObjectStore",
    "FolderObjectStore",
    "ListedObjectStore",
    "MemoryObjectStore",
    "ObjectStore",
    "ObjectWriter",
    "WritableObjectStore",
    "read_verified",
]
