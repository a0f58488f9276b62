"""A file in the cache of huggingface_hub, as a download would have left it.

The cache's layout is documented: content under its hash, and links to it from a revision.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["REPO", "fill", "find"]

REPO = "benchmark/model"
_COMMIT = "0" * 40


def fill(cache: Path, file: Path) -> None:
    """Put a file into the cache, as if it had been downloaded from the main branch.

    Args:
        cache: The cache's folder.
        file: The file; it is linked, not copied, where the file system can.
    """
    repo = cache / f"models--{REPO.replace('/', '--')}"
    blobs, snapshot, refs = repo / "blobs", repo / "snapshots" / _COMMIT, repo / "refs"
    for folder in (blobs, snapshot, refs):
        folder.mkdir(parents=True)
    with file.open("rb") as content:
        blob = blobs / hashlib.file_digest(content, "sha256").hexdigest()
    os.link(file, blob)
    (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    (refs / "main").write_text(_COMMIT)


def find(cache: Path, name: str) -> str:
    """The path of a file in the cache, as huggingface_hub finds it; nothing is verified."""
    from huggingface_hub import hf_hub_download

    return hf_hub_download(REPO, name, cache_dir=cache, local_files_only=True)
