"""`diagnose` looks at settings, folders and places for trouble."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlstate import settings
from mlstate.errors import MlstateError
from mlstate.objects.cache import folders_of
from mlstate.operations.doctor.check import Check, failed
from mlstate.operations.doctor.folders import folder_checks, readonly_check
from mlstate.operations.doctor.network import ask_all
from mlstate.operations.doctor.peers import peer_checks
from mlstate.operations.doctor.places import Place, places_of, unusable
from mlstate.operations.tables import Table, Tabular
from mlstate.phrases import called
from mlstate.stores.open import open_store
from mlstate.stores.read import StateStore

__all__ = ["Check", "Diagnosis", "SettingValue", "diagnose"]

_PACKAGES = (
    "torch",
    "safetensors",
    "blake3",
    "obstore",
    "boto3",
    "huggingface_hub",
    "rich",
    "typer",
)
_LOGIN = re.compile(r"://[^/@\s]*@")


class SettingValue(NamedTuple):
    """A setting: its name, its value if it is set (a secret one is hidden), its default."""

    name: str
    value: str | None
    default: str


@dataclass(frozen=True)
class Diagnosis(Tabular):
    """The findings of a diagnosis.

    Attributes:
        versions: Name -> version, of mlstate, Python, the system, and the packages that matter;
            None of one that is not installed.
        settings: All settings of mlstate, and those of other tools that are set.
        checks: The things that were looked at.
    """

    versions: Mapping[str, str | None]
    settings: tuple[SettingValue, ...]
    checks: tuple[Check, ...]

    def _table(self) -> Table:
        marks = {True: "ok", False: "problem", None: ""}
        rows = [(one.name, marks[one.ok], one.found, one.remedy or "") for one in self.checks]
        failed = sum(one.ok is False for one in self.checks)
        return Table(("WHAT", "OK", "FOUND", "WHAT TO DO"), rows, f"{failed} problems")

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)


def diagnose(
    store: str | os.PathLike[str] | StateStore | None = None,
    *,
    reach: bool = True,
    offline: bool | None = None,
) -> Diagnosis:
    """Look at versions, settings, the cache and its disk, and the places that bytes come from.

    Nothing is changed. In the cache, or in its nearest parent that is there, a temporary folder is
    made and removed, to see what the file system can do.

    Args:
        store: The store whose cache and places are looked at: one, or what `open_store` takes.
        reach: Whether to ask the places: each once, all together for some seconds at most.
        offline: Open no socket. By default as MLSTATE_OFFLINE says.

    Returns:
        What was found. That a store cannot be opened is a finding, too.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mlstate import ManifestStore
        >>> manifest = Path(tempfile.mkdtemp()) / "weights.toml"
        >>> _ = manifest.write_text("version = 1")
        >>> found = diagnose(ManifestStore(manifest, cache=manifest.parent / "cache"))
        >>> [check.name for check in found.checks if check.name in ("store", "cache")]
        ['store', 'cache']
    """
    forbidden = settings.offline() if offline is None else offline
    return Diagnosis(
        _versions(), tuple(_settings()), tuple(_checks(store, reach=reach, offline=forbidden))
    )


def _versions() -> dict[str, str | None]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from mlstate.version import __version__

    found: dict[str, str | None] = {
        "mlstate": __version__,
        "Python": platform.python_version(),
        "system": platform.platform(),
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _settings() -> Iterator[SettingValue]:
    for setting in (*settings.SETTINGS, *settings.OTHERS):
        values = setting.values()
        for name, value in values.items():
            # An address may have a login in it, whether it should or not.
            yield SettingValue(name, _LOGIN.sub("://(hidden)@", value), setting.default)
        if not values and setting in settings.SETTINGS:
            yield SettingValue(setting.name, None, setting.default)


def _checks(
    store: str | os.PathLike[str] | StateStore | None, *, reach: bool, offline: bool
) -> Iterator[Check]:
    view: StateStore | None = None
    try:
        view = store if isinstance(store, StateStore) else open_store(store, offline=offline)
        yield _store_check(view)
    except (MlstateError, OSError) as error:
        yield failed("store", error)
    if view is not None and view.folder is not None:
        yield from folder_checks("store", view.folder)
    yield from _cache_checks(view)
    if view is not None and view.manifest and (check := unusable(view.manifest)):
        yield check
    yield from _peer_checks(reach=reach, offline=offline)
    places = [] if view is None else _places(view)
    yield from (found for found in places if isinstance(found, Check))
    asked = [found for found in places if isinstance(found, Place)]
    if not reach:
        yield from (Check(place.name, None, "not asked") for place in asked)
    elif asked:
        # A store that was given may have credentials that the environment does not know.
        buckets = store.clients if isinstance(store, StateStore) else {}
        yield from ask_all(asked, offline=offline, buckets=buckets)


def _peer_checks(*, reach: bool, offline: bool) -> Iterator[Check]:
    try:
        address = settings.peers()
    except MlstateError as error:
        yield failed("peers", error)
        return
    if address is not None:
        yield from peer_checks(address, offline=offline or not reach)


def _places(view: StateStore) -> Sequence[Place | Check]:
    if view.manifest is not None:
        return places_of(view.manifest)
    place = view.place
    return [] if place is None else [Place(place.name, place.address, lacking=place.lacking)]


def _store_check(view: StateStore) -> Check:
    if view.manifest is not None:
        states = view.manifest.states
        entries = [entry for entry in map(view.catalog.recorded, states) if entry is not None]
        unpinned = sum(entry.digest is None for entry in entries)
        found = f"{view}, {len(states):,} states"
        if unpinned:
            first = next(entry for entry in entries if entry.digest is None)
            remedy = (
                "pin them: " + first.how_to_lock() + ", say; some are pinned by their first use"
            )
            return Check("store", True, f"{found}, of which {unpinned:,} are not pinned", remedy)
        return Check("store", True, found)
    if view.place is not None:
        return Check("store", True, called(view))  # it is asked as a place
    return Check("store", True, f"{view}, {len(view.get_state_keys()):,} states")


def _cache_checks(view: StateStore | None) -> Iterator[Check]:
    """Of the store's cache; of a store that has none, of that of the settings."""
    own: Path | None = settings.cache_folder()
    folders = settings.readonly_caches()
    if view is not None and view.fetcher is not None:
        cache = view.fetcher.cache
        own = None if cache.own is None else cache.own.root
        folders = [folder.root for folder in folders_of(cache) if folder is not cache.own]
    for folder in folders:
        yield readonly_check(folder)
    if own is None:
        yield Check("cache", None, f"{view}: nothing is known of it here")
    else:
        yield from folder_checks("cache", own)
