"""Lying servers: a mirror cuts, stalls, flips, swaps, truncates and changes its mind, at random.

What is fetched from it is right, or there is an error of our own type; and nothing wrong is kept.
"""

from __future__ import annotations

import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Lock

from mlstate import LocalStateStore, ManifestStore, verify
from mlstate.errors import MlstateError
from mlstate.transport import Retries, Transports
from tests.servers.recording import RecordingServer
from tests.servers.replies import Piece, Record, Reply, serve
from tests.torture.states import key_of, save, whole, write_plain

__all__ = ["LIES", "attack"]

SCALE = 0.3
NAME = "a"
NUMBER = 2

_Lie = Callable[[Reply, random.Random, Path], Reply]


def _bytes(reply: Reply) -> bytes:
    return b"".join(bytes(part) for part in reply.body) if isinstance(reply.body, Piece) else b""


def _with(reply: Reply, body: bytes, **headers: str) -> Reply:
    said = {**reply.headers, **{name.replace("_", "-"): text for name, text in headers.items()}}
    return Reply(reply.status, said, body)


def _cut(reply: Reply, chance: random.Random, folder: Path) -> Reply:
    data = _bytes(reply)
    part = data[: chance.randrange(len(data) + 1)]
    headers = {**reply.headers, "Content-Length": str(len(data))}
    return Reply(reply.status, headers, iter([part]), close=True)


