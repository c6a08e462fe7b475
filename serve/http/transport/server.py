"""Run an application on a socket until a signal to stop.

Invariant: after SIGTERM or SIGINT readiness ends first, then the socket closes, and every accepted request is answered within
the grace period before `run` returns. A second signal ends the grace period.
"""

import asyncio
import contextlib
import ctypes
import ipaddress
import signal
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.types import ASGIApp

from edgeline.serve.errors import ConfigError
from edgeline.serve.http.transport.connection import Connection
from edgeline.serve.http.transport.connections import ConnectionLimits, Connections, Handlers

BACKLOG = 2048
ACCEPTS = 8
"""Connections that are accepted in one go. asyncio accepts as many as its backlog allows before it handles the first, and when
file descriptors run out it continues through all of them, with a traceback in the log for each."""
LAME_DUCK_S = 0.25
"""Between the signal and the end of listening, and again until idle connections are closed: responses announce the end of their
connection meanwhile, and an idle client that sends another request is still answered."""
HANDSHAKE_S = 5.0
SO_ATTACH_FILTER = 26
RETURN_0 = struct.pack("HBBI", 6, 0, 0, 0)
"""A packet filter's one instruction: let through 0 bytes of every packet. See socket(7)."""
SECONDARY = ConnectionLimits(max_connections=16)
"""Of a further socket, such as that of the metrics."""


def listen(host: str, port: int, *, option: str = "--host or --port") -> socket.socket:
    """Open a listening socket; port 0 picks a free one.

    Args:
        host: an address of this machine.
        port: 0 to 65535.
        option: the command line option to change, for the error message.

    Raises:
        ConfigError: the address is in use, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; choose another {option}, port 0 picks a free one",
            code="address_unusable",
        ) from error
    # Connections inherit it. asyncio sets it only on sockets whose protocol is given as TCP, which create_server's are not;
    # without it the second part of a response waits 40 ms for the client's acknowledgement of the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """The address of a listening socket as a URL."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"


def is_exposed(listener: socket.socket) -> bool:
    """Whether other machines may reach a listening socket."""
    return not ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def accept_rest(listener: socket.socket) -> list[socket.socket]:
    """Accept what the kernel has queued for a listening socket that is about to close, which would reset it.

    On Linux, a packet filter drops further attempts to connect meanwhile; those clients retry and cannot connect.
    """
    if sys.platform == "linux":
        instruction = ctypes.create_string_buffer(RETURN_0)
        with contextlib.suppress(OSError):  # without the filter, a client that connects in this very moment is reset
            listener.setsockopt(
                socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(RETURN_0) // 8, ctypes.addressof(instruction))
            )
    found: list[socket.socket] = []
    with contextlib.suppress(OSError):
        while len(found) < BACKLOG:
            found.append(listener.accept()[0])
    return found


@dataclass(frozen=True, slots=True)
class Hooks:
    """Called by a server on its event loop; each must return at once."""

    started: Callable[[], None] = lambda: None
    """The socket is open and signals are caught."""
    stopping: Callable[[], None] = lambda: None
    """A signal to stop has arrived; requests are still answered."""
    signals: tuple[tuple[signal.Signals, Callable[[], None]], ...] = ()
    """Further signals and their handlers."""


class Server:
    """Serves an ASGI application until it is stopped."""

    def __init__(
        self,
        handlers: Handlers,
        connections: Connections,
        *,
        hooks: Hooks = Hooks(),
        grace_s: float = 30,
    ) -> None:
        self.handlers = handlers
        self.connections = connections
        self.hooks = hooks
        self.grace_s = grace_s
        self._stops = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_requested = asyncio.Event()

    def run(
        self,
        listener: socket.socket,
        *,
        tls: ssl.SSLContext | None = None,
        also: Iterable[tuple[socket.socket, ASGIApp]] = (),
    ) -> bool:
        """Serve until a signal or `stop`.

        Args:
            listener: a listening socket.
            tls: None serves plain HTTP.
            also: further sockets, each with the application that is served on it for as long.

        Returns:
            Whether everything that was accepted was answered.
        """
        finished = asyncio.run(self._serve(listener, tls, also))
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # another one must not turn an orderly end into a crash
        return finished

    def stop(self) -> None:
        """Stop as SIGTERM does; may be called from any thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop)

    async def _serve(
        self, listener: socket.socket, tls: ssl.SSLContext | None, also: Iterable[tuple[socket.socket, ASGIApp]]
    ) -> bool:
        self._loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"ssl": tls} if tls else {}
        if tls:
            options |= {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": HANDSHAKE_S}
        connect = partial(Connection, self.connections, self.handlers)
        server = await self._loop.create_server(connect, sock=listener, backlog=ACCEPTS, **options)
        listener.listen(BACKLOG)
        for other, app in also:
            others = partial(Connection, Connections(SECONDARY), Handlers(app))
            await self._loop.create_server(others, sock=other, backlog=ACCEPTS)
        if threading.current_thread() is threading.main_thread():
            self._catch_signals()
        self.hooks.started()
        await self._stop_requested.wait()
        self.hooks.stopping()
        self.connections.closing = True
        await self._pause(LAME_DUCK_S)
        waiting = accept_rest(listener)
        server.close()
        for accepted in waiting:
            with contextlib.suppress(OSError):
                await self._loop.connect_accepted_socket(connect, accepted, **options)
        await self._pause(LAME_DUCK_S)  # time for the clients that were just accepted to send their request
        self.connections.end_idle()
        return await self._finish()

    def _catch_signals(self) -> None:
        """Install handlers in the process: the event loop's own would end with the loop."""
        for number, call in ((signal.SIGTERM, self._stop), (signal.SIGINT, self._stop), *self.hooks.signals):
            signal.signal(number, lambda *_, call=call: self._soon(call))

    def _soon(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)

    def _stop(self) -> None:
        self._stops += 1
        self._stop_requested.set()

    async def _pause(self, seconds: float) -> None:
        """Sleep, or until a second signal arrives."""
        until = asyncio.get_running_loop().time() + seconds
        while self._stops < 2 and (left := until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(left, 0.05))

    async def _finish(self) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.grace_s
        while self.connections.open and self._stops < 2 and loop.time() < until:
            await asyncio.sleep(0.01)
        finished = not self.connections.open
        for connection in list(self.connections.open):
            connection.drop()
        return finished
