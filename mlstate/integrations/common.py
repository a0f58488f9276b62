"""What the integrations share: packages that may be missing, and stores to save into."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlstate.digests import Digest
from mlstate.errors import MissingPackageError, ReadOnlyStoreError
from mlstate.locations import check_file_names
from mlstate.manifests import StateEntry
from mlstate.objects.plain_folders import note_folder_use, plain_folder
from mlstate.phrases import ANY_STORE
from mlstate.settings import cache_folder
from mlstate.states import StateKey
from mlstate.stores import Store, open_store
from mlstate.stores.read import StateStore
from mlstate.stores.save import SavingStore

__all__ = ["StoreLike", "files_in", "folder_with", "needing", "reading_store", "saving_store"]

StoreLike = StateStore | str | os.PathLike[str]
"""A store, or what `open_store` takes for one."""


@contextmanager
def needing(package: str, distribution: str | None = None) -> Iterator[None]:
    """Import a framework, or say how it is installed.

    Args:
        package: The package that is imported.
        distribution: What it is called where packages are installed from, if not the same.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingPackageError(
            f"this needs the package {package}, which is not installed",
            remedy=f"pip install {distribution or package}",
        ) from None


def saving_store(store: StoreLike) -> SavingStore:
    """A store that saves, deletes, and keeps files and meta with a state.

    A folder that is missing is made by the first save.

    Raises:
        ReadOnlyStoreError: It is another store.
        StoreNotFoundError: There is no such store.
    """
    opened = store if isinstance(store, StateStore) else open_store(store, create=True)
    if not isinstance(opened, SavingStore):
        raise ReadOnlyStoreError(
            "nothing can be saved into this store", path=opened, expected=ANY_STORE
        )
    return opened


def reading_store(store: StoreLike | None) -> StateStore:
    """The store to read from; `Store()` by default."""
    if store is None:
        return Store()
    return store if isinstance(store, StateStore) else open_store(store)


@contextmanager
def files_in(store: StateStore, key: StateKey) -> Iterator[Path]:
    """A temporary folder with the files of a state, verified, and without its weights."""
    files = store.files(key)
    check_file_names(files)
    with tempfile.TemporaryDirectory(prefix="mlstate-") as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        yield folder


def folder_with(store: StateStore, key: StateKey) -> Path:
    """A folder in the cache with a state's weights and files, verified each time.

    Its name says its content, so that states of one key in two stores have a folder each. It can be
    deleted whenever nothing reads it: pruning the cache does, if it was not used for an hour.
    """
    folder = plain_folder(cache_folder(), _name(store.get_pinned(key).entry))
    note_folder_use(folder)  # before: no pruning shall take it from under the writing
    store.materialize(key, folder)
    note_folder_use(folder)
    return folder


def _name(entry: StateEntry) -> str:
    files = sorted((name, file.digest) for name, file in entry.files.items())
    layout = sorted((name, repr(file)) for name, file in entry.layout.items())
    return Digest.of(repr((entry.pinned_digest, files, layout)).encode())[:32]
