"""Ceph's RADOS gateway: a real server in C++, with everything that it needs on one machine.

A monitor, one object daemon in memory, and the gateway, all on loopback and below one temporary
folder. It starts in about two seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

from tests.servers.ports import HOST, free_port, program, wait_for
from tests.servers.s3 import S3Server

__all__ = ["Ceph"]

PACKAGES = {
    "ceph-mon": "ceph-mon",
    "ceph-mgr": "ceph-mgr",
    "ceph-osd": "ceph-osd",
    "radosgw": "radosgw",
    "radosgw-admin": "radosgw",
    "ceph": "ceph-common",
    "ceph-authtool": "ceph-common",
    "monmaptool": "ceph-common",
}

CONFIG = """
[global]
fsid = {fsid}
mon host = [v2:{host}:{mon2},v1:{host}:{mon1}]
public addr = {host}
cluster addr = {host}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {home}/keyring
run dir = {home}/run
admin socket = {home}/run/$cluster-$name.asok
pid file = {home}/run/$name.pid
log file = {home}/log/$name.log
mon data = {home}/mon
osd data = {home}/osd
mgr data = {home}/mgr
osd objectstore = memstore
memstore device bytes = {bytes}
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon max pg per osd = 1000
mon data avail warn = 1
mon data avail crit = 0
paxos propose interval = 0.05
paxos min wait = 0.01
rgw gc obj min wait = 1
rgw gc processor period = 2
rgw gc processor max time = 2
[client.rgw]
rgw data = {home}/rgw
rgw frontends = beast endpoint={host}:{port} tcp_nodelay=1
rgw thread pool size = 32
"""

KEYS = (
    ("mon.", "mon", "allow *"),
    ("client.admin", "mon", "allow *", "osd", "allow *", "mgr", "allow *", "mds", "allow *"),
    ("client.rgw", "mon", "allow *", "osd", "allow *", "mgr", "allow *"),
    ("osd.0", "mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd"),
    ("mgr.x", "mon", "allow profile mgr", "osd", "allow *", "mds", "allow *"),
)


class Ceph(S3Server):
    """A gateway with one user, for tests."""

    def __init__(self, size: int = 8 << 30) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._programs = {name: program(name, package) for name, package in PACKAGES.items()}
        self.home = Path(tempfile.mkdtemp(prefix="ceph-"))
        try:
            for name in ("mon", "osd", "mgr", "run", "log", "rgw"):
                (self.home / name).mkdir()
            self._start(size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End what was started, the gateway first, and remove the folder."""
        super().close()
        for process in reversed(self._processes):
            process.kill()  # what they hold is in memory, and goes with them
        for process in self._processes:
            process.wait(10)
        shutil.rmtree(self.home, ignore_errors=True)

    def errors(self) -> str:
        """The last lines of all logs."""
        logs = sorted((self.home / "log").glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text()[-500:]}" for log in logs)

    def _start(self, size: int) -> None:
        port, mon1, mon2 = free_port(), free_port(), free_port()
        fsid = str(uuid.uuid4())
        fields = {"fsid": fsid, "host": HOST, "home": self.home, "port": port, "bytes": size}
        (self.home / "ceph.conf").write_text(CONFIG.format(**fields, mon1=mon1, mon2=mon2))
        keyring = self.home / "keyring"
        for number, (name, *capabilities) in enumerate(KEYS):
            pairs = zip(capabilities[::2], capabilities[1::2], strict=True)
            options = [text for pair in pairs for text in ("--cap", *pair)]
            create = [] if number else ["--create-keyring"]
            self._run("ceph-authtool", *create, keyring, "--gen-key", "-n", name, *options)
        places = f"[v2:{HOST}:{mon2},v1:{HOST}:{mon1}]"
        monmap = self.home / "monmap"
        self._run("monmaptool", "--create", "--addv", "a", places, "--fsid", fsid, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._daemon("ceph-mon", "-i", "a")
        self._daemon("ceph-mgr", "-i", "x")
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._daemon("ceph-osd", "-i", "0")
        self._daemon("radosgw", "-n", "client.rgw")
        if not wait_for(port, 60):
            raise RuntimeError(f"the gateway does not start: {self.errors()}")
        keys = ["--access-key", self.access_key, "--secret-key", self.secret]
        who = ["--uid", "tester", "--display-name", "tester"]
        self._run("radosgw-admin", "user", "create", *who, *keys)
        self.url = f"http://{HOST}:{port}"

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self.home / "ceph.conf")}

    def _daemon(self, name: str, *arguments: str) -> None:
        process = subprocess.Popen(
            [self._programs[name], "-f", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,
        )
        self._processes.append(process)

    def _run(self, name: str, *arguments: object) -> None:
        done = subprocess.run(
            [self._programs[name], *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
            env=self._environment,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace")[-2000:]
            raise RuntimeError(f"{name} {arguments[0]} failed: {said}\n{self.errors()}")
