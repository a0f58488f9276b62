"""What a hub has and how it says it: files with their names in git and LFS, JSON, errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.servers.replies import Reply, Source

__all__ = ["Blob", "Repo", "as_json", "blob_of", "details", "failed", "leaf"]

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".gguf", ".onnx")
LARGE_SIZE = 10 << 20


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    source: Source
    size: int
    sha256: str
    git: str  # what git calls it: the file itself, or its pointer if it is large
    pointer: int | None  # the size of its pointer, if it is large

    @property
    def large(self) -> bool:
        return self.pointer is not None


@dataclass
class Repo:
    """A repository: its commits, and the names of some."""

    private: bool
    gated: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # branches and tags


def blob_of(name: str, source: Source) -> Blob:
    content = source if isinstance(source, bytes) else source.read_bytes()
    sha256, size = hashlib.sha256(content).hexdigest(), len(content)
    large = name.endswith(LARGE) or size > LARGE_SIZE
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    kept = pointer.encode() if large else content
    git = hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()
    return Blob(source, size, sha256, git, len(kept) if large else None)


def details(blob: Blob) -> dict[str, object]:
    """What the API tells of a file when it is asked for blobs."""
    lfs = {"sha256": blob.sha256, "size": blob.size, "pointerSize": blob.pointer}
    return {"size": blob.size, "blobId": blob.git, **({"lfs": lfs} if blob.large else {})}


def leaf(file: str, blob: Blob) -> dict[str, object]:
    """What the API tells of a file in a tree."""
    lfs = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer}
    about = {"type": "file", "oid": blob.git, "size": blob.size, "path": file}
    return {**about, **({"lfs": lfs} if blob.large else {})}


def as_json(value: object) -> Reply:
    return Reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def failed(
    status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None
) -> Reply:
    named = {"X-Error-Code": code} if code else {}
    body = json.dumps({"error": message}).encode()
    every = {"Content-Type": "application/json", **named, "X-Error-Message": message}
    return Reply(status, {**every, **(headers or {})}, body)
