"""Mixed load for a long time: failures, and growth of memory and open files.

    python benchmarks/serving/soak.py --minutes 15          or 1440, for a day

Clients send random requests at 70 % of the server's own peak: photos on persistent and on new connections, forms, V2 requests,
health and metrics, and one in ten is bad (not an image, half an image, a truncated body, a malformed head, a client that
disconnects before the response). Every response must have a status that is expected for its request. Memory and open files of
the server are sampled every few seconds; the slope is over the second half, after caches have filled.
"""

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from harness import arguments_of, artifact, generate, memory_mb, photo, report, setting, start, workspace

SHARE = 0.7
CLIENTS = 12
EVERY_S = 5.0
TIMEOUT_S = 30.0
BAD = ("not an image", "half an image", "truncated", "malformed head", "disconnects")
GOOD = {"photo": 12, "photo, new connection": 3, "form": 2, "v2": 2, "health": 2, "metrics": 1}
EXPECTED = {"not an image": {422}, "half an image": {422}, "malformed head": {400}, "truncated": {0}, "disconnects": {0}}


class Soak:
    """Shared by the clients: what to send, and the counters."""

    def __init__(self, url: str, image: bytes, model: str, rate: float, until: float) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.image, self.model = image, model
        self.pause_s = CLIENTS / rate
        self.until = until
        self.label = ""
        """The first prediction; every other one must be the same."""
        self.answered: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    async def client(self, number: int) -> None:
        """Send one request after the other, at a constant rate."""
        choice = random.Random(number)
        connection: Any = None
        due = time.monotonic() + self.pause_s * choice.random()
        while time.monotonic() < self.until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += self.pause_s
            kind = choice.choice(BAD) if choice.random() < 0.1 else choice.choices(list(GOOD), list(GOOD.values()))[0]
            new = connection is None or kind in BAD or kind == "photo, new connection"
            if new and connection is not None:
                connection[1].close()
            try:
                if new:
                    connection = await asyncio.open_connection(self.host, self.port)
                status = await asyncio.wait_for(self.send(kind, *connection), TIMEOUT_S)
            except (OSError, EOFError, TimeoutError) as error:
                status = -1
                self.wrong[f"{kind}: {type(error).__name__}"] += 1
            if status == -1 or kind in BAD:
                if connection is not None:
                    connection[1].close()
                connection = None
            self.answered[kind] += 1
            if status >= 0 and status not in EXPECTED.get(kind, {200}):
                self.wrong[f"{kind}: {status}"] += 1

    async def send(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Send one request of a kind; return the status, or 0 if no response is expected."""
        head, body = self.request(kind)
        writer.write(head + body)
        await writer.drain()
        if kind in ("truncated", "disconnects"):
            return 0
        answer = await reader.readuntil(b"\r\n\r\n")
        lines = answer.lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
        body = await reader.readexactly(length)
        if kind.startswith("photo"):
            best = json.loads(body)["predictions"][0]["label"]
            self.label = self.label or best
            if best != self.label:
                self.wrong[f"{kind}: another answer"] += 1
        return int(lines[0].split()[1])

    def request(self, kind: str) -> tuple[bytes, bytes]:
        """Return the head and the body of a request."""
        if kind == "malformed head":
            return b"\x00\x01 nothing of this is HTTP\r\n\r\n", b""
        if kind in ("health", "metrics"):
            return self.head("GET", "/healthz" if kind == "health" else "/metrics"), b""
        if kind == "form":
            part = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + self.image + b"\r\n"
            body = part * 2 + b"--edge--\r\n"
            return self.head("POST", "/predict", body, "multipart/form-data; boundary=edge"), body
        if kind == "v2":
            tensor = {
                "name": "image",
                "datatype": "BYTES",
                "shape": [1],
                "parameters": {"binary_data_size": len(self.image) + 4},
            }
            text = json.dumps({"inputs": [tensor]}).encode()
            body = text + len(self.image).to_bytes(4, "little") + self.image
            more = f"Inference-Header-Content-Length: {len(text)}\r\n"
            return self.head("POST", f"/v2/models/{self.model}/infer", body, "application/octet-stream", more), body
        body = {"not an image": b"this is not an image", "half an image": self.image[: len(self.image) // 2]}.get(
            kind, self.image
        )
        head = self.head("POST", "/predict", body, "image/jpeg")
        return head, body[: len(body) // 3] if kind == "truncated" else body

    def head(self, method: str, path: str, body: bytes = b"", kind: str = "", more: str = "") -> bytes:
        """Return the head of a request."""
        of_body = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n" if kind else ""
        return f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\n{of_body}{more}\r\n".encode()


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    arguments = parser.parse_args()
    with workspace(arguments.environment) as folder:
        model, path = artifact(arguments.artifact), photo(arguments.photo, folder)
        server = start(setting("edgeline", model, folder))
        try:
            peak = generate(server.url, path, connections=16, seconds=3)["rate"]
            soak = Soak(server.url, path.read_bytes(), v2_name(model), SHARE * peak, time.monotonic() + 60 * arguments.minutes)
            rows = asyncio.run(run(soak, server.process.pid, server))
        finally:
            code = server.stop()
    hours, memory, files = (np.array(column) for column in zip(*rows, strict=True))
    half = len(rows) // 2
    slopes = [float(np.polyfit(hours[half:], column[half:], 1)[0]) for column in (memory, files)]
    report(
        "soak",
        minutes=arguments.minutes,
        peak=peak,
        requests=dict(soak.answered),
        wrong=dict(soak.wrong),
        rss_first_mb=float(memory[0]),
        rss_last_mb=float(memory[-1]),
        rss_max_mb=float(memory.max()),
        rss_slope_mb_per_hour=slopes[0],
        files_last=int(files[-1]),
        files_max=int(files.max()),
        files_slope_per_hour=slopes[1],
        exit_code=code,
    )


def v2_name(model: Path) -> str:
    """Return the artifact's name under /v2."""
    return str(json.loads((model / "manifest.json").read_bytes())["name"])


async def run(soak: Soak, pid: int, server: Any) -> list[tuple[float, float, int]]:
    """Run the clients and sample the server; return hours, megabytes and open files."""
    rows, begun = [], time.monotonic()
    clients = [asyncio.create_task(soak.client(number)) for number in range(CLIENTS)]
    while time.monotonic() < soak.until:
        await asyncio.sleep(EVERY_S)
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        rows.append(((time.monotonic() - begun) / 3600, memory_mb(server.tree())["rss"], files))
        if len(rows) % 12 == 0:
            print(f"  {rows[-1][0] * 60:.0f} min: {rows[-1][1]:.1f} MB, {files} files, wrong {dict(soak.wrong)}", flush=True)
    await asyncio.gather(*clients)
    return rows


if __name__ == "__main__":
    main()
