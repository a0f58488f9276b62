"""`lock` finds the digests and sizes of the states of a manifest by fetching each once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from mlstate import settings
from mlstate.errors import (
    FetchError,
    MlstateError,
    PinMismatchError,
    StateNotFoundError,
    UnpinnedStateError,
)
from mlstate.fetch import MAX_SIZE, Fetcher, OnProgress
from mlstate.fetch.said import Said
from mlstate.locations import Mirror, local_path
from mlstate.manifests import Manifest, StateEntry
from mlstate.manifests.pins import Pins
from mlstate.operations.adopt_choice import Choice
from mlstate.operations.enlist import enlist, read_manifests, replace_entry
from mlstate.operations.source_elsewhere import source_elsewhere
from mlstate.phrases import Phrase
from mlstate.states import StateKey, check_keys
from mlstate.stores.cache import CacheLike, PathLike, make_fetcher, open_cache
from mlstate.stores.manifest import ManifestStore, shipped_manifests
from mlstate.stores.read import StateStore
from mlstate.transport.hub import parse_hub_address
from mlstate.units import parse_size

__all__ = ["lock", "unpinned"]


def lock(
    manifest: PathLike,
    keys: Collection[StateKey] | None = None,
    *,
    source: StateStore | None = None,
    from_pins: bool = False,
    cache: CacheLike | None = None,
    max_size: int | str = MAX_SIZE,
    offline: bool | None = None,
    progress: OnProgress | bool | None = None,
) -> dict[StateKey, StateEntry]:
    """Pin states: fetch each that has no digest or no size, and write both into the manifest.

    What is fetched stays in the cache. The manifest is written after each state; all else in it,
    comments included, stays byte for byte. A mirror on the Hugging Face hub gets the commit that
    its revision stands for, and a state from a whole repository its config and tokenizer as files.

    Trust is on first use: what the mirrors send now is what the digest will mean. A mirror's
    ``sha256`` is checked; and the user's pin of a state, if there is one. With ``from_pins``
    nothing is fetched: digests and sizes are those of the user's pins.

    Args:
        manifest: A manifest, or a folder of them.
        keys: The states to pin; by default all that are not.
        source: Takes those of `keys` that the manifest does not list from this store, and writes
            them into it once they are pinned. The manifest is a file then, and made if it is
            missing.
        from_pins: Take what the first use of these states has pinned on this machine. Without
            `keys`: of those that the manifest lists without a digest; and where there is no
            manifest yet, of all of `source`.
        cache: As for `mlstate.ManifestStore`.
        max_size: The most bytes of tensor data to take of one state, and that a compressed file may
            become: a number, or for instance ``"5GB"``. By default 1 TiB, and of compressed files
            100 times their size, or 256 MiB.
        offline: As for `mlstate.ManifestStore`.
        progress: As for `mlstate.ManifestStore`.

    Returns:
        The states that were pinned, each as it is written now.

    Raises:
        StateNotFoundError: The manifest lists no such state; nothing was done.
        ManifestError: The manifest cannot be read or edited.
        FetchError: Some states could not be fetched. The error lists them; all others are pinned.
        PinMismatchError: The mirrors send other weights than those that the user has pinned.
        UnpinnedStateError: With ``from_pins``: one of `keys` has no pin; nothing was done.
        OfflineError: One is missing in the cache, and the network may not be used.
    """
    wanted = None if keys is None else check_keys(keys)
    if from_pins:
        return _from_pins(manifest, wanted, source)
    new = {} if source is None or not wanted else _taken_over(manifest, wanted, source)
    opened, most = open_cache(cache), parse_size(max_size)
    fetcher = make_fetcher(opened, offline=offline, progress=progress, max_size=most)
    work: list[tuple[StateKey, Callable[[], StateEntry]]] = []
    if not new or local_path(manifest).exists():
        for path, read in read_manifests(manifest, [key for key in wanted or () if key not in new]):
            for key, entry in read.states.items():
                if (wanted is None or key in wanted) and _is_unpinned(entry):
                    work.append((key, partial(_pin, path, entry, fetcher)))
    work += [(key, partial(_pin_new, manifest, entry, fetcher)) for key, entry in new.items()]
    pinned: dict[StateKey, StateEntry] = {}
    failed: list[tuple[StateKey, MlstateError]] = []
    for key, pin in work:
        try:
            pinned[key] = pin()
        except MlstateError as error:
            failed.append((key, error))
    if len(failed) == 1:
        raise failed[0][1]
    if failed:
        raise FetchError(
            f"{len(failed)} states could not be pinned; {len(pinned)} were",
            path=manifest,
            attempts=tuple((str(key), _in_a_line(error)) for key, error in failed),
        )
    return pinned


def _in_a_line(error: MlstateError) -> str:
    return "; ".join(map(str.strip, str(error).splitlines()))


def unpinned(manifest: PathLike) -> list[StateKey]:
    """The states of a manifest, or of a folder of them, that have no digest or no size."""
    entries = (entry for _, read in read_manifests(manifest) for entry in read.states.values())
    return [entry.key for entry in entries if _is_unpinned(entry)]


def _is_unpinned(entry: StateEntry) -> bool:
    return entry.digest is None or entry.size is None


def _taken_over(
    manifest: PathLike, keys: Collection[StateKey], source: StateStore
) -> dict[StateKey, StateEntry]:
    """The states that a manifest does not list yet and that another store has without a digest.

    Those with a digest are written into the manifest at once, as the other store has them.
    """
    files = read_manifests(manifest) if local_path(manifest).exists() else []
    listed = {key for _, read in files for key in read.states}
    if not (new := [key for key in keys if key not in listed]):
        return {}
    if source.manifest is not None:  # as it is listed: what mirrors send is to be compared
        source = ManifestStore(source.manifest, pins="strict", require_signature=False)
    entries = {key: source.get(key).entry for key in new}
    if known := [key for key, entry in entries.items() if entry.digest is not None]:
        enlist(manifest, source, known)
    return {key: entry for key, entry in entries.items() if entry.digest is None}


def _from_pins(
    manifest: PathLike, keys: Collection[StateKey] | None, source: StateStore | None
) -> dict[StateKey, StateEntry]:
    """Write the digests of the user's pins into a manifest; see `lock`."""
    pins = Pins.of_user(shipped_manifests())
    exists = local_path(manifest).exists()
    files = read_manifests(manifest) if exists else []
    listed = {key: (path, e) for path, read in files for key, e in read.states.items()}
    pinned: dict[StateKey, StateEntry] = {}
    new: list[StateKey] = []
    whole = listed if exists or source is None else source.get_state_keys()
    for key in whole if keys is None else keys:
        path, entry = listed.get(key, (None, None))
        if entry is None and source is not None:
            entry = source.get(key).entry
        if entry is None:
            raise StateNotFoundError("the manifest lists no such state", key=key, path=manifest)
        known = pins.applied(entry) if entry.digest is None else entry
        if known.pin is not None:
            pinned[key] = replace(known, pin=None)
            new += [key] if path is None else []
        elif keys is not None and entry.digest is None:
            raise _no_pin(key, pins)
    if source is not None and new:
        entries = {key: pinned[key] for key in new}
        enlist(manifest, ManifestStore(Manifest(entries), require_signature=False), new)
    for key, entry in pinned.items():
        if key in listed and not replace_entry(*listed[key], entry):
            raise _changed(key, listed[key][0])
    return pinned


