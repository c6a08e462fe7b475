"""Which process executes a flow run, and whether it is alive. Prefect records a process id only, without its machine.

A process is identified by its machine, user, id and start time, so that a later process with the same id is not taken for it.
Imports nothing of Prefect.
"""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

PROC = Path("/proc")
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
"""A worker sets it in the environment of the process of a run."""


@dataclass(frozen=True, slots=True)
class RunProcess:
    """A process on a machine."""

    machine: str
    """Its host name."""
    user: int
    pid: int
    started: str
    """Identifies the boot and the time since; empty where there is no /proc."""

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls(this_machine(), os.getuid(), os.getpid(), _started(os.getpid()) or "")

    @classmethod
    def parse(cls, text: object) -> Self | None:
        """Read what `str` has written; None if it is something else."""
        try:
            machine, user, pid, started = str(text).split(":")
            return cls(machine, int(user), int(pid), started)
        except ValueError:
            return None

    def __str__(self) -> str:
        """One line that `parse` reads."""
        return f"{self.machine}:{self.user}:{self.pid}:{self.started}"

    @property
    def is_visible(self) -> bool:
        """Whether this process can tell if it is alive: another user's processes may be hidden."""
        return self.machine == this_machine() and os.geteuid() in (0, self.user)

    def is_alive(self) -> bool:
        """Whether it runs; meaningful only if it is visible."""
        if not PROC.is_dir():
            return exists(self.pid)
        return _started(self.pid) == self.started


def this_machine() -> str:
    """The host name, by which runs and workers of this machine are recognized."""
    return socket.gethostname().replace(":", "-")


def exists(pid: int) -> bool:
    """Whether there is a process with this id, of any user."""
    if PROC.is_dir():
        return _started(pid) is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def runs_in_processes() -> set[str]:
    """The ids of the flow runs that the workers of this machine have started and that have a living process."""
    found = set()
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError):
            for variable in (folder / "environ").read_bytes().split(b"\0"):
                name, _, value = variable.partition(b"=")
                if name == RUN_VARIABLE.encode() and exists(int(folder.name)):
                    found.add(value.decode(errors="replace"))
    return found


def _started(pid: int) -> str | None:
    """When a process was started; None if it has ended, even if its parent has not noticed."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before may contain anything
    return None if state in "ZX" else f"{_boot()}-{fields[18]}"


@cache
def _boot() -> str:
    with suppress(OSError):
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return ""
