"""Files on the Hugging Face hub as resources: ``hf://org/repo@revision/path``.

Names of revisions are resolved to their commit once, and files are read by their commit, so that
all files of a state are of one moment. What the hub's own cache on this machine has is read there.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from urllib.parse import quote, unquote

from mlstate.errors import FormatError, OfflineError, TransportError
from mlstate.limits import read_limited
from mlstate.locations import check_file_names
from mlstate.parallel import OneFirst
from mlstate.texts import load_json
from mlstate.transport.credentials import hub_endpoint
from mlstate.transport.hub_cache import HubCopies
from mlstate.transport.interface import Resource, Stream
from mlstate.transport.local import LocalResource

__all__ = ["Hub", "HubAddress", "HubListing", "HubResource", "parse_hub_address"]

MAX_ANSWER = 1 << 26  # bytes of JSON
FORM = "hf://org/repo@revision/path"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUBS_OWN = re.compile(r"([^/@]*@refs/(?:pr/\d+|convert/\w+))(?:(/)(.*))?", re.DOTALL)
_KINDS = ("datasets", "models", "spaces")  # how other addresses on the hub begin


@dataclass(frozen=True)
class HubAddress:
    """A model's repository on the hub at a revision, or a file of it."""

    repo: str  # "org/repo", or "repo" of the oldest models, which have no owner
    revision: str = "main"  # a branch, a tag, or a whole commit
    path: str | None = None  # the file

    def __post_init__(self) -> None:
        names = self.repo.split("/")
        if len(names) > 2 or names[0] in _KINDS or not all(map(_is_name, names)):
            raise FormatError(
                "not a repository of a model on the hub", expected=FORM, found=repr(self.repo)
            )
        parts = self.revision.split("/")
        if (
            not self.revision.isprintable()
            or any(part in ("", ".", "..") for part in parts)
            or re.search(r"[\s\\~^:?*\[]", self.revision)
        ):
            raise FormatError(
                "not a revision of a repository", expected=FORM, found=repr(self.revision)
            )
        if self.path is not None:
            check_file_names([self.path])

    @property
    def is_commit(self) -> bool:
        """Whether the revision is one that can never change."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        path = "" if self.path is None else f"/{self.path}"
        return f"hf://{self.repo}@{quote(self.revision, safe='')}{path}"


@dataclass(frozen=True)
class HubListing:
    """The commit that a revision of a repository is, and the paths of its files."""

    commit: str
    files: tuple[str, ...]


def parse_hub_address(text: str) -> HubAddress:
    """Read ``hf://org/repo[@revision][/path]``, or ``hf://repo@revision[/path]``.

    A ``/`` in a revision is written ``%2F``; not so in those that the hub makes itself, such as
    ``refs/pr/1`` and ``refs/convert/parquet``.
    """
    if text[:5].lower() != "hf://":
        raise FormatError("not an address on the hub", expected=FORM, found=repr(text))
    org, _, rest = text[5:].partition("/")
    alone = "@" in org  # which no owner has in its name
    if alone:
        rest = text[5:]
    if own := _HUBS_OWN.fullmatch(rest):
        name, slash, path = own.groups(default="")
    else:
        name, slash, path = rest.partition("/")
    repo, at, revision = name.partition("@")
    try:
        revision = unquote(revision, errors="strict") if at else "main"
    except UnicodeDecodeError:
        raise FormatError("not a revision of a repository", expected=FORM) from None
    return HubAddress(repo if alone else f"{org}/{repo}", revision, path if slash else None)


class Hub:
    """The hub at HF_ENDPOINT.

    ``connect`` makes a resource of a web address; its second argument is how errors name it. With
    ``offline`` no socket is opened: only what the hub's cache on this machine has can be read.
    """

    def __init__(self, connect: Callable[[str, str], Resource], *, offline: bool) -> None:
        self._connect = connect
        self._offline = offline
        self._lock = threading.Lock()
        self._listings: dict[tuple[str, str, str], HubListing] = {}
        self._asking: dict[tuple[str, str, str], OneFirst] = {}
        self.copies = HubCopies()

    @property
    def offline(self) -> bool:
        """Whether sockets are not allowed; HF_HUB_OFFLINE says so, too."""
        said = os.environ.get("HF_HUB_OFFLINE", "").upper()
        return self._offline or said in ("1", "ON", "YES", "TRUE")

    def listing(self, address: HubAddress) -> HubListing:
        """The commit and the files of a revision; see `Transports.hub_files`."""
        if self.offline:
            found = self.copies.files(address.repo, address.revision) if address.is_commit else ()
            if not found:
                raise _offline_error(address)
            return HubListing(address.revision, found)
        endpoint = hub_endpoint()
        key = (endpoint, address.repo, address.revision)
        with self._lock:
            asking = self._asking.setdefault(key, OneFirst())
        listing = self._listings.get(key)
        if listing is None:
            with asking.turn():
                listing = self._listings.get(key) or self._ask(endpoint, address)
                self._listings[key] = listing
        return listing

    def file(self, address: HubAddress, commit: str) -> Resource:
        """A file by its commit, on the web."""
        url = f"{hub_endpoint()}/{address.repo}/resolve/{commit}/{quote(address.path or '')}"
        return self._connect(url, str(address))

    def _ask(self, endpoint: str, address: HubAddress) -> HubListing:
        name = str(HubAddress(address.repo, address.revision))
        url = f"{endpoint}/api/models/{address.repo}/revision/{quote(address.revision, safe='')}"
        with (
            _revision_remedy(address),
            with_hub_remedies(),
            self._connect(url, name).read() as stream,
        ):
            data = read_limited(iter(lambda: stream.read(1 << 18), b""), MAX_ANSWER)
        try:
            answer = load_json(data, "the hub's answer", most=MAX_ANSWER)
        except FormatError as error:
            raise TransportError(
                "the hub's answer makes no sense",
                path=name,
                expected=error.expected,
                found=f"{error.message}: {error.found}",
            ) from None
        try:
            commit = answer["sha"]
            files = tuple(file["rfilename"] for file in answer.get("siblings", ()))
            valid = _COMMIT.fullmatch(commit) and all(isinstance(file, str) for file in files)
        except (ValueError, LookupError, TypeError, AttributeError):
            valid = None
        if not valid or (address.is_commit and commit != address.revision):
            raise TransportError("the hub's answer makes no sense", path=name)
        return HubListing(commit, files)


class HubResource:
    """A file on the hub, or of the hub's cache on this machine."""

    def __init__(self, hub: Hub, address: HubAddress) -> None:
        self.address = str(address)
        self._hub = hub
        self._where = address
        self._lock = threading.Lock()
        self._found: Resource | None = None

    def __repr__(self) -> str:
        return f"HubResource({self.address!r})"

    def size(self) -> int | None:
        """See `Resource.size`."""
        with with_hub_remedies():
            return self._find().size()

    @contextmanager
    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Stream]:
        """See `Resource.read`."""
        with ExitStack() as stack:
            with with_hub_remedies():
                stream = stack.enter_context(self._find().read(start, stop))
            yield stream

    def _find(self) -> Resource:
        if self._found is None:
            found = self._choose()
            with self._lock:  # all threads use the same
                self._found = self._found or found
        return self._found

    def _choose(self) -> Resource:
        where, hub = self._where, self._hub
        known = where.is_commit or hub.offline
        commit = where.revision if known else hub.listing(where).commit
        if cached := hub.copies.find(where.repo, where.path, commit):
            return LocalResource(cached, self.address)
        if hub.offline:
            raise _offline_error(where)
        return hub.file(where, commit)


@contextmanager
def with_hub_remedies() -> Iterator[None]:
    """Add to a refusal of the hub what to do about it."""
    try:
        yield
    except TransportError as error:
        if error.status in (401, 403):
            error.remedy = (
                "put a token that may read this repository into HF_TOKEN; if it is gated, accept "
                "its terms on the hub's website; and check the name"
            )
        raise


@contextmanager
def _revision_remedy(address: HubAddress) -> Iterator[None]:
    """Say of a revision that is not there that it may be the beginning of one with a slash."""
    try:
        yield
    except TransportError as error:
        if error.status == 404 and address.path is not None and not address.is_commit:
            error.remedy = (
                "check repository and revision; a slash in a revision is written %2F, as in "
                f"hf://{address.repo}@{address.revision}%2F{address.path.partition('/')[0]}"
            )
        raise


def _offline_error(address: HubAddress) -> OfflineError:
    return OfflineError(
        "this is not in the hub's cache on this machine, and the network may not be used",
        path=address,
        remedy="allow the network (unset MLSTATE_OFFLINE and HF_HUB_OFFLINE)",
    )


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and ".." not in name