def _stall(reply: Reply, chance: random.Random, folder: Path) -> Reply:
    data = _bytes(reply)

    def drip() -> Iterator[bytes]:
        yield data[: len(data) // 2]
        time.sleep(0.6)
        yield data[len(data) // 2 :]

    return Reply(reply.status, {**reply.headers, "Content-Length": str(len(data))}, drip())


def _flip(reply: Reply, chance: random.Random, folder: Path) -> Reply:
    data = bytearray(_bytes(reply))
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return _with(reply, bytes(data))


def _truncate(reply: Reply, chance: random.Random, folder: Path) -> Reply:
    data = _bytes(reply)
    return _with(reply, data[: chance.randrange(len(data) + 1)])


def _extend(reply: Reply, chance: random.Random, folder: Path) -> Reply:
    return _with(reply, _bytes(reply) + chance.randbytes(chance.choice((1, 70_000))))


def _swap(reply: Reply, chance: random.Random, folder: Path) -> Reply:
    """The bytes of another file, as long as those that were asked for, or not."""
    other = chance.choice([path for path in folder.rglob("*") if path.is_file()]).read_bytes()
    data = _bytes(reply)
    if chance.random() < 0.5:
        other = (other * (len(data) // max(1, len(other)) + 1))[: len(data)]
    return _with(reply, other)


def _other_etag(reply: Reply, chance: random.Random, folder: Path) -> Reply:
    weak = chance.choice(("", "W/"))
    return _with(reply, _bytes(reply), ETag=f'{weak}"{chance.randrange(3)}"')


def _whole(reply: Reply, chance: random.Random, folder: Path) -> Reply:
    if not isinstance(reply.body, Piece):
        return reply
    source = reply.body.source
    data = source if isinstance(source, bytes) else source.read_bytes()
    headers = {name: text for name, text in reply.headers.items() if name != "Content-Range"}
    return Reply(200, headers, data)


def _other_range(reply: Reply, chance: random.Random, folder: Path) -> Reply:
    start = chance.randrange(100_000)
    data = _bytes(reply)
    total = chance.choice(("*", str(start + len(data)), "99999999999"))
    return _with(reply, data, Content_Range=f"bytes {start}-{start + len(data) - 1}/{total}")


def _status(reply: Reply, chance: random.Random, folder: Path) -> Reply:
    status = chance.choice((200, 204, 206, 301, 304, 400, 401, 403, 404, 416, 429, 500, 503))
    headers = {"Retry-After": "0", "Location": "/loop"} if chance.random() < 0.7 else {}
    return Reply(status, headers, b"" if status in (204, 304) else b"<html>please log in</html>")


def _encoded(reply: Reply, chance: random.Random, folder: Path) -> Reply:
    return _with(reply, _bytes(reply), Content_Encoding=chance.choice(("gzip", "br", "identity")))


LIES: tuple[_Lie, ...] = (
    *(_cut, _stall, _flip, _truncate, _extend, _swap),
    *(_other_etag, _whole, _other_range, _status, _encoded),
)


class _Mirror:
    """What a server says: the truth, but for a share of the requests."""

    def __init__(self, folder: Path, seed: int, share: float, figures: Counter[str]) -> None:
        self._folder, self._chance, self._share = folder, random.Random(seed), share
        self._figures, self._lock = figures, Lock()

    def __call__(self, record: Record) -> Reply | None:
        path = self._folder / record.name
        if record.method not in ("GET", "HEAD") or not path.is_file():
            return None
        with self._lock:
            if self._chance.random() >= self._share:
                return None
            lie, chance = self._chance.choice(LIES), random.Random(self._chance.random())
            self._figures["lies of servers"] += 1
        return lie(serve(record, path), chance, self._folder)


def attack(seed: int, folder: Path, figures: Counter[str]) -> None:
    """Fetch a state from mirrors that lie; an AssertionError if anything wrong comes of it."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=folder) as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(name)
        web = root / "web"
        store = LocalStateStore(web / "store")
        save(store, NAME, NUMBER, scale=SCALE)
        write_plain(web / "a.safetensors", NUMBER, SCALE)
        entry = store.get(key_of(NAME)).entry
        state = f"store/objects/{entry.pinned_digest[:2]}/{entry.pinned_digest[2:]}"
        share = chance.choice((0.1, 0.3, 0.7, 1.0))
        with RecordingServer(web, before=_Mirror(web, seed, share, figures)) as server:
            ways = [
                f'objects = ["{server.url}/store"]\n',
                f'mirrors = ["{server.url}/a.safetensors"]\n',
                f'mirrors = [{{ url = "{server.url}/a.safetensors", '
                f'state = "{server.url}/{state}" }}]\n',
            ]
            way = chance.choice(ways)
            top, own = (way, "") if way.startswith("objects") else ("", way)
            files = "".join(
                f'"{one}" = {{ blake3 = "{file.digest}", mirrors = '
                f'["{server.url}/store/objects/{file.digest[:2]}/{file.digest[2:]}"] }}\n'
                for one, file in entry.files.items()
            )
            text = (
                f'version = 1\n{top}[states."{key_of(NAME)}"]\nblake3 = "{entry.digest}"\n{own}'
                f'[states."{key_of(NAME)}".files]\n{files}'
            )
            (root / "m.toml").write_text(text)
            _fetch(root, seed, share, figures)
            server.before = None  # and once it says the truth, all comes
            done = _store(root)
            done.fetch(key_of(NAME))
            assert whole(done, NAME, SCALE) == NUMBER, f"seed {seed}"
            assert verify(done).findings == ()


def _store(root: Path) -> ManifestStore:
    store = ManifestStore(root / "m.toml", cache=root / "cache", offline=False)
    assert store.fetcher is not None
    hasty = {"read_timeout": 0.3, "low_speed": 10_000, "low_speed_seconds": 0.4}
    store.fetcher.transports = partial(Transports, **hasty)
    store.fetcher.retries = Retries(3, first=0.01, most=0.05)
    return store


def _fetch(root: Path, seed: int, share: float, figures: Counter[str]) -> None:
    store = _store(root)
    try:
        store.fetch(key_of(NAME))
    except MlstateError:
        figures["fetches that liars made fail"] += 1
    except Exception as error:
        raise AssertionError(f"seed {seed}, share {share}: {error!r}") from error
    else:
        figures["fetches that succeeded beside lies"] += 1
        assert whole(store, NAME, SCALE) == NUMBER, f"seed {seed}"
    report = verify(store)
    assert report.findings == (), f"seed {seed}: {report.findings[0]}"
