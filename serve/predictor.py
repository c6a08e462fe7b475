"""A classifier behind an event loop: loaded and proven in the background, run in a few worker threads.

    predictor = Predictor(Path("artifacts/store/digits"), Classifier.open, workers=usable_cores())
    predictor.start()                        # returns at once
    predictor.classifier                     # None until the golden samples have passed
    await predictor.run(function, *args)     # decoding and running belong in here, never on the event loop

Invariant: `classifier` is set only by an artifact that was found whole and answered its golden samples on this machine. One
that fails leaves `failure` set and the process alive, so that whoever asks learns the reason.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from serve.classifier import Classifier
from serve.errors import EdgelineError

LOG = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an artifact does not answer, fit for clients: its place on this machine is not in it."""

    code: str
    reason: str


class Predictor:
    """Loads one artifact and lends its classifier to worker threads."""

    def __init__(self, artifact: Path, open_classifier: Callable[[Path], Classifier], *, workers: int) -> None:
        self.artifact = artifact.absolute()
        self.classifier: Classifier | None = None
        self.failure: Failure | None = None
        self._open = open_classifier
        self._loader = threading.Thread(target=self._load, name="edgeline-load", daemon=True)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="edgeline-predict")

    def start(self) -> None:
        """Begin to load, in a thread of its own."""
        self._loader.start()

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function in one of the worker threads; those who find all of them busy wait their turn."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def close(self, timeout_s: float) -> bool:
        """Drop what still waits for a worker, and wait for what runs.

        Returns:
            Whether everything ended in time. A thread inside a decoder or the runtime cannot be stopped from here.
        """
        closing = threading.Thread(target=self._join, name="edgeline-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        return not closing.is_alive()

    def _join(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._loader.ident is not None:
            self._loader.join()

    def _load(self) -> None:
        try:
            classifier = self._open(self.artifact)
        except EdgelineError as error:
            LOG.error("not ready: %s [%s]", error, error.code)
            self.failure = Failure(error.code, str(error).replace(str(self.artifact), self.artifact.name))
        except Exception:  # the edge of this thread: without it a bug here would look like loading for ever
            LOG.exception("not ready: loading %s failed unexpectedly", self.artifact)
            self.failure = Failure("internal_error", "the artifact could not be loaded; the server's log says more")
        else:
            LOG.info("ready: %s %d", classifier.manifest.name, classifier.manifest.version)
            self.classifier = classifier
