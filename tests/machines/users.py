"""Members of a group: code that runs as another user, in a process of its own.

One process imports all that is needed, for its Python may be one that only root can read, and forks
for each piece of code. As a program this is that process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["GROUP", "Users", "shared_folder"]

GROUP = 54321


class Users:
    """Runs code as members of the group."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.machines.users"],
            cwd=Path(__file__).parents[2],
            env={
                **os.environ,
                "HOME": "/nonexistent",
                "MLSTATE_CACHE": "/nonexistent/cache",
                "OMP_NUM_THREADS": "1",  # torch's own threads do not live through a fork
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, user: int, code: str, root: Path, *, umask: int = 0o022) -> str:
        """Run code with ``root`` as the folder; returns what it prints, or fails with it."""
        said = {"user": user, "code": code, "root": str(root), "umask": umask}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(said) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert not answer["error"], answer["error"]
        return str(answer["printed"]).strip()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.stdout
        self._process.stdout.close()
        assert self._process.wait(60) == 0


@contextmanager
def shared_folder(mode: int = 0o2770) -> Iterator[Path]:
    """A folder of the group, which pytest's own temporary folders are not: nobody else may pass."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chown(folder, 0, GROUP)
        folder.chmod(mode)
        yield folder


@pytest.fixture(scope="session")
def as_user() -> Iterator[Users]:
    """Runs code as another user."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be several users")
    users = Users()
    yield users
    users.close()


def serve() -> None:
    """Run each piece of code that comes, in a fork."""
    import concurrent.futures.thread
    import unittest.mock

    import mlstate
    from tests.machines import job

    for name in ("verify", "usage", "diagnose", "copy", "enlist", "ManifestStore"):
        getattr(mlstate, name)
    with tempfile.TemporaryDirectory() as folder:
        job.whole_job(Path(folder))  # whatever it imports late is imported now
    names = {**vars(job), **{name: getattr(mlstate, name) for name in mlstate.__all__}}
    for line in sys.stdin:
        said = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _answer(said, {**names, "root": Path(said["root"])}, writing)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as file:
            print(file.read() or json.dumps({"error": "it ended", "printed": ""}), flush=True)
        os.waitpid(child, 0)
    del concurrent, unittest


def _answer(said: dict, names: dict, descriptor: int) -> None:
    printed, error = io.StringIO(), ""
    try:
        os.umask(said["umask"])
        os.setgroups([GROUP])
        os.setgid(said["user"])
        os.setuid(said["user"])
        with contextlib.redirect_stdout(printed):
            exec(said["code"], names)
    except BaseException:
        error = traceback.format_exc()
    with os.fdopen(descriptor, "w") as file:
        json.dump({"printed": printed.getvalue(), "error": error}, file)


if __name__ == "__main__":
    serve()
