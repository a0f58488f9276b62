"""Mirrors, addresses and names of files, as validated values. Nothing is opened here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlstate.errors import FormatError, StoreNotFoundError
from mlstate.phrases import Phrase

__all__ = [
    "ARRAYS",
    "DISTRIBUTED",
    "FORMATS",
    "LOCAL_ONLY",
    "SAFETENSORS",
    "TORCH",
    "TORCH_GZIP",
    "Mirror",
    "UnusableMirror",
    "anchored",
    "check_file_names",
    "check_url",
    "local_path",
    "parse_mirror",
]

SCHEMES = frozenset({"http", "https", "file", "s3", "gs", "az", "hf"})
SAFETENSORS, TORCH, TORCH_GZIP = "safetensors", "torch", "torch-gzip"
"""The containers, as `Mirror.format` names them."""
FORMATS = (SAFETENSORS, TORCH, TORCH_GZIP)
ARRAYS, DISTRIBUTED = "npz", "dcp"
"""Containers that are read on this machine only: of NumPy arrays, and of distributed torch."""
LOCAL_ONLY = {
    ARRAYS: "an archive of NumPy arrays (.npz)",
    DISTRIBUTED: "a distributed checkpoint (torch.distributed.checkpoint)",
}
"""What they are, for errors."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ELSEWHERE = re.compile(r"(s3|gs|az|hf|https?|github):(?=/|[^/]+/)", re.IGNORECASE)
"""What has lost a slash as a `Path` does, and a repository."""
_OPEN_STORE = Phrase(
    "a store there is opened by mlstate.open_store(address)",
    "a store there is given as --store ADDRESS; files are read and written on this machine",
)
_SHA256 = re.compile(r"[0-9a-f]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Mirror:
    """A file, or several, that together hold a state's tensors. Their bytes are always verified.

    Attributes:
        urls: One address, or those of all shards. An address without a scheme is a path relative
            to the manifest. Empty if there are `parts`.
        state: The address of the state object beside the file, or None.
        format: ``"safetensors"``, ``"torch"`` or ``"torch-gzip"``.
        sha256: The file's SHA-256, whole or its leading hex digits, or None.
        select: The dotted path of the state dict inside a torch checkpoint, or None.
        tensors_only: Whether entries of that state dict that are no tensors are passed over.
        strip_prefix: A prefix to remove from every name.
        add_prefix: A prefix to add to every name.
        rename: Pairs of literal texts, replaced in every name, in order.
        parts: Mirrors whose tensors together are the state.
        toml: The value as the manifest has it.
    """

    urls: tuple[str, ...] = ()
    state: str | None = None
    format: str = "safetensors"
    sha256: str | None = None
    select: str | None = None
    tensors_only: bool = False
    strip_prefix: str = ""
    add_prefix: str = ""
    rename: tuple[tuple[str, str], ...] = ()
    parts: tuple[Mirror, ...] = ()
    toml: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class UnusableMirror:
    """A mirror that this version cannot use, the reason, and its value in the manifest.

    It is passed over when a state is fetched, and kept when the manifest is written: not so
    (``kept``) if it is of a manifest from elsewhere that may not name such a place. In a manifest
    of the user's own it would be used.
    """

    reason: str
    toml: Any
    kept: bool = True


_KEYS = frozenset({"url", *(each.name for each in fields(Mirror))} - {"toml"})


def parse_mirror(value: object) -> Mirror | UnusableMirror:
    """Read a mirror as a manifest writes it: an address, or a table.

    Returns:
        The mirror; an `UnusableMirror` if it has a key, format or scheme that is unknown here, as
        a later version may write.

    Raises:
        FormatError: A value of the wrong kind, or an address with a credential in it.
    """
    table = {"url": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise FormatError("a mirror is an address or a table", found=repr(value))
    for address in _addresses(table):
        check_url(address)  # a mirror that cannot be used must not have a credential, either
    if unknown := sorted(set(table) - _KEYS):
        return UnusableMirror(f"unknown key {', '.join(unknown)}", value)
    parts = [parse_mirror(part) for part in _list(table, "parts")]
    for part in parts:
        if isinstance(part, UnusableMirror):
            return UnusableMirror(part.reason, value)
    url, state = _text(table, "url"), _text(table, "state")
    urls = tuple(_texts(table, "urls")) if url is None else (url,)
    if bool(urls) == bool(parts) or ("url" in table and "urls" in table):
        raise FormatError("a mirror has one of url, urls and parts", found=sorted(table))
    for address in urls if state is None else (*urls, state):
        if reason := check_url(address):
            return UnusableMirror(reason, value)
    form = table.get("format", "safetensors")
    if form not in FORMATS:
        return UnusableMirror(f"unknown format {form!r}", value)
    return Mirror(
        urls=urls,
        state=state,
        format=form,
        sha256=_sha256(table),
        select=_text(table, "select"),
        tensors_only=_flag(table, "tensors_only"),
        strip_prefix=_text(table, "strip_prefix") or "",
        add_prefix=_text(table, "add_prefix") or "",
        rename=tuple(_pair(pair) for pair in _list(table, "rename")),
        parts=tuple(part for part in parts if isinstance(part, Mirror)),
        toml=value,
    )


def local_path(path: str | os.PathLike[str]) -> Path:
    """A path on this machine, with ``~`` for the home folder.

    Raises:
        FormatError: It is an address, or ``-``, which is a stream.
    """
    text = os.fspath(path)
    if elsewhere := _SCHEME.match(text) or _ELSEWHERE.match(text):
        raise FormatError(
            "this is an address, and a folder or file of this machine is needed",
            found=f"{elsewhere[1]}{'://' if '/' in elsewhere[0] else ':'}...",
            remedy=_OPEN_STORE if elsewhere[1].lower() in ("s3", "github") else None,
        )
    if path == "-":  # not so a `Path`, which nobody types
        raise FormatError(
            "- is standard input or output, and a file or folder is needed here",
            remedy="give a path; that of a file that is called so is ./-",
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise FormatError(
            "there is no home folder that ~ could stand for", found=text[:200], remedy="set HOME"
        ) from None


def anchored(path: str | os.PathLike[str]) -> Path:
    """A path on this machine that means the same when the working folder is another.

    Raises:
        FormatError: An address.
        StoreNotFoundError: It is relative, and the working folder was removed.
    """
    found = local_path(path)
    try:
        return found.absolute()
    except FileNotFoundError:
        raise StoreNotFoundError(
            "the working folder was removed, so that a relative path leads nowhere",
            path=found,
            remedy="change to a folder that is there, or give a path that begins with /",
        ) from None


def check_url(address: str) -> str | None:
    """The reason for which this version cannot use an address, or None if it can.

    Raises:
        FormatError: It is empty, has a control character, or carries a password.
    """
    if not address or _CONTROL.search(address):
        # Not repeated: it may hold a password.
        raise FormatError("an address is empty or has a control character")
    match = _SCHEME.match(address)
    if match is None:
        return None
    front = re.split(r"[/?#]", address[match.end() :], maxsplit=1)[0]
    # `hf://gpt2@main` is a repository without an owner, at a revision; tokens begin with `hf_`.
    ownerless = match[1].lower() == "hf" and ":" not in front and not front.startswith("hf_")
    if "@" in front and not ownerless:
        raise FormatError(
            "an address must not carry a user name or password",
            found=f"{match[1]}://...@...",
            remedy="remove it from the manifest; credentials belong into ~/.netrc",
        )
    if match[1].lower() not in SCHEMES:
        return f"unknown scheme {match[1]}://"
    try:
        urlsplit(address)
    except ValueError as error:
        raise FormatError("an address cannot be understood", found=str(error)) from None
    return None


def check_file_names(names: Iterable[str]) -> None:
    """Refuse names of a state's files that are not plain relative paths, or that collide.

    Raises:
        FormatError: An absolute path, a ``..``, a backslash, a drive, a control character; or a
            name that is a folder of another.
    """
    seen = set(names)
    for name in seen:
        parts = name.split("/")
        if (
            any(part in ("", ".", "..") for part in parts)
            or "\\" in name
            or _CONTROL.search(name)
            or _DRIVE.match(name)
            or not name.isprintable()
        ):
            raise FormatError(
                "not a valid name for a file of a state",
                expected='a relative path such as "tokenizer/vocab.txt"',
                found=repr(name),
            )
        for length in range(1, len(parts)):
            if "/".join(parts[:length]) in seen:
                raise FormatError("a file of a state is a folder of another", found=repr(name))


def _addresses(table: Mapping[str, Any]) -> Iterable[str]:
    values = [table.get("url"), table.get("state")]
    if isinstance(table.get("urls"), list):
        values += table["urls"]
    return [value for value in values if isinstance(value, str)]


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key, [])
    if not isinstance(value, list):
        raise FormatError(f"{key} of a mirror is a list", found=repr(value))
    return value


def _texts(table: Mapping[str, Any], key: str) -> Iterable[str]:
    for value in _list(table, key):
        if not isinstance(value, str):
            raise FormatError(f"{key} of a mirror is a list of texts", found=repr(value))
        yield value


def _text(table: Mapping[str, Any], key: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise FormatError(f"{key} of a mirror is a text", found=repr(value))
    return value


def _flag(table: Mapping[str, Any], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise FormatError(f"{key} of a mirror is true or false", found=repr(value))
    return value


def _sha256(table: Mapping[str, Any]) -> str | None:
    value = table.get("sha256")
    if value is not None and not (isinstance(value, str) and _SHA256.fullmatch(value)):
        raise FormatError("sha256 is 1 to 64 lower-case hex digits", found=repr(value))
    return value


def _pair(value: Any) -> tuple[str, str]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(text, str) for text in value)
        or not value[0]
    ):
        raise FormatError("rename is a list of pairs of texts", found=repr(value))
    return (value[0], value[1])
