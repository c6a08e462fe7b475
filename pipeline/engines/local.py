"""The engine of one machine: threads of this process. Decoding, hashing and inference release the GIL."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from edgeline.pipeline.engine_config import EngineConfig
from edgeline.pipeline.engines.pool import Needs, Pool
from edgeline.serve.runtime.cpu import usable_cores


@contextmanager
def local_pool(engine: EngineConfig, work: Callable[[Any], Any], needs: Needs) -> Iterator[Pool]:
    """Start `engine.workers` threads. The work runs in this process, so it has what it needs."""
    workers = engine.workers or usable_cores()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="edgeline-shard")
    try:
        yield Pool(executor=executor, workers=workers)
    finally:
        executor.shutdown(cancel_futures=True)
