"""Rot: a thing of a store or a cache is damaged, and then everything reads it.

What reads gives the right bytes or an error of its own type, in bounded time; and what is damaged
can be mended: a cache by `verify(repair=True)`, a store by saving again.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import uuid
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mlstate import (
    LocalStateStore,
    ManifestStore,
    bundle,
    copy,
    describe,
    diff,
    export,
    file_digest,
    manifest_of,
    usage,
    verify,
)
from mlstate.errors import FormatError, MlstateError
from mlstate.stores.read import StateStore
from tests.support.planting import KINDS, PRECIOUS, Victim, plant, time_limit
from tests.torture.states import check_folder, key_of, known, save, whole

__all__ = ["attack"]

SCALE = 0.2
NAMES = {"a": 0, "b": 1}


def _flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    _put(path, bytes(data))


def _truncate(path: Path, chance: random.Random) -> None:
    _put(path, path.read_bytes()[: chance.randrange(path.stat().st_size + 1)])


def _extend(path: Path, chance: random.Random) -> None:
    _put(path, path.read_bytes() + chance.randbytes(chance.choice((1, 5000))))


def _zeros(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data) + 1)
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    _put(path, bytes(data))


def _noise(path: Path, chance: random.Random) -> None:
    _put(path, chance.randbytes(path.stat().st_size))


def _put(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def _remove(path: Path, chance: random.Random) -> None:
    path.unlink()


def _swap(path: Path, chance: random.Random) -> None:
    others = [one for one in path.parents[1].rglob("*") if one.is_file() and one != path]
    other = chance.choice(others or [path])
    first, second = path.read_bytes(), other.read_bytes()
    _put(path, second)
    _put(other, first)


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "a flipped bit": _flip,
    "a truncated file": _truncate,
    "a longer file": _extend,
    "zeros": _zeros,
    "noise": _noise,
    "a removed file": _remove,
    "two swapped files": _swap,
}


def _damage(folder: Path, victim: Victim, chance: random.Random) -> str:
    """Damage something of a store; says what."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = chance.choice(files)
    kind = chance.choice([*DAMAGE, *KINDS])
    if kind in DAMAGE:
        DAMAGE[kind](path, chance)
    elif chance.random() < 0.2 and path.parent != folder:
        shutil.rmtree(path.parent)
        path = path.parent
        plant(kind if kind != "folder" else "file", path, victim)
    else:
        plant(kind, path, victim)
    return f"{kind} at {path.relative_to(folder)}"


def _reads(store: StateStore, name: str, out: Path) -> dict[str, Callable[[], None]]:
    """What reads a state; each raises an AssertionError if it gives any but the right bytes."""
    key, state = key_of(name), known(NAMES[name], SCALE)

    def load() -> None:
        tensors = store.load_state_dict(key)
        assert {n: bytes(t.numpy().tobytes()) for n, t in tensors.items()} == state.tensors

    def files() -> None:
        assert dict(store.files(key)) == state.files

    def exported() -> None:
        path = export(store, key, out / "out.safetensors", overwrite=True)
        assert file_digest(path) == state.encoded.digest

    def materialized() -> None:
        path = store.materialize(key, out / "plain", overwrite=True)
        assert file_digest(path / "model.safetensors") == state.encoded.digest

    def copied() -> None:
        target = LocalStateStore(out / "copied")
        copy(store, target, [key])
        check_folder(out / "copied", {name: {NAMES[name]}}, SCALE)

    def bundled() -> None:
        bundle(store, [key], out / "out.tar", overwrite=True)

    def described() -> None:
        assert describe(store, key).digest == state.encoded.digest

    return {
        "load": load,
        "files": files,
        "export": exported,
        "materialize": materialized,
        "copy": copied,
        "bundle": bundled,
        "describe": described,
        "list": lambda: list(store.listing()) and None,
        "usage": lambda: usage(store) and None,
        "diff": lambda: diff((store, key_of("a")), (store, key_of("b"))) and None,
    }


def _read_all(open_store: Callable[[], StateStore], root: Path, figures: Counter[str]) -> None:
    for name in NAMES:
        out = Path(tempfile.mkdtemp(dir=root))
        try:
            operations = _reads(open_store(), name, out)
        except MlstateError:
            figures["typed errors of damage"] += 1
            continue
        for operation, run in operations.items():
            figures["operations on damaged stores"] += 1
            try:
                with time_limit(60):
                    run()
            except MlstateError:
                figures["typed errors of damage"] += 1
            except OSError as error:  # the system's own: a folder that may not be replaced, say
                raise AssertionError(f"{operation} ends with {error!r}") from error


def attack(seed: int, folder: Path, figures: Counter[str]) -> None:
    """Damage a store or a cache in a few ways, read everything, and mend it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what was damaged and is fetched again
        _attack(seed, folder, figures)


def _attack(seed: int, folder: Path, figures: Counter[str]) -> None:
    chance = random.Random(seed)
    root = Path(tempfile.mkdtemp(dir=folder))
    said: list[str] = []
    try:
        victim = Victim(root / "victim")
        source = LocalStateStore(root / "web")
        for name, number in NAMES.items():
            save(source, name, number, scale=SCALE)
        manifest_of(source, objects=[str(root / "web")]).write(root / "m.toml")
        is_cache = chance.random() < 0.5
        place = root / "place"
        if is_cache:
            for name in NAMES:
                ManifestStore(root / "m.toml", cache=place).fetch(key_of(name))
        else:
            shutil.copytree(root / "web", place)
        said += [_damage(place, victim, chance) for _ in range(chance.choice((1, 1, 2, 3)))]
        figures["damages"] += len(said)

        def open_store() -> StateStore:
            return (
                ManifestStore(root / "m.toml", cache=place) if is_cache else LocalStateStore(place)
            )

        with time_limit(60):
            _verify(open_store)
        _read_all(open_store, root, figures)
        (_mend_cache if is_cache else _mend_store)(open_store, place, said)
        if any(one.startswith("hard link") for one in said):  # a save freshens the time of a file
            assert victim.file.read_bytes() == PRECIOUS
        else:
            victim.check()
        figures["stores mended"] += 1
    except Exception as error:
        raise AssertionError(f"seed {seed}, {said}: {error!r}") from error
    finally:
        for path in root.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                os.chmod(path, 0o755)
        shutil.rmtree(root)


def _verify(open_store: Callable[[], StateStore]) -> None:
    try:
        verify(open_store())
    except MlstateError:
        return


def _mend_cache(open_store: Callable[[], StateStore], place: Path, said: list[str]) -> None:
    if "mlstate.toml" in " ".join(said):
        return  # whose settings are damaged is no cache: it says so, and can be removed
    report = verify(open_store(), repair=True)
    assert report.ok, str(report.findings[0])
    for name, number in NAMES.items():
        open_store().fetch(key_of(name))
        assert whole(open_store(), name, SCALE) == number
    assert verify(open_store()).findings == ()


def _mend_store(open_store: Callable[[], StateStore], place: Path, said: list[str]) -> None:
    if "mlstate.toml" in " ".join(said):
        return
    store = LocalStateStore(place)
    for name, number in NAMES.items():
        for _ in said:
            try:
                save(store, name, number, scale=SCALE, overwrite=True, verify=True)
            except FormatError as error:  # which says to move what is in the way
                if error.remedy != "move it out of the way":
                    raise
                os.rename(str(error.path), place.parent / uuid.uuid4().hex)
        save(store, name, number, scale=SCALE, overwrite=True, verify=True)
    for name, number in NAMES.items():
        assert whole(store, name, SCALE) == number
