"""For fsspec: ``mlstate://STORE/KEY/model.safetensors``, a file system over stores, read-only.

A state is a folder, with the files that `materialize` would write; see `state_files`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from mlstate.errors import (
    FormatError,
    ReadOnlyStoreError,
    StateNotFoundError,
    StoreNotFoundError,
)
from mlstate.integrations.common import needing
from mlstate.integrations.state_files import Content, StateFiles
from mlstate.phrases import FOLDER
from mlstate.states import StateKey
from mlstate.stores import open_store
from mlstate.stores.read import StateStore

with needing("fsspec"):
    from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

__all__ = ["StateFileNotFoundError", "StoreFileSystem"]


class StateFileNotFoundError(StateNotFoundError, FileNotFoundError):
    """No state, or no file of it, has this path."""


@dataclass(frozen=True)
class _Place:
    """What a path names: a store, a state in it, or a file or folder of that."""

    store: StateStore
    key: StateKey | None = None
    name: str = ""


class StoreFileSystem(AbstractFileSystem):
    """Stores as a file system, read-only: ``fsspec.open("mlstate://weights/KEY/config.json")``.

    A path is a store, as `mlstate.open_store` takes it (a folder, a manifest, ``s3://...``), then a
    key, then a file: ``mlstate:///data/weights/pytorch.mlp.base/model.safetensors``. Where a path
    begins with a key, the store is `mlstate.Store()`.

    Args:
        cache: As for `mlstate.open_store`.
        offline: As for `mlstate.open_store`.
        **options: As for every file system of fsspec.
    """

    protocol = "mlstate"
    root_marker = ""

    def __init__(
        self, cache: str | None = None, offline: bool | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._options: dict[str, Any] = {"cache": cache, "offline": offline}
        self._stores: dict[str, StateStore] = {}

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """The states of a store, the files of a state, or a single file.

        Raises:
            StateFileNotFoundError: Nothing is there.
            StoreNotFoundError: There is no such store.
        """
        path = self._strip_protocol(path)
        place = self._place(path)
        if place.key is None:
            start = f"{path}/" if path else ""
            entries = [_folder(f"{start}{key}") for key in place.store.get_state_keys()]
        else:
            entries = list(self._below(path, place))
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """The kind and size of what is at a path; of a file its digest, too.

        Raises:
            StateFileNotFoundError: Nothing is there.
            StoreNotFoundError: There is no such store.
        """
        path = self._strip_protocol(path)
        place = self._place(path)
        entries = [] if place.key is None or not place.name else list(self._below(path, place))
        return next((one for one in entries if one["name"] == path), _folder(path))

    def ukey(self, path: str) -> str:
        """What changes when the file does: its digest. Caches of fsspec ask for it."""
        return str(self.info(path).get("blake3", ""))

    def checksum(self, path: str) -> int:
        """As `ukey`, a number."""
        return int(self.ukey(path)[:15] or "0", 16)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """The bytes of a file, or some of them: nothing is read ahead.

        Args:
            path: The file.
            start: The first byte; from the end if it is negative.
            end: The byte behind the last; from the end if it is negative.
            **kwargs: Have no effect.
        """
        size, content = self._content(path)
        first, last, _ = slice(start, end).indices(size)
        try:
            return content.read(first, last)
        finally:
            content.close()

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | str | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> StateFile:
        if mode != "rb":
            self._refuse(path)
        size, content = self._content(path)
        return StateFile(
            self,
            path,
            content=content,
            size=size,
            block_size=block_size or "default",
            cache_options=cache_options,
            **kwargs,
        )

    def _content(self, path: str) -> tuple[int, Content]:
        """The size and the bytes of a file."""
        place, entry = self._place(path), self.info(path)
        if place.key is None or entry["type"] != "file":
            raise FormatError("this is a folder, which cannot be opened", path=path)
        return entry["size"], StateFiles(place.store, place.key).content(place.name)

    def _below(self, path: str, place: _Place) -> Iterator[dict[str, Any]]:
        """The entries of a folder of a state; of a file that itself."""
        assert place.key is not None
        root = path.removesuffix(place.name).rstrip("/") if place.name else path
        sizes = StateFiles(place.store, place.key).files()
        start = f"{place.name}/" if place.name else ""
        seen: set[str] = set()
        for name, (size, digest) in sizes.items():
            if name == place.name:
                yield {"name": path, "size": size, "type": "file", "blake3": digest}
                return
            if name.startswith(start):
                first, deeper, _ = name.removeprefix(start).partition("/")
                if first not in seen:
                    seen.add(first)
                    full = f"{root}/{start}{first}"
                    file = {"name": full, "size": size, "type": "file", "blake3": digest}
                    yield _folder(full) if deeper else file
        if not seen:
            raise StateFileNotFoundError(
                "this state has no such file", key=place.key, path=path, expected=", ".join(sizes)
            )

    def _place(self, path: str) -> _Place:
        """What a path names: the first part that is the key of a state in what is before it."""
        path = self._strip_protocol(path)
        parts = path.split("/")
        refused: Exception | None = None
        for number, part in enumerate(parts):
            try:
                key = StateKey.parse(part)
                store = self._store("/".join(parts[:number]))
            except (FormatError, StoreNotFoundError):
                continue
            if store.exists(key):
                return _Place(store, key, "/".join(parts[number + 1 :]))
            refused = StateFileNotFoundError("there is no such state here", key=key, path=store)
        try:
            return _Place(self._store(path))
        except (FormatError, StoreNotFoundError) as error:
            raise refused or error from None

    def _store(self, where: str) -> StateStore:
        if where not in self._stores:
            self._stores[where] = open_store(where or None, **self._options)
        return self._stores[where]

    def _refuse(self, path: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise ReadOnlyStoreError(
            "this file system is only read", path=path, remedy="save into " + FOLDER
        )

    mkdir = makedirs = rmdir = cp_file = rm_file = _rm = rm = pipe_file = touch = _refuse
    put_file = mv = _refuse


class StateFile(AbstractBufferedFile):
    """A file of a state, open for reading."""

    def __init__(self, fs: StoreFileSystem, path: str, *, content: Content, **options: Any) -> None:
        super().__init__(fs, path, "rb", **options)
        self._content = content

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._content.read(start, end)

    def close(self) -> None:
        """Close the file, and the objects that it has open."""
        super().close()
        if content := getattr(self, "_content", None):
            content.close()


def _folder(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}
