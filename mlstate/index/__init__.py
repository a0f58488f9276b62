"""What do the states of a store say? An index that spares reading them again.

State objects never change, so what one says is kept by its digest; what a state file says is kept
by the version of the file. The index is derived: whatever is missing, damaged, locked or not
writable there is read from the store instead. No load relies on it, and nothing that is removed.
"""

from __future__ import annotations

from mlstate.index.database import is_index_folder
from mlstate.index.index import Index, open_index
from mlstate.index.places import EntryRow, Folder, Place
from mlstate.index.said import Said, begin_of, number_of
from mlstate.index.space import FolderSpace, SharedSpace, StateSpace
from mlstate.index.versions import version_of

__all__ = [
    "EntryRow",
    "Folder",
    "FolderSpace",
    "Index",
    "Place",
    "Said",
    "SharedSpace",
    "StateSpace",
    "begin_of",
    "is_index_folder",
    "number_of",
    "open_index",
    "version_of",
]
