"""`open_store`, which opens a store by a text, as on a command line."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlstate.errors import FormatError, StoreNotFoundError
from mlstate.format import layout
from mlstate.locations import local_path
from mlstate.manifests import manifest_files
from mlstate.manifests.required import RequiredSignature, SigningKey
from mlstate.project import is_project_file
from mlstate.stores.read import StateStore

if TYPE_CHECKING:
    from mlstate.fetch.progress import OnProgress
    from mlstate.stores.manifest import PinsMode

__all__ = ["is_manifest", "open_store"]

_BUCKET = re.compile(r"s3://([^/]+)/?(.*)")
_REPOSITORY = re.compile(r"github:([^/]+)/([^/]+?)(?:\.git)?/?")
_ON_THE_WEB = (
    "a copy of a store on a web server cannot be listed: name it in a manifest, as "
    "objects = [...], and give the manifest"
)
_EXPECTED = "a folder, a manifest, s3://bucket[/prefix] or github:owner/repository"


def open_store(
    where: str | os.PathLike[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    progress: OnProgress | bool | None = None,
    create: bool = False,
    require_signature: RequiredSignature = None,
    signing_key: SigningKey = None,
    pins: PinsMode | None = None,
) -> StateStore:
    """Open a store by its name.

    ==========================  =================================================
    ``weights``                 a `LocalStateStore`: the folder is a store
    ``weights.toml``, ``dir/``  a `ManifestStore`: a manifest, or a folder of some
    ``s3://bucket/prefix``      an `S3StateStore`
    ``github:owner/repo``       a `GitHubReleaseStore`
    ``None``                    `Store`, the default
    ==========================  =================================================

    Args:
        where: The store.
        cache: The cache; as for `ManifestStore`. A folder that is a store needs none.
        offline: Open no socket. By default as MLSTATE_OFFLINE says.
        progress: As for `ManifestStore`.
        create: Accept a folder that is missing or empty, in order to save into it.
        require_signature: As for `ManifestStore` and `LocalStateStore`, by its settings for this
            store by default.
        signing_key: As for `LocalStateStore`. Manifests are signed by `mlstate.sign`.
        pins: As for `ManifestStore`. States of other stores have digests.

    Raises:
        SignatureError: A manifest is not signed, where that is required.
        StoreNotFoundError: There is no store here.
        FormatError: The text names no store, or the folder is a store of a newer version.
        ManifestError: A manifest cannot be read.

    Example:
        >>> import tempfile
        >>> open_store(tempfile.mkdtemp(), create=True).get_state_keys()
        []
    """
    text = "" if where is None else str(where)
    options: dict[str, Any] = {"cache": cache, "offline": offline, "progress": progress}
    options["require_signature"] = require_signature
    if not text:
        from mlstate.stores.manifest import Store

        return Store(**options, pins=pins)
    if bucket := _BUCKET.fullmatch(text):
        from mlstate.stores.s3 import S3StateStore

        return S3StateStore(
            bucket[1], base_path=bucket[2].strip("/"), signing_key=signing_key, **options
        )
    if repository := _REPOSITORY.fullmatch(text):
        from mlstate.stores.github.store import GitHubReleaseStore

        return GitHubReleaseStore(*repository.groups(), signing_key=signing_key, **options)
    if "://" in text or text.startswith(("s3:", "github:")):
        web = text.startswith(("http://", "https://"))
        raise FormatError(
            "this address is none of a store",
            path=text,
            expected=_EXPECTED,
            remedy=_ON_THE_WEB if web else None,
        )
    path = local_path(text)
    if _is_manifest(path):
        from mlstate.stores.manifest import ManifestStore

        return ManifestStore(path, **options, pins=pins)
    if not create and not _is_store(path):
        raise StoreNotFoundError(
            "there is no store here",
            path=path,
            expected=_EXPECTED,
            found=_found(path),
            remedy=_near(path),
        )
    from mlstate.stores.local import LocalStateStore

    return LocalStateStore(path, require_signature=require_signature, signing_key=signing_key)


def is_manifest(where: str) -> bool:
    """Whether a text names a manifest, or a folder of some, and no store.

    Raises:
        FormatError: It names another file.
        StoreNotFoundError: There is no such manifest.
    """
    elsewhere = "://" in where or where.startswith(("s3:", "github:"))
    return not elsewhere and _is_manifest(local_path(where))


def _is_manifest(path: Path) -> bool:
    """Whether a path is that of a manifest, or of a folder of some that is no store.

    A missing manifest and any other file are errors.
    """
    if path.is_dir():
        return not _is_store(path) and bool(manifest_files(path))
    if path.suffix != ".toml":
        if path.exists():
            raise FormatError(
                "this file is no store, and no manifest", path=path, expected=_EXPECTED
            )
        return False
    if not path.exists():
        raise StoreNotFoundError(
            "there is no manifest here", path=path, expected=_EXPECTED, remedy=_near(path)
        )
    return True


def _is_store(folder: Path) -> bool:
    """Whether a folder is a store, a cache, or a folder of MLModule."""
    settings = folder / layout.SETTINGS
    if settings.exists() and not is_project_file(settings):
        return True
    if any((folder / name).exists() for name in (layout.STATES, layout.OBJECTS)):
        return True
    from mlstate.stores.checkpoints import FolderCheckpoints

    return bool(FolderCheckpoints(folder).keys())


def _near(path: Path) -> str | None:
    """A remedy that gives similar names in the same folder."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return None
    near = get_close_matches(path.name, names, n=4, cutoff=0.75)
    others = [path.parent / name for name in near if name != path.name]
    named = [str(other) for other in others if other.is_dir() or other.suffix == ".toml"][:2]
    return f"did you mean {' or '.join(named)}?" if named else None


def _found(folder: Path) -> str:
    if not folder.exists():
        return "nothing: there is no such file or folder"
    return "an empty folder" if not any(folder.iterdir()) else "a folder without states"
