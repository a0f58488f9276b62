"""Files of this machine as resources, and how addresses of them are read."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import TransportError
from mlstate.transport import Resource, Stream, Transports
from mlstate.transport.local import file_path

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def web():
    with Transports() as transports:
        yield transports


def read(resource, start=0, stop=None, size=1 << 16):
    with resource.read(start, stop) as stream:
        data = b"".join(iter(lambda: stream.read(size), b""))
        assert stream.length == len(data)
    return data


def test_a_file_is_read_whole_and_in_ranges(web, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    resource = web.open(str(path))
    assert isinstance(resource, Resource)
    assert resource.address == str(path)
    assert str(path) in repr(resource)
    assert resource.size() == len(CONTENT)
    assert read(resource) == CONTENT
    assert read(resource, 10, 300, size=7) == CONTENT[10:300]
    assert read(resource, 10_000) == CONTENT[10_000:]
    assert read(resource, 5, 5) == b""
    assert read(resource, len(CONTENT)) == b""
    with resource.read(1, 3) as stream:
        assert isinstance(stream, Stream)
        assert (stream.length, stream.total) == (2, len(CONTENT))
        assert stream.read(10) == CONTENT[1:3]
        assert stream.read(10) == stream.read(10) == b""
        with pytest.raises(ValueError, match="size"):
            stream.read(0)


@pytest.mark.parametrize("name", ["~", "a%20b", "100%", "a b", "x?y#z", "ünï", "a:b", "-"])
def test_a_path_is_taken_as_it_is(web, tmp_path, name):
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / name
    path.write_bytes(b"abc")
    for base, address in ((tmp_path, f"folder/{name}"), (path.parent, name), (None, str(path))):
        assert read(web.open(address, base=base)) == b"abc"
    assert read(web.open(path.as_uri())) == b"abc"
    assert web.open(path.as_uri()).address == path.as_uri()


def test_a_path_without_a_base_is_relative_to_the_current_folder(web, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abc")
    monkeypatch.chdir(tmp_path)
    assert read(web.open("a")) == b"abc"
    assert read(web.open("./a", base=Path("."))) == b"abc"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30))
def test_a_file_url_is_the_path_that_python_made_it_of(name):
    path = Path("/") / name
    assert file_path(path.as_uri(), None) == path
    assert file_path(path.as_uri().replace("file:///", "FILE://localhost/"), Path("/x")) == path


@pytest.mark.parametrize("address", ["file://elsewhere/a", "file://a", "file://", "file://../a"])
def test_a_file_url_of_another_machine_is_refused(web, address):
    with pytest.raises(TransportError, match="no file of this machine"):
        web.open(address)


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "socket", "device", "link", "null"])
def test_what_is_not_a_regular_file_is_refused_at_once(web, tmp_path, kind):
    path = tmp_path / kind
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        case "device":
            path = Path("/dev/zero")
        case "link":
            path.symlink_to(path)
    resource = web.open("file:///a%00b" if kind == "null" else str(path))
    for call in (resource.size, lambda: read(resource), lambda: read(resource, 1, 1)):
        with pytest.raises(TransportError) as caught:
            call()
        assert not caught.value.transient
        assert caught.value.path == resource.address


def test_a_fifo_with_a_writer_is_refused_and_loses_nothing(web, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    got = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    with path.open("wb") as writer:
        writer.write(b"abc")
        writer.flush()
        with pytest.raises(TransportError, match="regular"):
            web.open(str(path)).size()
    reader.join(10)
    assert got == [b"abc"]


@pytest.mark.parametrize(("start", "stop"), [(0, 11), (11, None), (5, 100), (20, 20)])
def test_a_range_beyond_the_end_is_an_error(web, tmp_path, start, stop):
    (tmp_path / "a").write_bytes(b"0123456789")
    with pytest.raises(TransportError, match="shorter"):
        read(web.open("a", base=tmp_path), start, stop)


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (5, 4)])
def test_an_impossible_range_is_refused(web, tmp_path, start, stop):
    (tmp_path / "a").write_bytes(b"0123456789")
    with pytest.raises(ValueError, match="not a range"):
        read(web.open("a", base=tmp_path), start, stop)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(web, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    with web.open(str(path)).read() as stream:
        stream.read(100)
        os.truncate(path, 100)
        with pytest.raises(TransportError, match="became shorter"):
            stream.read(100)


def test_a_file_that_grows_while_it_is_read_gives_no_more_than_it_had(web, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    with web.open(str(path)).read() as stream:
        with path.open("ab") as file:
            file.write(b"def")
        assert stream.read(100) == b"abc"
        assert stream.read(100) == b""


def test_a_file_that_changes_between_two_reads_is_an_error(web, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    resource = web.open(str(path))
    assert read(resource) == b"abc"
    path.write_bytes(b"abcd")
    with pytest.raises(TransportError, match="changed"):
        read(resource)
    assert read(web.open(str(path))) == b"abcd"


def test_a_file_is_closed_after_reading(web, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    resource = web.open("a", base=tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read(resource)
        with pytest.raises(KeyError), resource.read():
            raise KeyError
    assert len(os.listdir("/proc/self/fd")) == before