def _no_pin(key: StateKey, pins: Pins) -> UnpinnedStateError:
    return UnpinnedStateError(
        "you have no pin of this state; nothing was written",
        key=key,
        path=pins.path,
        remedy=Phrase(
            "pin it by its first use, fetch(key)", f"pin it by its first use, mlstate fetch {key}"
        )
        + ", or lock it without "
        + Phrase("from_pins=True", "--from-pins"),
    )


def _pin_new(manifest: PathLike, entry: StateEntry, fetcher: Fetcher) -> StateEntry:
    """Pin a state that a manifest does not list yet, and write it there once that is done."""
    pinned = _fetched(entry, fetcher)
    enlist(manifest, ManifestStore(Manifest({entry.key: pinned}), require_signature=False))
    return Manifest.read(manifest).states[entry.key]


def _pin(path: Path, entry: StateEntry, fetcher: Fetcher) -> StateEntry:
    pinned = _fetched(entry, fetcher)
    if not replace_entry(path, entry, pinned):
        raise _changed(entry.key, path)
    return pinned


def _fetched(entry: StateEntry, fetcher: Fetcher) -> StateEntry:
    """An entry with the digest and the size of what its mirrors send."""
    if entry.digest is None and "blake3" in entry.misspelt.values():
        raise entry.unpinned()  # its author has pinned it already
    settled, said = fetcher.settle(entry), dict[str, Said]()
    pinned = fetcher.pin(settled, said)
    _check_pin(entry, pinned)
    return _with_layout(entry, pinned, said, fetcher)


def _with_layout(
    entry: StateEntry, pinned: StateEntry, said: Mapping[str, Said], fetcher: Fetcher
) -> StateEntry:
    """An entry with the names of the files that its tensors came in, of a repository of the hub.

    Other tools find an adapter, say, by the name of its file.
    """
    for mirror, exact in zip(entry.mirrors, pinned.mirrors, strict=True):
        if pinned.layout or not (isinstance(mirror, Mirror) and isinstance(exact, Mirror)):
            continue
        if not (len(mirror.urls) == len(exact.urls) == 1 and _is_repository(mirror.urls[0])):
            continue
        choice = Choice(
            form=exact.format,
            strip_prefix=exact.strip_prefix,
            add_prefix=exact.add_prefix,
            rename=exact.rename,
        )
        with fetcher.transports() as transports:
            elsewhere = source_elsewhere(exact.urls[0], transports, choice).elsewhere
        layout = {} if elsewhere is None else replace(elsewhere, alone=False).layout(said)
        if elsewhere is not None and layout:
            used = {file.index for file in layout.values()}
            indexes = {name: at for name, at in elsewhere.indexes.items() if name in used}
            return replace(fetcher.pin_files(pinned, indexes), layout=layout)
    return pinned


def _is_repository(address: str) -> bool:
    return address.startswith("hf://") and parse_hub_address(address).path is None


def _check_pin(entry: StateEntry, pinned: StateEntry) -> None:
    """Refuse other weights than those that the user has pinned of this state, unless all are."""
    if entry.digest is not None or settings.pins() == "strict":
        return
    pin = Pins.of_user(shipped_manifests()).applied(entry).pin
    if pin is not None and pin.digest != pinned.digest:
        raise PinMismatchError(
            "the mirrors send other weights than those that you have pinned; nothing was written",
            key=entry.key,
            path=pin.place[0],
            line=pin.place[1],
            expected=pin.digest,
            found=pinned.digest,
            remedy=pin.remedy,
        )


def _changed(key: StateKey, path: Path) -> StateNotFoundError:
    return StateNotFoundError(
        "this state of the manifest was changed meanwhile; its digest was not written",
        key=key,
        path=path,
    )
