"""Manifests: which state key has which state digest, and where its bytes can be had.

A manifest is one TOML file, or a folder of them, small enough to be committed and read by people.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlstate.errors import FormatError, ManifestError, ManifestNotFoundError
from mlstate.files import is_trusted_link, read_file
from mlstate.format import layout
from mlstate.locations import local_path
from mlstate.manifests.entries import FileEntry, ManifestContent, StateEntry
from mlstate.manifests.folder import LARGEST, is_store, toml_files
from mlstate.manifests.merge import merged_aliases, merged_states
from mlstate.manifests.parse import parse_manifest
from mlstate.phrases import Phrase
from mlstate.warn import warn

__all__ = [
    "FileEntry",
    "Manifest",
    "StateEntry",
    "content_of",
    "is_store",
    "listed_files",
    "manifest_files",
    "signature_file",
]


_ATTEMPTS = 100


@dataclass(frozen=True)
class Manifest(ManifestContent):
    """The states of one manifest file, or of several together.

    Attributes:
        states: What it says of each state.
        objects: Mirrors in the store layout, for every state; of a single file. Of several files
            together each entry keeps those of its own.
        unknown: Top-level keys of a later version; of a single file.
        aliases: Other names for states, such as ``best``: alias -> key.

    Example:
        >>> manifest = Manifest.parse(b"version = 1", origin="empty.toml")
        >>> len(manifest.states)
        0
    """

    def __post_init__(self) -> None:
        if not isinstance(self.states, Mapping) or not all(
            isinstance(entry, StateEntry) and entry.key == key for key, entry in self.states.items()
        ):
            raise FormatError(
                "a manifest is made of entries, each under its own key",
                expected="{key: store.get(key).entry for key in ...}",
            )

    @classmethod
    def parse(cls, data: bytes, origin: str) -> Manifest:
        """Read a manifest's content.

        Args:
            data: TOML, as UTF-8.
            origin: Where it is from, for errors.

        Raises:
            ManifestError: It cannot be read; the error names file, line and key.
        """
        return cls(**vars(parse_manifest(data, origin)))

    @classmethod
    def read(cls, *paths: str | os.PathLike[str]) -> Manifest:
        """Read a file, a folder of ``*.toml`` files (recursively, in sorted order), or several.

        Of a folder, neither hidden folders nor stores in it are looked into, and TOML files that
        are no manifests are passed over. A store itself is read like a manifest of its states.

        Of a state that several list with one digest, the mirrors of all are tried, in that order;
        who gives a digest counts before who gives none.

        Raises:
            ManifestError: There is no such file or folder, one cannot be read, or two give a key
                different digests.
        """
        files = [file for path in paths for file in listed_files(local_path(path))]
        return cls.joined([cls.parse(content_of(file), str(file)) for file in files])

    @classmethod
    def joined(cls, manifests: list[Manifest]) -> Manifest:
        """Several manifests as one; one alone stays as it is. See `read`.

        Raises:
            ManifestError: Two give a key different digests, or an alias to different states.
        """
        warn_of_misspelt(manifests)
        if len(manifests) == 1:
            return manifests[0]
        states = merged_states(manifest.states for manifest in manifests)
        return cls(states, aliases=merged_aliases(manifests))

    def format(self) -> str:
        """The text of a new manifest file: sorted, the same for the same content.

        Raises:
            FormatError: `meta` holds something that TOML cannot.
        """
        from mlstate.manifests.write import format_manifest

        return format_manifest(self._of_one_file())

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write to a file, whole or not at all.

        A file that is there is edited: what did not change, comments included, stays byte for
        byte; a manifest that says the same already is not written at all.

        Args:
            path: The file; its folder is there.

        Raises:
            ManifestError: The file that is there cannot be read or edited; nothing was changed.
            FormatError: `meta` holds something that TOML cannot.
        """
        from mlstate.objects.beside import temporary_beside
        from mlstate.objects.durable import write_over

        target = resolved(path)
        for _ in range(_ATTEMPTS):
            old = content_of(target) if target.exists() else None
            new = edited(self, old, str(path))
            temporary = temporary_beside(target)
            if new == old:
                return
            if write_over(target, old, [new], temporary=temporary, read_only=False):
                warn_of_stale_signature(path)
                return
        raise changed_by_others(path)

    def _of_one_file(self) -> Manifest:
        """Itself, with the object mirrors of its entries if it has none of its own."""
        objects = {self.objects} if self.objects else {e.objects for e in self.states.values()}
        if len(objects) > 1:
            raise ManifestError(
                "states of manifests with different object mirrors do not go into one file",
                found=" and ".join(map(str, sorted(objects))),
                remedy="give the new manifest its own objects=",
            )
        return replace(self, objects=next(iter(objects), ()))


