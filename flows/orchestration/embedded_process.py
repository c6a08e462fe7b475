"""The process of the embedded Prefect server.

Started as a file by `flows.orchestration.embedded`; imports nothing of edgeline.

    python -P embedded_process.py <descriptor of a listening socket>

Standard input is a pipe that only the parent holds open. It is closed when the parent closes it or dies for any reason; then
this process ends too.
"""

import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvicorn import Server

SHUTDOWN_S = 5.0


def main() -> None:
    """Serve Prefect's API on the socket until standard input ends."""
    running: list[Server] = []
    threading.Thread(target=_end_with_parent, args=(running,), daemon=True).start()
    listener = socket.socket(fileno=int(sys.argv[1]))

    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=1)
    running.append(uvicorn.Server(config))
    running[0].run(sockets=[listener])


def _end_with_parent(running: "list[Server]") -> None:
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read(): a thread inside it when Python exits is a fatal error
    if running and running[0].started:
        running[0].should_exit = True
        time.sleep(SHUTDOWN_S)  # the main thread ends the process meanwhile, unless it hangs
    os._exit(0)


if __name__ == "__main__":
    main()
