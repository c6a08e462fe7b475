"""Apply a function to shards of images, on this machine or on many.

    for hashes in map_shards(hash_shard, divide(paths, most=256), config.engine, Needs(paths=(paths[0],))):
        ...

The unit is a shard, because a task of its own for each image costs more than the image, and its bookkeeping grows with the
data. Results are used in the order of the shards, whatever the order in which they are finished. Memory is bounded by the
shards in flight: later ones are not even listed before there is room for them.

An engine may work on a shard twice without a notice, when a worker is lost. The function therefore has to be idempotent, and
returns something small.

To add an engine: a module here with a function like `local_pool`, its line in `ENGINES`, and its name in
`pipeline.engine_config.EngineConfig.kind`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from edgeline.pipeline.engine_config import EngineConfig
from edgeline.pipeline.engines.dask_cluster import dask_pool
from edgeline.pipeline.engines.local import local_pool
from edgeline.pipeline.engines.pool import Needs, Pool

ENGINES: Mapping[str, Callable[[EngineConfig, Callable[[Any], Any], Needs], AbstractContextManager[Pool]]] = {
    "local": local_pool,
    "dask": dask_pool,
}
"""By `EngineConfig.kind`."""
IN_FLIGHT, AHEAD = 3, 12
"""Shards for each worker: in progress or queued; and at most with those that are finished before an earlier one."""
FEWEST = 32
"""Shards that a small data set is divided into, so that all workers have some."""
SILENCE_S = 30.0
"""Without a finished shard, until the engine is checked."""

S = TypeVar("S")
R = TypeVar("R")


def map_shards(
    work: Callable[[S], R],
    shards: Iterable[S],
    engine: EngineConfig,
    needs: Needs = Needs(),
    finished: Callable[[R], None] | None = None,
) -> Iterator[R]:
    """Yield the result of each shard, in order.

    Args:
        work: idempotent. For a cluster: a function of an installed module, whose argument and result can be pickled.
        shards: read only as far ahead as results are used.
        engine: where the work is done.
        needs: what must be the same on the workers of a cluster; compared before any work.
        finished: called with each result as soon as it is there, in any order.

    Raises:
        EdgelineError: the engine does not answer, its workers differ from this process, or it was lost.
        Exception: the first one, in the order of the shards, that the work has raised.
    """
    with ENGINES[engine.kind](engine, work, needs) as pool:
        yield from _in_order(pool, work, iter(shards), finished)


def divide(items: Sequence[S], most: int) -> Iterator[Sequence[S]]:
    """Divide items into consecutive shards of equal size.

    Args:
        items: any number of them.
        most: items in a shard; less if there would be fewer than `FEWEST` shards.
    """
    size = max(1, min(most, len(items) // FEWEST))
    return (items[start : start + size] for start in range(0, len(items), size))


def _in_order(pool: Pool, work: Callable[[S], R], shards: Iterator[S], finished: Callable[[R], None] | None) -> Iterator[R]:
    running: dict[Future[R], int] = {}
    held: dict[int, Future[R]] = {}
    submitted = used = 0
    try:
        while True:
            while len(running) < IN_FLIGHT * pool.workers and submitted - used < AHEAD * pool.workers:
                try:
                    shard = next(shards)
                except StopIteration:
                    break
                running[pool.executor.submit(work, shard)] = submitted
                submitted += 1
            if used in held:
                yield held.pop(used).result()
                used += 1
                continue
            if not running:
                return
            done, _ = wait(running, timeout=SILENCE_S, return_when=FIRST_COMPLETED)
            if not done:
                pool.check()
            for future in done:
                held[running.pop(future)] = future
                if finished is not None and not future.cancelled() and future.exception() is None:
                    finished(future.result())
    finally:
        for future in running:
            future.cancel()
