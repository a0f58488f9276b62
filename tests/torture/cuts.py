"""Power cuts: recorded steps are replayed without what nobody had flushed.

What a file system may keep of steps that were not flushed is not said by any standard. Two models:

ordered
    As journals do: of the names, all changes up to some moment after the last flush; of the data,
    what was flushed, and any of the rest.
any
    As little as POSIX promises: a name is there for sure only once its folder was flushed; of
    others any choice is there, folder by folder. A rename within a folder is whole or not at all;
    one between two folders may leave both names.

Data that was written and not flushed is there, is missing, or is there in part, page by page; the
size of the file may have come through without it, and then it is zeros.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tests.torture.operations import OPERATIONS
from tests.torture.recording import Disk, Step, read_log, snapshot
from tests.torture.server import Server
from tests.torture.states import check_folder, key_of, save

__all__ = ["HISTORY", "MODELS", "Recorded", "cut", "cuts_of", "record"]

MODELS = ("ordered", "any")
_PAGE = 4096
_NAMES = {"create", "mkdir", "link", "rename", "exchange", "unlink"}
_Effect = tuple[str, int | None]  # a path, and the inode that it names from here on
HISTORY = "history"


class Recorded:
    """An operation that was recorded: the disk before, and every step."""

    def __init__(self, name: str, before: Disk, steps: Sequence[Step]) -> None:
        self.name, self.before, self.steps = name, before, steps


def record(server: Server, name: str, folder: Path) -> Recorded:
    """Run an operation under the shim, and note all that it does."""
    root = Path(tempfile.mkdtemp(dir=folder))
    log = root.with_suffix(".log")
    try:
        OPERATIONS[name].prepare(root)
        before = snapshot(root)
        outcome = server.run(name, root, log=log)
        assert not outcome.error, outcome.text
        return Recorded(name, before, read_log(log, root) if log.exists() else [])
    finally:
        shutil.rmtree(root)
        log.unlink(missing_ok=True)


def cut(recorded: Recorded, at: int, model: str, chance: random.Random) -> Disk:
    """A disk as a cut after so many steps may leave it."""
    steps = recorded.steps[:at]
    kept = _ordered(steps, chance) if model == "ordered" else _any(steps, chance)
    folders, names = set(recorded.before.folders), dict(recorded.before.names)
    for effects, is_folder in kept:
        for path, inode in effects:
            if inode is None:
                names.pop(path, None)
                folders.discard(path)
            elif is_folder:
                folders.add(path)
            else:
                names[path] = inode
    contents = _contents(recorded.before.contents, steps, chance)
    there = {path for path in folders if all(str(one) in folders for one in _above(path))}
    return Disk(
        frozenset(there),
        {path: inode for path, inode in names.items() if _parent(path) in there},
        {inode: contents.get(inode, b"") for inode in names.values()},
    )


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _above(path: str) -> Sequence[PurePosixPath]:
    return PurePosixPath(path).parents


def _effects(step: Step, names: dict[str, int]) -> list[list[_Effect]]:
    """What a step does to names, in parts that are whole or not at all; `names` follows."""
    if step.call in ("create", "mkdir"):
        groups: list[list[_Effect]] = [[(step.path, step.inode)]]
    elif step.call == "link":
        groups = [[(step.other, step.inode)]]
    elif step.call == "unlink":
        groups = [[(step.path, None)]]
    elif step.call == "exchange":  # the inode is the one that the second name has now
        groups = [[(step.other, step.inode), (step.path, names.get(step.other))]]
    elif _parent(step.path) == _parent(step.other):
        groups = [[(step.other, step.inode), (step.path, None)]]
    else:
        groups = [[(step.other, step.inode)], [(step.path, None)]]
    for group in groups:
        for path, inode in group:
            if inode is None:
                names.pop(path, None)
            else:
                names[path] = inode
    return groups


def _groups(steps: Sequence[Step]) -> Iterator[tuple[int, list[_Effect], bool]]:
    """All changes of names: the number of the step, its effects, and whether it made a folder."""
    names: dict[str, int] = {}
    for number, step in enumerate(steps):
        if step.call in _NAMES:
            for group in _effects(step, names):
                yield number, group, step.call == "mkdir"
        elif step.call in ("write", "fsync", "truncate"):
            names.setdefault(step.path, step.inode)


def _ordered(steps: Sequence[Step], chance: random.Random) -> list[tuple[list[_Effect], bool]]:
    flushed = max((n for n, step in enumerate(steps) if step.call == "fsync"), default=0)
    end = chance.choice((flushed, len(steps), chance.randint(flushed, len(steps))))
    return [(group, folder) for number, group, folder in _groups(steps) if number < end]


def _any(steps: Sequence[Step], chance: random.Random) -> list[tuple[list[_Effect], bool]]:
    flushed: dict[str, int] = {}
    for number, step in enumerate(steps):
        if step.call == "fsync":
            flushed[step.path] = number
    share = chance.choice((0.0, 0.5, 1.0, chance.random()))
    kept, before, added = [], -1, True
    for number, group, folder in _groups(steps):
        sure = any(flushed.get(_parent(path), -1) > number for path, _ in group)
        # Of a rename between two folders, the old name does not go before the new one is there.
        take = (sure or chance.random() < share) and (number != before or added)
        before, added = number, take
        if take:
            kept.append((group, folder))
    return kept


def _contents(
    before: dict[int, bytes], steps: Sequence[Step], chance: random.Random
) -> dict[int, bytes]:
    flushed = {step.inode: n for n, step in enumerate(steps) if step.call == "fsync"}
    contents = {inode: bytearray(data) for inode, data in before.items()}
    sizes: dict[int, int] = {}
    moods: dict[int, str] = {}
    for number, step in enumerate(steps):
        if step.call not in ("write", "truncate"):
            continue
        data = contents.setdefault(step.inode, bytearray())
        sure = flushed.get(step.inode, -1) > number
        mood = moods.setdefault(step.inode, chance.choice(("lost", "there", "pages", "zeros")))
        if step.call == "truncate":
            if sure or mood != "lost":
                del data[step.offset :]
                data.extend(bytes(step.offset - len(data)))
            continue
        end = step.offset + len(step.data)
        sizes[step.inode] = max(sizes.get(step.inode, 0), end)
        if not sure and mood in ("lost", "zeros"):
            continue
        for start in range(0, len(step.data), _PAGE):
            if sure or mood == "there" or chance.random() < 0.5:
                piece = step.data[start : start + _PAGE]
                place = step.offset + start
                data.extend(bytes(max(0, place + len(piece) - len(data))))
                data[place : place + len(piece)] = piece
    for inode, mood in moods.items():
        if mood == "zeros" and sizes.get(inode, 0) > len(contents[inode]):
            contents[inode].extend(bytes(sizes[inode] - len(contents[inode])))
    return {inode: bytes(data) for inode, data in contents.items()}


def cuts_of(
    recorded: Recorded, moments: Sequence[int], seed: int, folder: Path, figures: Counter[str]
) -> None:
    """Cut the power at moments of a recording, and check what is promised."""
    operation = OPERATIONS[recorded.name]
    for at in moments:
        for model in MODELS:
            chance = random.Random(f"{seed} {at} {model}")
            root = folder / f"cut-{recorded.name}-{at}-{model}"
            cut(recorded, at, model, chance).write(root)
            figures["power cuts"] += 1
            try:
                if recorded.name == HISTORY:
                    _check_history(recorded.steps, at, root)
                elif at == len(recorded.steps):  # it had returned
                    operation.check_done(root)
                else:
                    operation.check_any(root)
                if chance.random() < 0.3 and recorded.name != HISTORY:
                    operation.run(root)
                    operation.check_done(root)
            except Exception as error:
                last = recorded.steps[at - 1] if at else None
                where = f"{recorded.name}, cut after step {at} ({last and (last.call, last.path)})"
                raise AssertionError(f"{where}, {model}, seed {seed}: {error}") from error
            finally:
                shutil.rmtree(root)


def _check_history(steps: Sequence[Step], at: int, root: Path) -> None:
    """What had returned is there; what was under way is there or not."""
    marks = [(n, json.loads(step.path)) for n, step in enumerate(steps) if step.call == "mark"]
    said = [state for n, state in marks if n < at]
    coming = next((state for n, state in marks if n >= at), {})
    now = said[-1] if said else {}
    names = {name for _, state in marks for name in state}
    allowed = {name: {now.get(name), coming.get(name, now.get(name))} for name in names}
    found = check_folder(root / "store", allowed)
    if not any(found.values()):
        return
    from mlstate import LocalStateStore

    store = LocalStateStore(root / "store")  # and it goes on
    save(store, "later", 5)
    check_folder(root / "store", {**{n: {s} for n, s in found.items()}, "later": {5}})
    for key in [key_of("later")]:
        store.delete(key)
