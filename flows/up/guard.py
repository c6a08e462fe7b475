"""The process around a service: it starts the service, and ends it when its own parent closes a pipe or dies for any reason.

Started as a file by `flows.up.supervisor`; imports nothing of edgeline.

    python -P guard.py <seconds to stop in> <mark> <command>...

The mark is an environment variable of the service and of all processes that it starts, such as a worker's runs. So none of them
is left behind, even those whose parent was killed. It needs /proc; without it only the service itself is ended.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MARK = "EDGELINE_UP"
RUN = b"PREFECT__FLOW_RUN_ID="
"""In the environment of a run that a worker started."""
KILL_S = 5.0


def main() -> None:
    """Run the command; exit with its code."""
    seconds, mark, *command = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # a script's background process ignores SIGINT, and so would the service
    service = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=os.environ | {MARK: mark})
    lock = threading.Lock()

    def stop() -> None:
        if not lock.acquire(blocking=False):
            return
        service.terminate()
        with suppress(subprocess.TimeoutExpired):
            service.wait(float(seconds))
        end_marked(mark)
        os._exit(0)

    # In a thread: this one waits for the service, which the handler would interrupt but not end.
    signal.signal(signal.SIGTERM, lambda number, frame: threading.Thread(target=stop).start())
    threading.Thread(target=_when_closed, args=(stop,), daemon=True).start()
    code = service.wait()
    if lock.acquire(blocking=False):
        sys.exit(code if code >= 0 else 128 - code)
    time.sleep(float(seconds) + 2 * KILL_S)  # the other thread ends this process


def _when_closed(stop: Callable[[], None]) -> None:
    os.read(0, 1)  # nothing is ever written; not sys.stdin.read(): a thread inside it when Python exits is a fatal error
    stop()


def end_marked(mark: str, *, spare_runs: bool = False) -> None:
    """Kill all processes with a mark.

    Args:
        mark: of a service.
        spare_runs: leave the runs of a worker, which finish without it.
    """
    deadline = time.monotonic() + KILL_S
    while (found := marked(mark, spare_runs=spare_runs)) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def marked(mark: str, *, spare_runs: bool = False) -> list[int]:
    """The ids of the living processes with a mark, without this one."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")  # empty for one that has ended
            is_run = any(variable.startswith(RUN) for variable in variables)
            if wanted in variables and not (spare_runs and is_run) and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


if __name__ == "__main__":
    main()
