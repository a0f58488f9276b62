"""Which places a manifest may name: all if it is the user's own, few if it is from elsewhere.

A release's pointer, a bucket's state file or a bundle is written by whoever may write there, and
a manifest of a project that the user has not called trusted by whoever wrote the repository. It
must not make this machine read its own files, talk to servers that only this machine reaches, or
show this user's credentials to anybody. MLSTATE_ALLOWED_HOSTS has what the user allows beyond:

host, host:port, *.domain     a web server: by https, in any network, with the user's credentials
http://host                   the same, without TLS
s3://bucket (gs, az)          a bucket, with the user's credentials
s3: (gs:, az:)                all buckets, without credentials
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mlstate import settings
from mlstate.errors import FormatError, TransportError
from mlstate.transport.local import file_path
from mlstate.transport.urls import Url
from mlstate.transport.zones import Zone

__all__ = ["OWN", "Permission", "Reach", "is_allowed"]

_BUCKETS = ("s3", "gs", "az")
_HOST = re.compile(r"(?:(https?)://)?((?:\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?/?")
_BUCKET = re.compile(r"((?:s3|gs|az)):(?://([a-z0-9][a-z0-9._-]*)/?)?")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Permission:
    """How a place may be opened.

    Attributes:
        confined: The zone that its server has to be in, if it is not public; None: any.
        credentials: Whether this user's credentials may be sent there.
    """

    confined: Zone | None = None
    credentials: bool = True


@dataclass(frozen=True)
class Reach:
    """What may be opened for an entry of a manifest.

    Attributes:
        source: The address that the manifest itself came from, or another name for where; the
            absolute path of the folder that it may name files in; None if it is the user's own.
    """

    source: str | None = None

    def permission(self, address: str, base: Path | None = None) -> Permission:
        """How an address, which is well formed, may be opened.

        Args:
            address: The address; of a path on this machine ``base`` is where it begins.
            base: A folder.

        Raises:
            TransportError: It may not.
            FormatError: MLSTATE_ALLOWED_HOSTS is malformed.
        """
        if self.source is None:
            return Permission()
        scheme, colon, rest = address.partition("://")
        scheme = scheme.lower()
        if not colon or scheme == "file":
            self._check_local(address, base)
            return Permission()
        if scheme in _BUCKETS:
            return self._bucket(scheme, rest.partition("/")[0])
        if scheme == "hf":  # the user's own settings say where that is
            return Permission()
        url = Url.parse(address)
        if url.origin == self._origin or is_allowed(url):
            return Permission()
        if url.scheme != "https":
            raise _refused("a place without TLS, in a manifest from elsewhere", url.root)
        return Permission(confined=Zone.PUBLIC, credentials=False)

    def _check_local(self, address: str, base: Path | None) -> None:
        if not os.path.isabs(self.source or ""):
            raise TransportError("a place on this machine, in a manifest from elsewhere")
        folder = os.path.realpath(self.source or "")
        if not Path(os.path.realpath(file_path(address, base))).is_relative_to(folder):
            raise TransportError(
                "a place outside of the project, in a manifest of it",
                remedy="if you trust this project, name its folder in [projects] trusted of the "
                "config file",
            )

    @property
    def _origin(self) -> tuple[str, str, int] | None:
        source = self.source or ""
        return Url.parse(source).origin if source.startswith(("http://", "https://")) else None

    def _bucket(self, scheme: str, bucket: str) -> Permission:
        place = f"{scheme}://{bucket}"
        allowed = _allowed_buckets()
        if f"{self.source}/".startswith(f"{place}/") or (scheme, bucket.lower()) in allowed:
            return Permission()
        if (scheme, "") in allowed:
            return Permission(credentials=False)
        raise _refused("another bucket, in a manifest from elsewhere", place)


OWN = Reach()
"""The reach of the user's own manifests and arguments."""


def _refused(message: str, place: str) -> TransportError:
    return TransportError(
        message,
        found=place,
        remedy=f"if you trust it, add {place} to MLSTATE_ALLOWED_HOSTS",
    )


def is_allowed(url: Url) -> bool:
    """Whether the user allows a web server by name.

    Raises:
        FormatError: MLSTATE_ALLOWED_HOSTS is malformed.
    """
    for text in settings.allowed_hosts():
        entry = text.lower()
        if _BUCKET.fullmatch(entry):
            continue
        match = _HOST.fullmatch(entry)
        if match is None:
            raise _malformed(text)
        scheme, port = match[1] or "https", match[3]
        same_port = url.port == int(port or _PORTS[scheme])
        host = match[2].strip("[]")
        if url.scheme == scheme and same_port and fnmatchcase(url.host, host):
            return True
    return False


def _allowed_buckets() -> set[tuple[str, str]]:
    found = set()
    for text in settings.allowed_hosts():
        if match := _BUCKET.fullmatch(text.lower()):
            found.add((match[1], match[2] or ""))
        elif not _HOST.fullmatch(text.lower()):
            raise _malformed(text)
    return found


def _malformed(text: str) -> FormatError:
    return FormatError(
        "MLSTATE_ALLOWED_HOSTS has an entry that is none of a host or a bucket",
        expected="host, host:port, *.domain, http://host, s3://bucket or s3:",
        found=text[:80],
    )
