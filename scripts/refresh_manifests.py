"""Look after manifests: ``python scripts/refresh_manifests.py [--quick] [--write] [MANIFEST ...]``.

States without a digest are pinned (with ``--write``). For every other state each mirror is asked
whether it still gives exactly what the manifest says; and the Hugging Face hub, whether there is
something newer. Everything is fetched into a temporary folder; with ``--quick`` hardly anything.
The exit status is 1 if something needs attention.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mlstate import Manifest, MlstateError, StateKey, lock, settings
from mlstate.errors import FetchError, TransportError
from mlstate.fetch import Fetcher
from mlstate.format import layout
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests import StateEntry, manifest_files
from mlstate.reading import Only
from mlstate.stores.cache import make_fetcher, open_cache
from mlstate.transport import Retries, Transports, retrying
from mlstate.transport.hub import HubAddress, parse_hub_address

SHIPPED = Path(__file__).parents[1] / "manifests"
RETRIES = Retries(3)


@dataclass(frozen=True)
class Finding:
    """Something to say of a state.

    Attributes:
        text: What.
        urgent: Whether somebody has to do something.
    """

    text: str
    urgent: bool = True


def main(arguments: list[str] | None = None) -> int:
    """Check all manifests and print what was found."""
    options = _parser().parse_args(arguments)
    urgent = 0
    for path in (file for given in options.manifests for file in manifest_files(given)):
        states = Manifest.read(path).states
        print(f"{path}: {len(states)} states")
        for key, entry in states.items():
            findings = list(check(path, entry, quick=options.quick, write=options.write))
            for finding in findings:
                print(f"  {'!' if finding.urgent else '-'} {key}: {finding.text}")
            urgent += any(finding.urgent for finding in findings)
    print(f"{urgent} states need attention" if urgent else "all is well")
    return 1 if urgent else 0


def check(path: Path, entry: StateEntry, *, quick: bool, write: bool) -> Iterator[Finding]:
    """Whatever is to be said of one state."""
    if entry.digest is None or entry.size is None:
        yield pinned(path, entry.key) if write else Finding("is not pinned; --write pins it")
        return
    with Transports(offline=settings.offline()) as transports:
        inspection = Inspection(entry, transports)
        for place, alone in inspection.places():
            problem = inspection.dead(alone) or (None if quick else inspection.wrong(alone))
            if problem:
                yield Finding(f"{place} {problem}")
        for mirror in entry.mirrors:
            if isinstance(mirror, Mirror):
                yield from inspection.newer(mirror, quick=quick)
            else:
                yield Finding(f"{mirror.toml} cannot be used: {mirror.reason}")


def pinned(path: Path, key: StateKey) -> Finding:
    """Pin a state."""
    with tempfile.TemporaryDirectory() as cache:
        try:
            entry = lock(path, [key], cache=cache)[key]
        except MlstateError as error:
            return Finding(f"could not be pinned: {_brief(error)}")
    return Finding(f"is pinned now, {entry.digest}, {entry.size} bytes", urgent=False)


class Inspection:
    """Questions about one pinned state.

    Args:
        entry: What its manifest says.
        transports: Opens addresses.
    """

    def __init__(self, entry: StateEntry, transports: Transports) -> None:
        self._entry = entry
        self._transports = transports
        self._base = Path(entry.origin).parent if entry.origin else None

    def places(self) -> Iterator[tuple[str, StateEntry]]:
        """Each place that is to have the state, or a file of it: the entry with that one alone."""
        bare = replace(self._entry, mirrors=(), objects=(), files={})
        for address in self._entry.objects:
            yield address, replace(bare, objects=(address,))
        for mirror in self._entry.mirrors:
            if isinstance(mirror, Mirror):
                yield " + ".join(_urls(mirror)), replace(bare, mirrors=(mirror,))
        for name, file in self._entry.files.items():
            for mirror in file.mirrors:
                if isinstance(mirror, Mirror):
                    files = {name: replace(file, mirrors=(mirror,))}
                    yield f"{mirror.urls[0]} (the file {name})", replace(bare, files=files)

    def dead(self, alone: StateEntry) -> str | None:
        """Why a place cannot have the state, as far as its sizes tell; None if it can."""
        try:
            sizes = {address: self._size(address) for address in _addresses(alone)}
        except MlstateError as error:
            return f"is dead: {_brief(error)}"
        file = next((url for mirror in alone.mirrors if (url := _one_plain_file(mirror))), "")
        size = sizes.get(file)
        if size is not None and alone.size is not None and size <= alone.size:
            return f"has other bytes: {size}, which is less than the state has"
        return None

    def wrong(self, alone: StateEntry) -> str | None:
        """Why a mirror does not give the state; None if it does."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                _fetcher(folder).fetch(alone, Only.FILES if alone.files else None)
            except FetchError as error:
                reasons = "; ".join(reason for _, reason in error.attempts)
                return f"does not give what it should: {reasons or error.message}"
            except MlstateError as error:
                return f"does not give what it should: {_brief(error)}"
        return None

    def newer(self, mirror: Mirror, *, quick: bool) -> Iterator[Finding]:
        """Whether a repository on the hub has other weights on main than where it is pinned."""
        where = [parse_hub_address(url) for url in _urls(mirror) if url.startswith("hf://")]
        for repo in sorted({address.repo for address in where if address.is_commit}):
            try:
                commit = self._transports.hub_files(f"hf://{repo}").commit
            except MlstateError as error:
                yield Finding(f"hf://{repo} does not say what is new: {_brief(error)}")
                continue
            if all(address.revision == commit for address in where if address.repo == repo):
                continue
            about = f"hf://{repo} has a newer commit on main, {commit},"
            try:
                differs = self._differs(mirror, repo, commit, quick=quick)
            except MlstateError as error:
                yield Finding(f"{about} where the weights cannot be read: {_brief(error)}")
                continue
            if differs:
                yield Finding(f"{about} with other weights")
            else:
                same = "weights of the same size" if quick else "the same weights"
                yield Finding(f"{about} with {same}", urgent=False)

    def _differs(self, mirror: Mirror, repo: str, commit: str, *, quick: bool) -> bool:
        new = _moved(mirror, repo, commit)
        if quick:
            pairs = zip(_urls(mirror), _urls(new), strict=True)
            return any(self._size(old) != self._size(now) for old, now in pairs)
        bare = replace(self._entry, digest=None, size=None, mirrors=(new,), objects=(), files={})
        with tempfile.TemporaryDirectory() as folder:
            return _fetcher(folder).pin(bare).digest != self._entry.digest

    def _size(self, address: str) -> int | None:
        if address.startswith("hf://") and parse_hub_address(address).path is None:
            self._transports.hub_files(address)
            return None
        resource = self._transports.open(address, base=self._base)
        return retrying(resource, RETRIES).size()