def edited(manifest: Manifest, old: bytes | None, origin: str) -> bytes:
    """The bytes of a manifest file once it says this; those that are there if it does already.

    Args:
        manifest: What it is to say.
        old: What is in the file; None: it is not there.
        origin: Where it is, for errors.

    Raises:
        ManifestError: The file that is there cannot be edited.
        FormatError: `meta` holds something that TOML cannot.
    """
    from mlstate.manifests.edit import edit_manifest

    if old is None:
        return manifest.format().encode()
    return edit_manifest(old, origin, manifest._of_one_file())


def changed_by_others(path: str | os.PathLike[str]) -> ManifestError:
    """The error for a manifest that others write again and again."""
    return ManifestError(
        "this manifest is changed again and again by others; nothing was changed",
        path=path,
        remedy="try again when they are done",
    )


def resolved(path: str | os.PathLike[str]) -> Path:
    """The file that a path names in the end: where a link is written through, it stays a link.

    Raises:
        ManifestError: The links go round in a circle, or another user has put one there: in the
            folder of a group it could lead to any file of this user.
    """
    try:
        target = local_path(path).resolve()
    except (RuntimeError, OSError) as error:
        raise ManifestError("a manifest cannot be read", path=path, found=error) from None
    if target.is_symlink():  # from Python 3.13 on a circle resolves to a link in it
        raise ManifestError(
            "a manifest cannot be read", path=path, found="links that go round in a circle"
        )
    link = local_path(path)
    while link.is_symlink():
        if not is_trusted_link(link):
            raise ManifestError(
                "a manifest is not written through a link of another user; nothing was changed",
                path=link,
                found=f"a link to {os.readlink(link)}",
                remedy="give the path of the file itself",
            )
        link = link.parent / os.readlink(link)
    return target


def warn_of_misspelt(manifests: list[Manifest]) -> None:
    """Warn of names in entries that are most likely meant to be others."""
    for manifest in manifests:
        for entry in manifest.states.values():
            for name, meant in entry.misspelt.items():
                warn(
                    f"{entry.origin}: of {entry.key}, {name} is no name that this version knows, "
                    f"and is ignored; did you mean {meant}?"
                )


def signature_file(path: str | os.PathLike[str]) -> Path:
    """Where the signature of a manifest file is, or would be: ``NAME.toml.sig`` beside it."""
    file = local_path(path)
    return file.with_name(f"{file.name}.sig")


def warn_of_stale_signature(path: str | os.PathLike[str]) -> None:
    """Say that a manifest which was just written is not the one that its signature is of."""
    if os.path.lexists(signature_file(path)):
        warn(
            Phrase(
                f"{path} was changed, so its signature {path}.sig is not good any more: sign it "
                "again, with mlstate.sign(manifest, key)",
                f"{path} was changed, so its signature {path}.sig is not good any more: sign it "
                "again, with mlstate sign FILE.toml --key KEY",
            )
        )


def listed_files(path: Path) -> list[Path]:
    """The files that `Manifest.read` reads of a path: those of a manifest, or of a store.

    Raises:
        ManifestError: There is no such file or folder.
    """
    if is_store(path):  # its state files can be read, but not edited: see `manifest_files`
        return sorted((path / layout.STATES).rglob("*.toml"))
    return manifest_files(path)


def manifest_files(path: Path) -> list[Path]:
    """The files of a manifest: itself, or of a folder all that are manifests, recursively, sorted.

    TOML files of other tools are passed over; see `mlstate.manifests.folder`.

    Raises:
        ManifestError: There is no such file or folder, or it is a store.
    """
    if not path.exists():
        raise ManifestNotFoundError(
            "there is no manifest here",
            path=path,
            expected="a .toml file, or a folder with some",
            remedy="check the path",
        )
    if not path.is_dir():
        return [path]
    if is_store(path):
        raise ManifestError(
            "this folder is a store, not a folder of manifests",
            path=path,
            remedy=Phrase(
                "open it with LocalStateStore(folder), or give the path of a manifest",
                "its states are listed by mlstate ls FOLDER; or give the path of a manifest",
            ),
        )
    return toml_files(path).manifests


def content_of(path: Path) -> bytes:
    """The bytes of a manifest file; a pipe or a device, which may have no end, is refused.

    Raises:
        ManifestError: It cannot be read.
    """
    try:
        return read_file(path, LARGEST)
    except OSError as error:
        raise ManifestError("a manifest cannot be read", path=path, found=error) from error
