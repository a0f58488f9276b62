"""What a node's nginx answers, with nodes that are gone and paths that are odd: a real nginx."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path

import pytest

from mlstate.operations.peers.configuration import Peers
from mlstate.transport.urls import Url
from tests.servers.ports import HOST, MissingProgramError, free_port, program, wait_for

NAME = f"/objects/ab/{'c' * 62}"
SLICE = 1 << 16
DATA = os.urandom(5 * SLICE // 2)


@contextmanager
def node(origin: str, home: Path, nodes: str = "[::1]", at: int | None = None) -> Iterator[int]:
    """A node, with small slices; gives its port.

    By default all nodes are gone: nginx does not listen at ``[::1]``. ``at`` is another port there.
    """
    try:
        nginx = program("nginx", "nginx-light")
    except MissingProgramError as missing:
        pytest.skip(str(missing))
    (home / "run").mkdir()
    port = _two_ports()
    peers = Peers(Url.parse(origin), (nodes,), port, cache=f"{home}/cache", run=f"{home}/run")
    text = peers.files()["nginx.conf"]
    assert "slice 16m;" in text
    text = text.replace("slice 16m;", f"slice {SLICE};")
    if at is not None:
        text = text.replace(f"[::1]:{port + 1}", f"[::1]:{at}")
    (home / "nginx.conf").write_text(text)
    own = " user root;" if os.geteuid() == 0 else ""
    command = [nginx, "-e", "stderr", "-c", home / "nginx.conf", "-g", f"daemon off;{own}"]
    with (home / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            assert wait_for(port), (home / "log").read_text()
            yield port
        finally:
            process.terminate()


def _two_ports() -> int:
    """A free port whose next one is free, too."""
    while True:
        port = free_port()
        with socket.socket() as second, suppress(OSError, OverflowError):
            second.bind((HOST, port + 1))
            return port


def ask(port: int, path: str, asked: str | None = None) -> tuple[int, bytes]:
    """Status and body of an answer; of one that breaks off what had come."""
    connection = HTTPConnection(HOST, port, timeout=20)
    try:
        connection.request("GET", path, headers={"Range": asked} if asked else {})
        answer = connection.getresponse()
        try:
            return answer.status, answer.read()
        except IncompleteRead as short:
            return answer.status, short.partial
    finally:
        connection.close()


def test_without_its_peers_a_node_gives_what_is_asked_for(start_recording, tmp_path: Path) -> None:
    origin = start_recording({NAME[1:]: DATA})
    with node(origin.url, tmp_path) as port:
        assert ask(port, NAME) == (200, DATA)
        origin.reset()
        assert ask(port, NAME, "bytes=70000-70009") == (206, DATA[70000:70010])
        assert ask(port, NAME, f"bytes={len(DATA) - 7}-{len(DATA) + 7}") == (206, DATA[-7:])
        assert ask(port, NAME, f"bytes={len(DATA)}-")[0] == 416
        assert origin.bytes_sent <= 4 * SLICE  # slices, and never all of the object


def test_an_answer_breaks_off_where_its_node_goes_and_no_byte_is_wrong(
    start_recording, tmp_path: Path
) -> None:
    origin = start_recording({NAME[1:]: DATA})
    try:
        other = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6: {error}")

    def answer_once() -> None:
        connection, _ = other.accept()
        other.close()  # whoever comes next is refused
        with connection:
            connection.recv(1 << 16)
            head = (
                f"HTTP/1.1 206 Partial Content\r\nContent-Length: {SLICE}\r\n"
                f"Content-Range: bytes 0-{SLICE - 1}/{len(DATA)}\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(head.encode() + DATA[:SLICE])

    at = other.getsockname()[1]
    thread = threading.Thread(target=answer_once)
    with node(origin.url, tmp_path, at=at) as port:
        thread.start()
        assert ask(port, NAME) == (200, DATA[:SLICE])
        thread.join(20)
        assert ask(port, NAME, f"bytes={SLICE}-") == (206, DATA[SLICE:])


@pytest.mark.parametrize("path", [f"{NAME}%0a", f"{NAME}%0d%0aX-Own:%20a", f"{NAME}0", "/states/a"])
def test_what_is_no_name_of_an_object_reaches_nobody(
    start_recording, tmp_path: Path, path: str
) -> None:
    origin = start_recording({NAME[1:]: DATA})
    with node(origin.url, tmp_path, HOST) as port:
        assert ask(port, path)[0] == 404
        assert ask(port + 1, path)[0] == 404
    assert not origin.requests