def _fetcher(folder: str) -> Fetcher:
    fetcher = make_fetcher(open_cache(folder), offline=None, progress=None)
    fetcher.retries, fetcher.durable = RETRIES, False
    return fetcher


def _addresses(alone: StateEntry) -> Iterator[str]:
    """What a place must have: its files; in the store layout, the state object."""
    of_files = (mirror for file in alone.files.values() for mirror in file.mirrors)
    for mirror in (*alone.mirrors, *of_files):
        if isinstance(mirror, Mirror):
            yield from _urls(mirror)
            yield from [mirror.state] if mirror.state is not None else []
    for address in alone.objects:
        yield f"{address.rstrip('/')}/{layout.object_path(alone.pinned_digest)}"


def _urls(mirror: Mirror) -> list[str]:
    return [url for part in mirror.parts or (mirror,) for url in part.urls]


def _one_plain_file(mirror: Mirror | UnusableMirror) -> str | None:
    """The address of the file that is a mirror, if it must have all bytes of the state."""
    if not isinstance(mirror, Mirror) or mirror.state or len(mirror.urls) != 1:
        return None
    return mirror.urls[0] if mirror.urls[0].endswith(".safetensors") else None


def _moved(mirror: Mirror, repo: str, commit: str) -> Mirror:
    """A mirror at another commit of a repository; it has no sum there."""

    def moved(url: str) -> str:
        if not url.startswith("hf://") or parse_hub_address(url).repo != repo:
            return url
        return str(HubAddress(repo, commit, parse_hub_address(url).path))

    return replace(
        mirror,
        urls=tuple(map(moved, mirror.urls)),
        parts=tuple(_moved(part, repo, commit) for part in mirror.parts),
        sha256=None,
        state=None,
    )


def _brief(error: MlstateError) -> str:
    if isinstance(error, FetchError) and error.attempts:
        return "; ".join(reason for _, reason in error.attempts)
    if isinstance(error, TransportError) and error.status and "://" in str(error.path):
        return f"{error.message} ({error.status})"
    return error.message


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Check the mirrors of manifests, pin their states."
    )
    parser.add_argument("manifests", nargs="*", type=Path, default=[SHIPPED], metavar="MANIFEST")
    parser.add_argument("--quick", action="store_true", help="ask for sizes only, fetch nothing")
    parser.add_argument("--write", action="store_true", help="pin what is not pinned")
    return parser


if __name__ == "__main__":
    sys.exit(main())
