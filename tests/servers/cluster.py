"""Hosts of a cluster: network namespaces that are joined by a bridge, each with a line of its own.

They need root and Linux; `hosts` raises a `MissingProgramError` where they cannot be made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.ports import MissingProgramError, program

__all__ = ["ORIGIN_PORT", "Cluster", "Host", "cluster"]

ORIGIN_PORT = 8000
_CONFIG = """
daemon off;
pid {home}/pid;
error_log stderr;
events {{ worker_connections 4096; }}
http {{
  log_format sent '$status $body_bytes_sent $request_uri';
  access_log {home}/access.log sent;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  default_type application/octet-stream;
  server {{ listen {port}; root {folder}; }}
}}
"""


@dataclass(frozen=True)
class Host:
    """A host: its namespace, and its address on the bridge."""

    namespace: str
    address: str

    def command(self, *words: object) -> list[str]:
        """A command line that runs there."""
        return ["ip", "netns", "exec", self.namespace, *map(str, words)]

    def link(self, state: str) -> None:
        """Pull the cable out (``"down"``), or put it in again (``"up"``)."""
        _ip("-n", self.namespace, "link", "set", "eth0", state)


class Cluster:
    """An origin that serves a folder, and nodes on which nginx runs as `mlstate peers` sets it up.

    Attributes:
        nodes: The nodes.
        origin: The address of the origin.
    """

    def __init__(self, origin: Host, nodes: Sequence[Host], home: Path) -> None:
        self.nodes = tuple(nodes)
        self.origin = f"http://{origin.address}:{ORIGIN_PORT}"
        self.home = home
        self._host = origin
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._log = home / "origin" / "access.log"

    def serve(self, folder: Path) -> None:
        """Serve a folder at the origin."""
        place = self.home / "origin"
        place.mkdir()
        config = _CONFIG.format(home=place, folder=folder, port=ORIGIN_PORT)
        (place / "nginx.conf").write_text(config)
        self._start(self._host, place / "nginx.conf", ORIGIN_PORT)

    def start(self, node: Host, config: Path, port: int) -> None:
        """Start nginx on a node, and wait until it listens at a port."""
        self._start(node, config, port)

    def stop(self, node: Host) -> None:
        """Kill nginx on a node."""
        _end(self._running.pop(node.namespace))

    def sent(self) -> list[tuple[int, int, str]]:
        """Status, bytes and path of what the origin has answered so far."""
        lines = [line.split(" ", 2) for line in self._log.read_text().splitlines()]
        return [(int(status), int(size), path) for status, size, path in lines]

    def close(self) -> None:
        """End all that runs."""
        while self._running:
            _end(self._running.popitem()[1])

    def _start(self, host: Host, config: Path, port: int) -> None:
        command = [program("nginx", "nginx-light"), "-e", "stderr", "-c", config]
        log = config.with_suffix(".log")
        with log.open("wb") as output:
            line = host.command(*command, "-g", "" if host is self._host else "daemon off;")
            process = subprocess.Popen(line, stderr=output, start_new_session=True)
        self._running[host.namespace] = process
        end = time.monotonic() + 20
        while time.monotonic() < end and process.poll() is None:
            seen = subprocess.run(
                host.command("ss", "-ltnH", f"sport = :{port}"), check=True, capture_output=True
            )
            if seen.stdout.strip():
                return
            time.sleep(0.02)
        raise RuntimeError(f"nginx does not start: {log.read_text()}")


@contextmanager
def cluster(count: int, rate: str | None = None, line: str | None = None) -> Iterator[Cluster]:
    """An origin and so many nodes.

    Args:
        count: How many nodes.
        rate: The rate of what the origin sends, as tc has it: ``"100mbit"``. No limit by default.
        line: The rate of what each node sends.

    Raises:
        MissingProgramError: It cannot be made here.
    """
    if os.geteuid() != 0:
        raise MissingProgramError("only root makes network namespaces")
    for name in ("ip", "tc", "ss"):
        program(name, "iproute2")
    mark = f"mls{os.getpid() % 100000}"
    with ExitStack() as stack:
        # Not below the temporary folder of a test, which workers of nginx may not look into.
        home = Path(tempfile.mkdtemp(prefix="cluster-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        home.chmod(0o755)
        switch = f"{mark}s"
        _namespace(switch, stack)
        _ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge0", "up")
        hosts = [_host(f"{mark}h{n}", switch, n, stack) for n in range(count + 1)]
        for host, most in ((hosts[0], rate), *((host, line) for host in hosts[1:])):
            if most is not None:
                limits = ["rate", most, "burst", "256kb", "latency", "50ms"]
                words = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *limits]
                subprocess.run(host.command(*words), check=True)
        made = Cluster(hosts[0], hosts[1:], home)
        stack.callback(made.close)
        yield made


def _host(name: str, switch: str, number: int, stack: ExitStack) -> Host:
    _namespace(name, stack)
    host = Host(name, f"10.231.7.{number + 1}")
    pair = ["type", "veth", "peer", "name", f"port{number}", "netns", switch]
    _ip("-n", name, "link", "add", "eth0", *pair)
    _ip("-n", name, "addr", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")
    _ip("-n", switch, "link", "set", f"port{number}", "master", "bridge0", "up")
    return host


def _namespace(name: str, stack: ExitStack) -> None:
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingProgramError(f"no network namespaces here: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
    _ip("-n", name, "link", "set", "lo", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
