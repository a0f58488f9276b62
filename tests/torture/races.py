"""Races: many processes on one store, or on one cache, whose history is held against a model.

A store has savers, deleters, loaders, pruners, verifiers, and one who makes objects old, as if
weeks had passed. A cache has fetchers, evicting pruners and verifiers that repair.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mlstate import LocalStateStore, ManifestStore, manifest_of, verify
from mlstate.errors import StateExistsError, StateNotFoundError
from tests.torture.history import Event, contradiction
from tests.torture.states import check_folder, key_of, save, whole

__all__ = ["race_on_cache", "race_on_store"]

SCALE = 0.1
NAMES = "abc"
GRACE = 300.0
"""Seconds: longer than any save here."""
_OLD = 3600.0
_UNDER_WAY = 5.0
"""Seconds: what changed no longer ago may be part of an operation that still goes on."""
ROLES = ("saver", "saver", "deleter", "loader", "pruner", "verifier", "ager")


def race_on_store(seed: int, seconds: float, folder: Path, figures: Counter[str]) -> None:
    """Let processes race on a new store; an AssertionError tells what cannot have been."""
    events = _race("store", seed, seconds, folder, ROLES)
    figures["races"] += 1
    figures["raced operations"] += len(events)
    history = [Event(**event) for event in events if event["call"] in _MODELLED]
    figures["operations held against the model"] += len(history)
    wrong = contradiction(history)
    assert wrong is None, f"seed {seed}: {wrong}"
    store = LocalStateStore(folder / "store")
    there = {name: whole(store, name, SCALE) for name in NAMES}
    check_folder(folder / "store", {name: {number} for name, number in there.items()}, SCALE)
    for _ in range(2):
        store.prune(grace_seconds=-60)
    check_folder(folder / "store", {name: {number} for name, number in there.items()}, SCALE)
    assert list((folder / "store" / "tmp").iterdir()) == []


def race_on_cache(seed: int, seconds: float, folder: Path, figures: Counter[str]) -> None:
    """Let processes race on a new cache."""
    web = LocalStateStore(folder / "web")
    for number, name in enumerate(NAMES):
        save(web, name, number, scale=SCALE)
    manifest_of(web, objects=[str(folder / "web")]).write(folder / "m.toml")
    roles = ("fetcher", "fetcher", "fetcher", "evicter", "repairer", "ager")
    events = _race("cache", seed, seconds, folder, roles)
    figures["races"] += 1
    figures["raced operations"] += len(events)
    store = ManifestStore(folder / "m.toml", cache=folder / "cache")
    for number, name in enumerate(NAMES):
        store.fetch(key_of(name))
        assert whole(store, name, SCALE) == number
    assert verify(store).findings == ()


def _race(
    kind: str, seed: int, seconds: float, folder: Path, roles: tuple[str, ...]
) -> list[dict[str, object]]:
    place = folder / kind
    parent = str(Path(__file__).parents[2])
    children = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.torture.races", role, str(place)),
                *(str(seed * 100 + number), str(seconds)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=parent,
            env={**os.environ, "PYTHONPATH": parent},
        )
        for number, role in enumerate(roles)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    events: list[dict[str, object]] = []
    errors = []
    for child, role in zip(children, roles, strict=True):
        out, err = child.communicate(timeout=seconds * 20 + 120)
        events += [json.loads(line) for line in out.splitlines()]
        if child.returncode:
            errors.append(f"{role}: {err[-1500:]}")
    assert not errors, f"seed {seed}: " + "\n".join(errors)
    return events


_MODELLED = {"save", "save over", "delete", "load"}


def _work(role: str, place: Path, seed: int, seconds: float) -> None:
    warnings.simplefilter("ignore")
    chance = random.Random(seed)
    if role in ("fetcher", "evicter", "repairer") or place.name == "cache":
        store: object = ManifestStore(place.parent / "m.toml", cache=place)
    else:
        store = LocalStateStore(place)
    turn = {
        "saver": _save,
        "deleter": _delete,
        "loader": _load,
        "pruner": _prune,
        "verifier": _verify,
        "ager": _age,
        "fetcher": _fetch,
        "evicter": _evict,
        "repairer": _repair,
    }[role]
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name, number = chance.choice(NAMES), chance.randrange(6)
        start = time.monotonic_ns()
        call, answer = turn(store, name, number, chance)
        said = {"key": name, "call": call, "number": number, "answer": answer, "start": start}
        print(json.dumps({**said, "end": time.monotonic_ns(), "by": seed}), flush=True)


def _save(store, name, number, chance):  # type: ignore[no-untyped-def]
    over = chance.random() < 0.3
    try:
        save(store, name, number, scale=SCALE, overwrite=over)
    except StateExistsError:
        return "save", "exists"
    return ("save over" if over else "save"), "saved"


def _delete(store, name, number, chance):  # type: ignore[no-untyped-def]
    time.sleep(chance.uniform(0, 0.02))
    try:
        store.delete(key_of(name))
    except StateNotFoundError:
        return "delete", "absent"
    return "delete", "deleted"


def _load(store, name, number, chance):  # type: ignore[no-untyped-def]
    found = whole(store, name, SCALE)
    return "load", "absent" if found is None else found


def _prune(store, name, number, chance):  # type: ignore[no-untyped-def]
    store.prune(grace_seconds=GRACE)
    return "prune", None


def _verify(store, name, number, chance):  # type: ignore[no-untyped-def]
    damaged = [str(one) for one in verify(store).findings if one.kind == "damaged"]
    assert not damaged, damaged
    return "verify", None


def _age(store, name, number, chance):  # type: ignore[no-untyped-def]
    """Make some objects, and what is in trash/, as old as they would be by next week.

    What came or was freshened just now stays young: no operation takes an hour.
    """
    place, now = store.folder or store.objects.own.root, time.time()
    for path in _files(place):
        with contextlib.suppress(OSError):
            if chance.random() < 0.3 and path.lstat().st_ctime < now - _UNDER_WAY:
                old = now - _OLD * chance.choice((1.1, 2, 13))
                os.utime(path, (old, old))
    time.sleep(chance.uniform(0, 0.05))
    return "age", None


def _files(place: Path) -> Iterator[Path]:
    for pattern in ("objects/*/*", "trash/*"):
        yield from place.glob(pattern)


def _fetch(store, name, number, chance):  # type: ignore[no-untyped-def]
    expected = NAMES.index(name)
    files = store.files(key_of(name))
    assert files["labels.json"] == json.dumps([expected]).encode()
    store.fetch(key_of(name))
    return "fetch", None


def _evict(store, name, number, chance):  # type: ignore[no-untyped-def]
    store.prune(max_size=chance.choice((0, 100_000, 300_000)))
    time.sleep(chance.uniform(0, 0.02))
    return "evict", None


def _repair(store, name, number, chance):  # type: ignore[no-untyped-def]
    damaged = [str(one) for one in verify(store, repair=True).findings if one.kind == "damaged"]
    assert not damaged, damaged
    return "repair", None


if __name__ == "__main__":
    _work(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
