"""Connections that stall, half in the head and half in the body. One that the server closes is opened again at once.

    python stall.py URL COUNT

prints a line when all are open, and keeps them open until it is ended. They are opened over a few seconds, so that the server's
deadlines for them are spread, as with independent clients.
"""

import selectors
import socket
import sys
import time
from urllib.parse import urlsplit

HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
BODY = HEAD + b"Content-Type: image/jpeg\r\nContent-Length: 35000\r\n\r\n\xff\xd8\xff"
SPREAD_S = 5.0


def main(url: str, count: int) -> None:
    parts = urlsplit(url)
    selector = selectors.DefaultSelector()

    def hold(data: bytes) -> None:
        connection = socket.create_connection((parts.hostname, parts.port))
        connection.sendall(data)
        selector.register(connection, selectors.EVENT_READ, data)

    def turn(timeout_s: float | None) -> None:
        for key, _ in selector.select(timeout_s):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            try:
                ended = not connection.recv(65536)
            except ConnectionError:
                ended = True
            if ended:
                selector.unregister(connection)
                connection.close()
                hold(key.data)

    for index in range(count):
        hold((HEAD, BODY)[index % 2])
        until = time.monotonic() + SPREAD_S / count
        while (left := until - time.monotonic()) > 0:
            turn(left)
    print("open", flush=True)
    while True:
        turn(None)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
