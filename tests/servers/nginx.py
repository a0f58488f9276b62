"""A real nginx that serves a folder: with ranges, without, slowly, behind redirects, with auth."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from tests.servers.ports import HOST, MissingProgramError, free_port, program, wait_for

__all__ = ["KINDS", "Nginx", "Served"]

# What stands first in a path says how the file behind it is served.
KINDS = {
    "plain": "with ranges",
    "no-ranges": "the whole file only",
    "slow": "at `limit_rate` bytes a second and connection; those of the first second at once",
    "found": "302 to plain, with an absolute URL",
    "moved": "301 to plain, with a relative URL",
    "away": "302 to the URL in `redirect_to`, with the file's name added",
    "loop": "302 to itself",
    "auth": "with ranges, for `user` and `password` alone (Basic)",
    "busy": "503 with Retry-After: 1 while `busy` is set, else with ranges",
    "gzip": "compressed, for clients that accept it",
    "far": "with ranges, each request answered `latency` seconds late",
}
REST = "^/[^/]+/(.*)$"
# The module that can wait before it answers; nginx-light brings it.
ECHO = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")
FAR = "location ~ ^/far/(.*)$ {{ echo_sleep {latency}; echo_exec /plain/$1; }}"
CONFIG = """
{module}
{user}
daemon off;
worker_processes {workers};
pid {home}/pid;
error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  log_format fields escape=json '{{"method": "$request_method", "path": "$request_uri",'
    '"status": $status, "bytes_sent": $body_bytes_sent, "wire_bytes": $bytes_sent,'
    '"range": "$http_range", "authorization": "$http_authorization",'
    '"agent": "$http_user_agent", "connection": $connection, "seconds": $request_time}}';
  access_log {home}/access.log fields;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  default_type application/octet-stream;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  keepalive_timeout 75s;
  gzip_types *;
  gzip_min_length 1;
  gzip_comp_level 1;
  server {{
    listen {host}:{port} backlog=1024;
    location = /-/mark {{ return 204; }}
    location /plain/ {{ alias {folder}/; }}
    location /no-ranges/ {{ alias {folder}/; max_ranges 0; }}
    location /slow/ {{ alias {folder}/; limit_rate {limit_rate}; }}
    # Of the request's own, still quoted path: captures of a location are unquoted.
    location /found/ {{ if ($request_uri ~ "{rest}") {{ return 302 /plain/$1; }} }}
    location /moved/ {{
      absolute_redirect off;
      if ($request_uri ~ "{rest}") {{ return 301 /plain/$1; }}
    }}
    location /away/ {{ if ($request_uri ~ "{rest}") {{ return 302 {redirect_to}$1; }} }}
    location /loop/ {{ if ($request_uri ~ "{rest}") {{ return 302 /loop/$1; }} }}
    location /auth/ {{ alias {folder}/; auth_basic mlstate; auth_basic_user_file {home}/users; }}
    location /busy/ {{
      alias {folder}/;
      add_header Retry-After 1 always;
      if (-f {home}/busy) {{ return 503; }}
    }}
    location /gzip/ {{ alias {folder}/; gzip on; }}
    {far}
  }}
}}
"""


@dataclass(frozen=True)
class Served:
    """A line of the access log: a request that was answered, wholly or in part."""

    method: str
    path: str
    status: int
    bytes_sent: int  # of the body, as handed to the kernel
    wire_bytes: int  # with status line and headers
    range: str
    authorization: str
    agent: str
    connection: int
    seconds: float


class Nginx:
    """nginx on a folder; see `KINDS` for what it does under which path.

    Raises:
        MissingProgramError: nginx is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 1,
        limit_rate: int = 1 << 20,
        redirect_to: str = "http://127.0.0.1:9/",
        user: str = "user",
        password: str = "password",
        latency: float = 0,
    ) -> None:
        command = program("nginx", "nginx-light")
        self.folder = folder.resolve()
        self.user, self.password = user, password
        if latency and not ECHO.exists():
            raise MissingProgramError(f"{ECHO.name} of nginx is not installed")
        self._options: Mapping[str, object] = {
            "module": f"load_module {ECHO};" if latency else "",
            "far": FAR.format(latency=latency) if latency else "",
            "workers": workers,
            "limit_rate": limit_rate,
            "redirect_to": redirect_to,
            # Workers of a root's nginx are nobody, who may not read a test's folder.
            "user": "user root;" if os.geteuid() == 0 else "",
        }
        self._home = Path(tempfile.mkdtemp(prefix="nginx-"))
        self._marks = 0
        try:
            (self._home / "users").write_text(f"{user}:{{PLAIN}}{password}\n")
            self.busy = True
            self.port, self._process = self._start(command)
        except BaseException:
            shutil.rmtree(self._home, ignore_errors=True)
            raise

    def __enter__(self) -> Nginx:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The master's process id."""
        return self._process.pid

    @property
    def busy(self) -> bool:
        """Whether /busy/ is answered with 503; may be set at any time."""
        return (self._home / "busy").exists()

    @busy.setter
    def busy(self, value: bool) -> None:
        (self._home / "busy").touch() if value else (self._home / "busy").unlink(missing_ok=True)

    def url(self, name: str = "", kind: str = "plain") -> str:
        """Where a file of the folder is served in one of the `KINDS`."""
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
        return f"http://{HOST}:{self.port}/{kind}/{quote(name)}"

    def log(self) -> list[Served]:
        """The requests answered since the start or the last `reset`, in the order of their end.

        What a client has read to the end is in it; with several workers, nearly always. What a
        client broke off appears once nginx has noticed.
        """
        self._marks += 1
        opener = build_opener(ProxyHandler({}))
        opener.open(f"http://{HOST}:{self.port}/-/mark?{self._marks}", timeout=10).close()
        end = time.monotonic() + 10
        while time.monotonic() < end:
            lines = (self._home / "access.log").read_text().splitlines()
            records = [Served(**json.loads(line)) for line in lines if line.endswith("}")]
            if any(record.path == f"/-/mark?{self._marks}" for record in records):
                return [record for record in records if not record.path.startswith("/-/mark")]
            time.sleep(0.005)
        raise RuntimeError(f"nginx logs nothing: {self.errors()}")

    def reset(self) -> None:
        """Forget the requests so far."""
        self.log()  # so that what is finished does not appear later
        os.truncate(self._home / "access.log", 0)

    def errors(self) -> str:
        """What nginx complained of."""
        files = [self._home / "boot.log", self._home / "error.log"]
        return "".join(file.read_text() for file in files if file.exists())

    def close(self) -> None:
        """Stop nginx and remove its folder (never the served one)."""
        _stop(self._process)
        shutil.rmtree(self._home, ignore_errors=True)

    def _start(self, command: str) -> tuple[int, subprocess.Popen[bytes]]:
        config = self._home / "nginx.conf"
        for _ in range(10):
            port = free_port()
            fields = {
                "home": self._home,
                "folder": self.folder,
                "host": HOST,
                "port": port,
                "rest": REST,
            }
            config.write_text(CONFIG.format(**fields, **self._options))
            process = subprocess.Popen(
                [command, "-p", self._home, "-c", config, "-e", self._home / "boot.log"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            # The pid file is there once the port is bound: another server's answer is no proof.
            if self._bound(process) and wait_for(port):
                return port, process
            _stop(process)
            if "Address already in use" not in self.errors():
                break
        raise RuntimeError(f"nginx does not start: {self.errors()}")

    def _bound(self, process: subprocess.Popen[bytes]) -> bool:
        end = time.monotonic() + 10
        pid = self._home / "pid"
        while process.poll() is None and time.monotonic() < end:
            if pid.exists() and pid.read_text().strip() == str(process.pid):
                return True
            time.sleep(0.005)
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        process.wait(5)
