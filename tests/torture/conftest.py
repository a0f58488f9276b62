"""All tests here bear the marker `torture`, and share a process under the shim."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.server import Server
from tests.torture.shim import NoCompilerError, build

MEMORY = Path("/dev/shm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.torture)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim, built; skips where it cannot be."""
    try:
        return build(tmp_path_factory.mktemp("shim"))
    except NoCompilerError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def attacked(shim: Path) -> Iterator[Server]:
    """The process whose children are attacked."""
    with Server(shim) as server:
        yield server


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: nothing waits for a disk."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def figures() -> Counter[str]:
    """What was done, counted."""
    return Counter()
