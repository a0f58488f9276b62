"""Buckets: the process that saves, deletes, prunes or copies is killed at each of its requests.

A proxy before the server counts the requests that change something, and kills the process when
number N comes, before it is passed on, or once the server has done it and before anybody knows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlstate import LocalStateStore, S3StateStore, copy, verify
from tests.servers.forwarding import Forwarding
from tests.servers.replies import Record, Reply
from tests.servers.s3 import S3Server
from tests.torture.states import key_of, save, whole

__all__ = ["OPERATIONS", "attack", "attack_all"]

SCALE = 0.1
_CHANGING = {"PUT", "POST", "DELETE"}
Expected = Mapping[str, int | None]


@dataclass(frozen=True)
class BucketOperation:
    """An operation on a bucket: what it does, and which states there are before and after."""

    run: Callable[[S3StateStore, Path], object]
    before: Expected
    after: Expected


def _copy(store: S3StateStore, folder: Path) -> object:
    source = LocalStateStore(folder / "source")
    save(source, "new", 1, scale=SCALE)
    return copy(source, store, [key_of("new")])


def _delete(store: S3StateStore, folder: Path) -> object:
    return key_of("gone") in store.get_state_keys() and store.delete(key_of("gone"))


OPERATIONS: dict[str, BucketOperation] = {
    "save": BucketOperation(
        lambda store, folder: save(store, "new", 1, scale=SCALE),
        {"base": 0, "gone": 2},
        {"base": 0, "gone": 2, "new": 1},
    ),
    "save over": BucketOperation(
        lambda store, folder: save(store, "base", 4, scale=SCALE, overwrite=True),
        {"base": 0, "gone": 2},
        {"base": 4, "gone": 2},
    ),
    "delete": BucketOperation(_delete, {"base": 0, "gone": 2}, {"base": 0}),
    "prune": BucketOperation(
        lambda store, folder: store.prune(grace_seconds=-60), {"base": 0}, {"base": 0}
    ),
    "copy": BucketOperation(_copy, {"base": 0, "gone": 2}, {"base": 0, "gone": 2, "new": 1}),
}


def _open(server: S3Server, bucket: str, cache: Path, url: str | None = None) -> S3StateStore:
    return S3StateStore(bucket, server.session_kwargs, url or server.url, "models", cache=cache)


def _prepare(server: S3Server, name: str, cache: Path) -> str:
    bucket = server.new_bucket()
    store = _open(server, bucket, cache)
    save(store, "base", 0, scale=SCALE)
    save(store, "gone", 2, scale=SCALE)
    if name == "prune":
        store.delete(key_of("gone"))
    return bucket


def _check(store: S3StateStore, *expected: Expected) -> None:
    names = set().union(*expected)
    for name in names:
        found = whole(store, name, SCALE)
        assert found in {one.get(name) for one in expected}, f"{name} is {found}"
    listed = {key.training_id for key in store.get_state_keys()}
    assert listed <= names, listed
    report = verify(store)
    assert report.findings == (), str(report.findings[0])


def attack(server: S3Server, name: str, at: int, after: bool, figures: Counter[str]) -> bool:
    """Kill an operation at a request, and check what is promised; False if it makes fewer."""
    operation = OPERATIONS[name]
    with tempfile.TemporaryDirectory() as folder, Forwarding(server.url) as proxy:
        cache = Path(folder) / "cache"
        bucket = _prepare(server, name, cache)
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.torture.buckets", name, proxy.url, bucket, folder),
                *(server.access_key, server.secret),
            ],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        count = [0]

        def kill(record: Record) -> None:
            if record.method in _CHANGING and child.poll() is None:
                count[0] += 1
                if count[0] == at:
                    os.kill(child.pid, signal.SIGKILL)
                    child.wait()

        def answer(record: Record) -> Reply | None:
            kill(record)
            return None

        def back(record: Record, reply: Reply) -> Reply:
            kill(record)
            return reply

        if after:
            proxy.back = back
        else:
            proxy.answer = answer
        _, said = child.communicate(timeout=120)
        killed = child.returncode == -signal.SIGKILL
        assert killed or child.returncode == 0, said[-1500:]
        figures["kills at requests to buckets"] += killed
        where = f"{name}, killed {'after' if after else 'before'} request {at}"
        try:
            store = _open(server, bucket, Path(folder) / "other")
            _check(store, operation.before, operation.after)
            operation.run(store, Path(folder))
            _check(store, operation.after)
            for _ in range(2):
                store.prune(grace_seconds=-60)
            _check(_open(server, bucket, Path(folder) / "third"), operation.after)
        except Exception as error:
            raise AssertionError(f"{where}: {error!r}") from error
    return killed


def attack_all(server: S3Server, name: str, figures: Counter[str], step: int = 1) -> None:
    """Kill an operation at each of its requests, or every so many of them."""
    at = 1
    while attack(server, name, at, at % 2 == 0, figures):
        at += step


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    called, address, place, where, key, secret = sys.argv[1:]
    here = S3Server()
    here.url, here.access_key, here.secret = address, key, secret
    OPERATIONS[called].run(_open(here, place, Path(where) / "cache"), Path(where))
