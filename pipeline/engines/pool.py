"""What an engine provides: an executor for functions, and what the functions need where they run."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What must be the same on every machine that works on a shard."""

    paths: tuple[str, ...] = ()
    """Some of the files and folders that are read or written, absolute. They are compared before any work."""
    packages: tuple[str, ...] = ()
    """Distributions whose version changes the results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """An engine that is ready to work."""

    executor: Executor
    workers: int
    """How many shards it works on at the same time."""
    check: Callable[[], None] = field(default=lambda: None)
    """Called when no shard was finished for a while. Raises an `EdgelineError` if none ever will be."""
