"""SIGTERM under load, many times: does every accepted request get a response?

Every client has one connection and sends its next request after each response; after `Connection: close` it opens another
connection. A request is *accepted* if its connection was opened and all its bytes were written before the connection closed. It
is *answered* if a complete response arrived. Any other request is lost, and counted by where: on a connection with earlier
responses, in the middle of a response, or on a fresh connection without any response. The kernel may have opened the last kind
in the instant in which the server stopped listening, so that the server never saw it; it still counts as lost. A connection
that was refused was never accepted.
"""

import contextlib
import random
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from harness import Running, arguments_of, artifact, photo, report, setting, start, workspace


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--connections", type=int, default=16)
    arguments = parser.parse_args()
    chance, totals, codes, ended_s = random.Random(0), Counter[str](), Counter[int](), []
    with workspace(arguments.environment) as folder:
        model, image = artifact(arguments.artifact), photo(arguments.photo, folder)
        for number in range(arguments.stops):
            server = start(setting("edgeline", model, folder))
            clients = [Client(server.url, image) for _ in range(arguments.connections)]
            for client in clients:
                client.thread.start()
            time.sleep(chance.uniform(0.3, 1.0))
            begun = time.perf_counter()
            server.process.send_signal(signal.SIGTERM)
            codes[wait(server)] += 1
            ended_s.append(time.perf_counter() - begun)
            for client in clients:
                client.thread.join()
                totals.update(client.counts)
            if (number + 1) % 10 == 0:
                print(f"  {number + 1} stops: {dict(totals)}, exit codes {dict(codes)}", flush=True)
    lost = sum(value for key, value in totals.items() if key.startswith("lost"))
    longest = max(ended_s)
    report("stops", stops=arguments.stops, exit_codes=codes, lost_in_all=lost, longest_stop_s=longest, **totals)


def wait(server: Running) -> int:
    """Wait until the server has ended; return its exit code, -9 if it had to be killed."""
    with contextlib.suppress(Exception):
        return server.process.wait(60)
    server.stop()
    return -9


class Client:
    """One client on a plain socket, in its own thread."""

    def __init__(self, url: str, image: Path) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "", parts.port or 80)
        body = image.read_bytes()
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}"
        self.request = head.encode() + b"\r\n\r\n" + body
        self.counts: Counter[str] = Counter()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            try:
                connection = socket.create_connection(self.address, timeout=60)
            except OSError:
                self.counts["refused"] += 1
                return
            with connection:
                while self._send(connection):
                    pass

    def _send(self, connection: socket.socket) -> bool:
        """Send one request; return whether the connection can be used for another."""
        fresh = getattr(self, "_last", None) is not connection
        self._last = connection
        try:
            connection.sendall(self.request)
        except OSError:
            self.counts["not_sent"] += 1
            return False
        answer = b""
        while True:
            try:
                data = connection.recv(65536)
            except OSError:
                data = b""
            answer += data
            head, end, rest = answer.partition(b"\r\n\r\n")
            if end and len(rest) >= _length(head):
                break
            if not data:
                self.counts["lost_in_a_response" if answer else "lost_on_a_fresh_one" if fresh else "lost_on_a_used_one"] += 1
                return False
        self.counts["answered_" + head.split(None, 2)[1].decode()] += 1
        return b"\r\nconnection: close" not in head.lower()


def _length(head: bytes) -> int:
    lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    return next(int(value) for name, _, value in lines if name == b"content-length")


if __name__ == "__main__":
    main()
