"""Count the files that the main jobs pass through: ``python scripts/journeys.py``.

A file counts if one of its functions is called, in any thread, while a store that is open is asked
once. Files of pure values (digests, keys, bytes of the format, errors, settings) are told apart:
they are called from everywhere and lead nowhere; the limits are for the others. Each job runs once
before it is counted, so that imports and what happens only once are over.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from mlstate import (  # noqa: E402
    LocalStateStore,
    ManifestStore,
    S3StateStore,
    StateKey,
    manifest_of,
)
from mlstate.format import layout  # noqa: E402
from tests.servers.moto import Moto  # noqa: E402
from tests.servers.ports import MissingProgramError  # noqa: E402

VALUES = (
    "buckets/values.py",
    "claims.py",
    "digests.py",
    "errors.py",
    "format/",
    "layouts.py",
    "limits.py",
    "locations.py",
    "locks.py",
    "log.py",
    "manifests/entries.py",
    "models.py",
    "parallel.py",
    "phrases.py",
    "retries.py",
    "settings.py",
    "signatures/",
    "shown.py",
    "states.py",
    "system.py",
    "texts.py",
    "transport/urls.py",
    "units.py",
    "warn.py",
)
"""Files of pure values, and plain helpers that know nothing of stores."""
PACKAGE = f"{ROOT / 'mlstate'}/"
KEY = StateKey.parse("pytorch.net.a")

Job = Callable[[], object]


def weights() -> dict[str, torch.Tensor]:
    """A small tensor, which is inline, and two large ones."""
    return {"bias": torch.ones(3), "first": torch.rand(10_000), "second": torch.rand(10_000)}


@contextmanager
def local_save(folder: Path) -> Iterator[Job]:
    """Save a state into a folder."""
    tensors = weights()
    store = LocalStateStore(folder / "store")
    yield lambda: store.save_state_dict(tensors, KEY)


@contextmanager
def local_load(folder: Path) -> Iterator[Job]:
    """Load a state from a folder."""
    store = LocalStateStore(folder / "store")
    store.save_state_dict(weights(), KEY)
    yield lambda: store.load_state_dict(KEY)


@contextmanager
def manifest_load(folder: Path) -> Iterator[Job]:
    """Load a state of a manifest with one object that is not in the cache, from a web server."""
    store = LocalStateStore(folder / "store")
    tensors = weights()
    store.save_state_dict(tensors, KEY)
    handler = functools.partial(Quiet, directory=str(folder / "store"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        manifest, cache = folder / "models.toml", folder / "cache"
        url = f"http://127.0.0.1:{server.server_port}/"
        manifest_of(store, objects=[url]).write(manifest)
        opened = ManifestStore(manifest, cache=cache)
        opened.load_state_dict(KEY)
        next(path for path in (cache / layout.OBJECTS).rglob("*") if is_large(path)).unlink()
        yield lambda: opened.load_state_dict(KEY)
        server.shutdown()


@contextmanager
def s3_save(folder: Path) -> Iterator[Job]:
    """Save a state into a bucket."""
    with Moto() as server:
        tensors, bucket = weights(), server.new_bucket()
        options: dict[str, Any] = {"session_kwargs": server.session_kwargs, "cache": folder}
        store = S3StateStore(bucket, s3_endpoint_url=server.url, **options)
        yield lambda: store.save_state_dict(tensors, KEY)


JOURNEYS = {
    "local save": (local_save, 14),
    "local load": (local_load, None),
    "manifest load": (manifest_load, 35),
    "S3 save": (s3_save, 20),
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each request."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


def is_large(path: Path) -> bool:
    """Whether this is the object of a large tensor."""
    return path.is_file() and path.stat().st_size >= 40_000


def files_of(journey: Callable[[Path], Any]) -> set[str]:
    """The files of the package whose functions a job calls."""
    found: set[str] = set()

    def see(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(PACKAGE):
            found.add(code.co_filename.removeprefix(PACKAGE))

    for counted in (False, True):
        with tempfile.TemporaryDirectory() as name, journey(Path(name)) as job, ExitStack() as end:
            if counted:
                end.callback(sys.setprofile, None)
                end.callback(threading.setprofile, None)
                threading.setprofile(see)
                sys.setprofile(see)
            job()
    return found


def main() -> int:
    """Print a table of the jobs; 1 if one passes through too many files and that is asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the files of each, too")
    parser.add_argument("--check", action="store_true", help="exit with 1 above a limit")
    options = parser.parse_args()
    above = False
    print(f"{'journey':<16}{'files':>6}{'limit':>7}{'values':>8}")
    for name, (journey, limit) in JOURNEYS.items():
        try:
            files = files_of(journey)
        except MissingProgramError as missing:
            print(f"{name:<16}skipped: {missing}")
            continue
        values = {file for file in files if file.startswith(VALUES)}
        count = len(files - values)
        print(f"{name:<16}{count:>6}{limit or '-':>7}{len(values):>8}")
        above = above or (limit is not None and count > limit)
        for file in sorted(files) if options.list else ():
            print(f"    {file}{'  (values)' if file in values else ''}")
    return int(above and options.check)


if __name__ == "__main__":
    sys.exit(main())
