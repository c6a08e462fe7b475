"""Send one photo at a constant rate, regardless of the server's speed; latency counts from when a request was due.

    python load.py URL PHOTO --rate 100 --seconds 10 --connections 256
    python load.py URL PHOTO --connections 16 --seconds 10            without a rate: each connection sends after each response

A connection has one request at a time. A request that is due is sent on an idle connection; if none is idle it is queued, and
the time in the queue is part of its latency. SIGTERM ends the run early. The last line of output is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import time
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

import httptools


class Client(asyncio.Protocol):
    """One connection; replaced when it is closed."""

    def __init__(self, load: "Load") -> None:
        self.load = load
        self.due = 0.0
        self.sent = 0.0
        self.busy = False
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Prepare for sending."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=1 << 20)

    def send(self, due: float) -> None:
        """Send a request; `due` is when it should have been sent."""
        assert self.transport is not None
        self.due, self.sent, self.busy = due, time.perf_counter(), True
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        """Read a response."""
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Count the response and send the next request."""
        now = time.perf_counter()
        status = self.parser.get_status_code()
        self.load.answered(status, now - self.due, now - self.sent, now)
        self.busy = False
        if self.parser.should_keep_alive() and self.transport is not None and not self.transport.is_closing():
            self.load.free(self)
        elif self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count a lost request, and open another connection."""
        if self.busy:
            self.load.lost += 1
        self.busy, self.transport = False, None
        self.load.reopen()


class Load:
    """All connections, the queue of due requests, and the counters."""

    def __init__(self, url: str, photo: bytes, headers: list[str]) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"POST {target} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: image/jpeg", *headers]
        head = "\r\n".join([*lines, f"Content-Length: {len(photo)}", "", ""])
        self.request = head.encode() + photo
        self.idle: deque[Client] = deque()
        self.queue: deque[float] = deque()
        self.good: list[float] = []
        self.bad: list[float] = []
        self.late: list[float] = []
        self.statuses: dict[int, int] = {}
        self.per_second: dict[int, int] = {}
        self.lost = 0
        self.ended = False
        self.closed_loop = False
        self.begun = 0.0

    def due(self, when: float) -> None:
        """Send a request that is due, or queue it."""
        if self.idle:
            self.idle.popleft().send(when)
        else:
            self.queue.append(when)

    def free(self, client: Client) -> None:
        """Use a connection that has become idle."""
        if self.closed_loop and not self.ended:
            client.send(time.perf_counter())
        elif self.queue:
            client.send(self.queue.popleft())
        else:
            self.idle.append(client)

    def answered(self, status: int, since_due: float, since_sent: float, now: float) -> None:
        """Count a response. The time of an error response counts from sending it, not from when it was due."""
        if self.ended:
            return
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self.good.append(since_due)
            second = int(now - self.begun)
            self.per_second[second] = self.per_second.get(second, 0) + 1
        elif status == 504:
            self.late.append(since_due)
        else:
            self.bad.append(since_sent)

    def reopen(self) -> None:
        """Replace a closed connection."""
        if not self.ended:
            asyncio.get_running_loop().create_task(self.open())

    async def open(self) -> None:
        """Open a connection."""
        try:
            _, client = await asyncio.get_running_loop().create_connection(lambda: Client(self), self.host, self.port)
        except OSError:
            self.lost += 1
            await asyncio.sleep(0.05)
            self.reopen()
            return
        self.idle = deque(each for each in self.idle if each.transport is not None)
        self.free(client)


async def run(load: Load, rate: float, seconds: float, connections: int) -> dict[str, object]:
    """Keep the rate, or the connections busy, until the time is over or SIGTERM."""
    await asyncio.gather(*(load.open() for _ in range(connections)))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    spent_before = time.process_time()
    load.begun = begun = time.perf_counter()
    if rate:
        sent = 0
        while (elapsed := time.perf_counter() - begun) < seconds and not ended.is_set():
            while sent < elapsed * rate:
                load.due(begun + sent / rate)
                sent += 1
            await asyncio.sleep(max(0.0, min(0.05, begun + sent / rate - time.perf_counter())))
    else:
        load.closed_loop = True
        while load.idle:
            load.idle.popleft().send(time.perf_counter())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), seconds)
    wall_s = time.perf_counter() - begun
    good, bad = sorted(load.good), sorted(load.bad)
    counted = [load.per_second.get(second, 0) for second in range(int(wall_s))]
    result = {
        "rate": len(good) / wall_s,
        "errors": len(bad) + len(load.late) + load.lost,
        "lost": load.lost,
        "unsent": len(load.queue),
        "statuses": load.statuses,
        "generator_cores": (time.process_time() - spent_before) / wall_s,
        "slowest_second": min(counted, default=0),
        **percentiles(good, ""),
        **percentiles(bad, "rejected_"),
    }
    load.ended = True
    return result


def percentiles(seconds: list[float], prefix: str) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    if not seconds:
        return {}
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
    found = {f"{prefix}{name}_ms": seconds[min(len(seconds) - 1, int(len(seconds) * q))] * 1e3 for name, q in at.items()}
    return {**found, f"{prefix}max_ms": seconds[-1] * 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--header", action="append", default=[])
    arguments = parser.parse_args()
    load = Load(arguments.url, arguments.photo.read_bytes(), arguments.header)
    try:
        import uvloop

        uvloop.install()
    except ImportError:
        pass
    print(json.dumps(asyncio.run(run(load, arguments.rate, arguments.seconds, arguments.connections))))


if __name__ == "__main__":
    main()
