"""Run the service on a socket until a signal says stop.

Invariant: after SIGTERM or SIGINT every request that was accepted is answered, within the grace period, before `run` returns.
"""

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import HANDLED_SIGNALS

from serve.errors import ConfigError

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Longer than the 60 s of common proxies, so that the proxy is the one to close an idle connection and no request meets a
closing one."""
MAX_HEADER_BYTES = 16 * 2**10


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the address is taken, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; choose another --host or --port, port 0 takes a free one",
            code="address_unusable",
        ) from error
    # Connections inherit it. asyncio sets it only on sockets that name TCP as their protocol, which create_server's do not;
    # without it the second part of an answer waits 40 ms for the client's acknowledgement of the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket) -> str:
    """The address of a listening socket as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def is_exposed(listener: socket.socket) -> bool:
    """Whether other machines may reach a listening socket."""
    return not ipaddress.ip_address(listener.getsockname()[0]).is_loopback


class Server(uvicorn.Server):
    """uvicorn's server, which says when it serves and ends cleanly on a signal."""

    def __init__(self, app: ASGIApp, *, grace_s: int, on_started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                # One parser whatever else is installed: its limits are what the tests know.
                http="h11",
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                ws="none",
                lifespan="off",
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=grace_s,
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
            )
        )
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, signals being caught already."""
        await super().startup(sockets)
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server, and no more.

        uvicorn raises them again after its shutdown, so that the process dies of the signal; to a supervisor an orderly stop
        would look like a crash.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
