"""What makes two processes give the same results: versions, code and files. Compared before a cluster gets any work."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Generic, TypeVar

from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.serve.errors import EdgelineError

CODE = "code"
S = TypeVar("S")
R = TypeVar("R")


@cache
def identity(module: str, packages: tuple[str, ...]) -> Mapping[str, str]:
    """The versions of edgeline, Python and packages in this process, and the digest of a module with all that it imports."""
    versions = {"edgeline": installed("edgeline"), "Python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    return versions | {name: installed(name) for name in packages} | {CODE: code_digest(module)}


def installed(package: str) -> str:
    """The version of an installed distribution, or `none`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def module_of(work: Callable[[Any], Any]) -> str:
    """The module that defines a function."""
    return str((work.func if isinstance(work, partial) else work).__module__)


def difference(worker: str, found: Mapping[str, str], expected: Mapping[str, str]) -> str | None:
    """The first difference of a worker as a sentence; None if there is none."""
    for name, value in expected.items():
        if found.get(name) == value:
            continue
        if name == CODE:
            return f"worker {worker} has edgeline {found['edgeline']} too, but with other code; install the same on both"
        there = found.get(name, "none")
        return f"worker {worker} has {name} {there}, this process has {value}; install the same version on both"
    return None


def size_of(path: str) -> int | str:
    """The size of a file in bytes, -1 of a folder, or why it cannot be read."""
    try:
        if os.path.isdir(path):
            return -1 if os.access(path, os.R_OK | os.X_OK) else "Permission denied"
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        return str(error.strerror)


@dataclass(frozen=True)
class Checked(Generic[S, R]):
    """Work that is only done by a process with the expected identity, so that a worker that joins later is checked too."""

    work: Callable[[S], R]
    packages: tuple[str, ...]
    expected: Mapping[str, str]

    def __call__(self, shard: S) -> R:
        """Work on a shard.

        Raises:
            EdgelineError: this process differs from the one that sent the work.
        """
        found = identity(module_of(self.work), self.packages)
        if found != self.expected:
            from distributed import get_worker

            message = difference(get_worker().address, found, self.expected)
            raise EdgelineError(f"{message}", code="worker_differs")
        return self.work(shard)
