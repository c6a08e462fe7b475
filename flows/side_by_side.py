"""Run steps that do not depend on each other side by side, in threads of one process.

At most two run at once: one in the calling thread, where an interrupt arrives, and one in another. PyTorch, ONNX Runtime and
NumPy compute without Python's lock. Each step computes with the number of threads that it has alone, so its result has the same
bits; their waiting threads sleep, so two steps on the same cores do not slow each other down by spinning.
"""

import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from typing import TypeVar

from edgeline.pipeline.progress import STOP, Stopped

Result = TypeVar("Result")


def run_side_by_side(depends: Mapping[str, Collection[str]], call: Callable[[str], Result]) -> dict[str, Result]:
    """Call every step once, after those that it depends on.

    If one fails or is interrupted, the other ends at its next item of progress, and no further one starts.

    Args:
        depends: names of the steps, in order, each with the names that it depends on.
        call: executes a step.

    Returns:
        The result of each, in the same order.

    Raises:
        BaseException: the first one that a step has raised.
    """
    results: dict[str, Result] = {}
    waiting = dict(depends)
    beside: dict[str, Future[Result]] = {}
    stop = threading.Event()

    def call_beside(name: str) -> Result:
        try:
            return call(name)
        except BaseException:
            stop.set()
            raise

    outer = STOP.set(stop)
    try:
        with ThreadPoolExecutor(1) as pool:
            try:
                while waiting or beside:
                    ready = [name for name, needed in waiting.items() if results.keys() >= set(needed)]
                    # Of two steps, the later one has more steps after it: the calling thread executes it.
                    for name in ready[:-1]:
                        beside[name] = pool.submit(copy_context().run, call_beside, name)
                    for name in ready[-1:]:
                        with suppress(Stopped):  # then the step beside it has failed, and its error is raised below
                            results[name] = call(name)
                    waiting = {name: needed for name, needed in waiting.items() if name not in ready}
                    if not ready:
                        assert beside, f"no order of the steps {', '.join(waiting)}"
                        wait(beside.values(), return_when=FIRST_COMPLETED)
                    for name in [name for name, future in beside.items() if future.done()]:
                        results[name] = beside.pop(name).result()
            except BaseException:
                stop.set()
                for future in beside.values():
                    future.cancel()
                raise
    finally:
        STOP.reset(outer)
    return {name: results[name] for name in depends}
