"""A TCP proxy that misbehaves as told: the program that `tests.servers.chaos` starts.

Commands come as lines of JSON on standard input, each is answered by a line on standard output;
the program ends with its standard input, so it never outlives who started it.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

BUFFER = 1 << 18


@dataclass(frozen=True)
class Faults:
    """What goes wrong on a connection; offsets count its bytes downstream, headers included."""

    cut_after: int | None = None  # bytes, after which it ends
    reset: bool = False  # end by a reset (RST), not by a plain close (FIN)
    stall_after: int | None = None  # bytes, after which nothing comes any more
    flip_at: int | None = None  # offset of a byte, whose lowest bit is turned around
    rate: int | None = None  # bytes a second
    delay: float = 0  # seconds until the server is connected to
    latency: float = 0  # seconds from each request to the first byte of its response
    refuse: bool = False  # reset the connection as soon as it opens
    first: int | None = None  # only the next so many connections have these faults


@dataclass
class Counts:
    """What went through since the start or the last reset."""

    connections: int = 0
    requests: int = 0  # turns from downstream to upstream: requests, if none is pipelined
    bytes_up: int = 0
    bytes_down: int = 0  # as handed to the kernel


@dataclass
class Link:
    """One connection, and the one to the server behind."""

    client: socket.socket
    faults: Faults
    server: socket.socket | None = None
    down: int = 0  # bytes downstream so far
    asked: float | None = None  # when the request came that nothing was answered to yet
    free_at: float = 0  # when the rate allows the next bytes
    cut: bool = False
    reset: bool = False  # how it ends

    def close(self) -> None:
        with suppress(OSError):
            if self.reset:
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self.client.shutdown(socket.SHUT_WR)  # a FIN, even if something is unread
        self.client.close()
        if self.server is not None:
            self.server.close()


class Proxy:
    """Accepts, connects, and pumps both ways."""

    def __init__(self, host: str, port: int) -> None:
        self.upstream = host, port
        self.faults = Faults()
        self.left: int | None = None  # connections that still get the faults
        self.counts = Counts()
        self.tasks: dict[asyncio.Task[None], Link] = {}
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)

    async def accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self.listener)
            except OSError:  # it was gone at once, or there are too many
                await asyncio.sleep(0.01)
                continue
            self.counts.connections += 1
            link = Link(client, self.next_faults())
            task = loop.create_task(self.handle(link))
            self.tasks[task] = link
            task.add_done_callback(self.tasks.pop)

    def next_faults(self) -> Faults:
        if self.left is None:
            return self.faults
        self.left -= 1
        return self.faults if self.left >= 0 else Faults()

    async def handle(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        pumps: list[asyncio.Task[None]] = []
        try:
            if link.faults.refuse:
                link.reset = True
                return
            await asyncio.sleep(link.faults.delay)
            link.server = socket.socket()
            for end in (link.client, link.server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(link.server, self.upstream)
            pumps = [loop.create_task(pump(link)) for pump in (self.pump_up, self.pump_down)]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            link.reset = True  # no server behind: as if it had gone
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)  # no socket closes under a pump
            link.close()

    async def pump_up(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        assert link.server is not None
        view = memoryview(bytearray(BUFFER))
        try:
            while size := await loop.sock_recv_into(link.client, view):
                if link.asked is None:
                    link.asked = time.monotonic()
                    self.counts.requests += 1
                self.counts.bytes_up += size
                await loop.sock_sendall(link.server, view[:size])
        except OSError:
            link.reset = True

    async def pump_down(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        assert link.server is not None
        view = memoryview(bytearray(BUFFER))
        try:
            await self.stop_at_limit(link)
            while not link.cut and (
                size := await loop.sock_recv_into(link.server, self.room(link, view))
            ):
                if link.asked is not None:
                    await asyncio.sleep(link.asked + link.faults.latency - time.monotonic())
                    link.asked = None
                await self.send(link, view[:size])
                await self.stop_at_limit(link)
        except OSError:
            link.reset = True

    @staticmethod
    def room(link: Link, view: memoryview) -> memoryview:
        """As much of the buffer as may be filled before something has to happen."""
        faults, size = link.faults, len(view)
        for limit in (faults.cut_after, faults.stall_after):
            if limit is not None:
                size = min(size, limit - link.down)
        if faults.rate is not None:
            size = min(size, max(1, faults.rate // 50))
        return view[:size]

    @staticmethod
    async def stop_at_limit(link: Link) -> None:
        """Note that it is time to cut; where it is to stall, never come back."""
        faults = link.faults
        if faults.cut_after is not None and link.down >= faults.cut_after:
            link.cut, link.reset = True, faults.reset
        elif faults.stall_after is not None and link.down >= faults.stall_after:
            await asyncio.Event().wait()

    async def send(self, link: Link, data: memoryview) -> None:
        faults = link.faults
        if faults.flip_at is not None and 0 <= faults.flip_at - link.down < len(data):
            data[faults.flip_at - link.down] ^= 1
        link.down += len(data)
        self.counts.bytes_down += len(data)  # before: who has the bytes finds them counted
        await asyncio.get_running_loop().sock_sendall(link.client, data)
        if faults.rate is not None:
            # A little credit makes up for a sleep that took too long.
            begin = max(link.free_at, time.monotonic() - 0.02)
            link.free_at = begin + len(data) / faults.rate
        # Even without a rate, so that no connection starves the others.
        await asyncio.sleep(link.free_at - time.monotonic() if faults.rate else 0)

    def command(self, order: dict[str, object]) -> object:
        """Do what the other side orders; what comes back goes back."""
        match order.pop("do"):
            case "set":
                self.faults = Faults(**order)  # type: ignore[arg-type]
                self.left = self.faults.first
            case "drop":
                for task, link in list(self.tasks.items()):
                    link.reset = True
                    task.cancel()
            case "reset":
                self.counts = Counts()
        return asdict(self.counts)


def raise_limit() -> None:
    """Allow as many open files as may be: each connection takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def main(host: str, port: str) -> None:
    proxy = Proxy(host, int(port))
    accepting = asyncio.create_task(proxy.accept())
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print(proxy.listener.getsockname()[1], flush=True)
    while line := await orders.readline():
        print(json.dumps(proxy.command(json.loads(line))), flush=True)
    accepting.cancel()


if __name__ == "__main__":
    raise_limit()
    asyncio.run(main(*sys.argv[1:]))
