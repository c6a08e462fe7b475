"""Worker threads behind one bounded queue: images in, probabilities out.

    engine = Engine()
    engine.start(ConcurrencyPlan(workers=2, threads=1))
    answer = await engine.answer(classifier, image_bytes, within_s=2.0)

A worker takes what is queued, without waiting for more, decodes it and runs the model. Only decoded images join a batch, and
the images of a batch that fails are run again one by one, so a bad image never affects the answer to another.

Admission control: an image is rejected at once if it would not be answered before its deadline, and a queued image whose
deadline has passed or whose client has disconnected is never computed.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import DeadlineError, EdgelineError, OverloadedError
from edgeline.serve.explain import region_of
from edgeline.serve.inference.job import Answer, Job

LOG = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8)
"""The batch sizes that are run: few, so that the runtime allocates for few shapes."""
SMOOTHING = 0.1
"""Weight of the newest image in the moving average of the cost of one."""
OUTLIER = 8
"""An image counts with at most this many times the average: after a pause of the process its cost predicts nothing."""
MARGIN = 0.8
"""Share of a request's time that the expected wait may fill: of images that only just fit, many would miss their deadline, and
the work on them would be lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcurrencyPlan:
    """How the cores are used."""

    workers: int
    """Threads that decode and run the model."""
    threads: int
    """Threads of the runtime in one run of the model."""
    batch: int = 1
    """Maximum images of one run; 1 if batches do not help."""


@dataclass(slots=True)
class EngineStats:
    """What an engine has done since it started. Counters only increase."""

    rejected: int = 0
    """Images that were not admitted."""
    expired: int = 0
    """Images whose deadline passed."""
    abandoned: int = 0
    """Cancelled images that no worker looked at."""
    runs: int = 0
    retried: int = 0
    """Images that were run again alone, because their batch failed."""
    images: int = 0
    cost_s: float = 0.0
    """Moving average of a worker's time for one image; 0 before the first."""


class Engine:
    """Owns the worker threads. Its methods may only be called on one event loop, except `start` and `close`.

    Args:
        queue_limit: images that may be queued.
        on_answer: called with every answer in a worker's thread, before the answer is delivered.
    """

    def __init__(self, *, queue_limit: int = 64, on_answer: Callable[[Job, Answer], None] | None = None) -> None:
        self.plan = ConcurrencyPlan(workers=1, threads=1)
        self.queue_limit = queue_limit
        self._on_answer = on_answer
        self.stats = EngineStats()
        self.in_flight = 0
        self._pending: dict[Job, None] = {}
        """Jobs that are neither answered nor cancelled, in order of arrival."""
        self._expiry_timer: asyncio.TimerHandle | None = None
        """Fires at the earliest deadline or before. One for all jobs: nearly all are answered long before theirs."""
        self._queue: deque[Job] = deque()
        self._mutex = threading.Lock()
        self._idle: list[threading.Lock] = []
        """A lock for each idle worker, which waits for it. The last to become idle is woken first: its caches are warm."""
        self.closing = False
        self._threads: list[threading.Thread] = []

    def start(self, plan: ConcurrencyPlan) -> None:
        """Start the workers. Images that were admitted before stay queued until then."""
        self.plan = plan
        for index in range(plan.workers):
            thread = threading.Thread(target=self._work, name=f"edgeline-run-{index}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self, timeout_s: float) -> bool:
        """Admit no more images, and wait for those that were admitted.

        Returns:
            Whether every worker ended in time. One inside the decoder or the runtime cannot be interrupted.
        """
        with self._mutex:
            self.closing = True
            while self._idle:
                self._idle.pop().release()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._queue)

    @property
    def idle_workers(self) -> int:
        """Workers that wait for an image."""
        return len(self._idle)

    def full(self, within_s: float) -> bool:
        """Whether an image that arrived now would miss its deadline.

        While a worker is free, the image is admitted whatever the expected cost is: after a pause of the whole machine, for
        example, the estimate is wrong, and only a new measurement corrects it.
        """
        if len(self._queue) >= self.queue_limit:
            return True
        return self.in_flight >= self.plan.workers and self.wait_s() > MARGIN * within_s

    def wait_s(self) -> float:
        """Expected seconds until a new image would be answered, from the average cost of an image."""
        return (self.in_flight / self.plan.workers + 1) * self.stats.cost_s

    async def answer(
        self, classifier: Classifier, item: bytes | np.ndarray, within_s: float, *, explain: bool = False
    ) -> Answer:
        """Answer one image.

        Args:
            classifier: used even if it is replaced by a newer version meanwhile.
            item: an encoded image, or uint8 (H, W, 3) pixels of the model's resolution.
            within_s: seconds from now until the deadline.
            explain: whether to compute class activation maps; the classifier must support them.

        Raises:
            OverloadedError: it would miss its deadline, so it was not admitted.
            DeadlineError: it was admitted, and missed its deadline.
            ImageError: the item is not a valid image.
            ArtifactError: the model returned a number that is not finite.
        """
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def done(outcome: Answer | Exception) -> None:
            if answered.done():
                return
            if isinstance(outcome, Answer):
                answered.set_result(outcome)
            else:
                answered.set_exception(outcome)

        job = self.submit(classifier, item, within_s, done, explain=explain)
        del item
        try:
            return await answered
        finally:
            self.cancel(job)

    def submit(
        self,
        classifier: Classifier,
        item: bytes | np.ndarray,
        within_s: float,
        done: Callable[[Answer | Exception], None],
        *,
        explain: bool = False,
    ) -> Job:
        """Admit one image, and call `done` with what `answer` would return or raise.

        Raises:
            OverloadedError: it would miss its deadline, so it was not admitted.
        """
        if self.full(within_s):
            self.stats.rejected += 1
            raise OverloadedError(retry_after_s=self.wait_s())
        now = time.monotonic()
        job = Job(classifier, item, asyncio.get_running_loop(), done, now, now + within_s, explain)
        with self._mutex:
            if self.closing:
                self.stats.rejected += 1
                raise OverloadedError(retry_after_s=1.0)
            self._queue.append(job)
            if self._idle:
                self._idle.pop().release()
        self.in_flight += 1
        self._pending[job] = None
        if self._expiry_timer is None or self._expiry_timer.when() > job.loop.time() + within_s:
            self._schedule_expiry(job.loop, within_s)
        return job

    def cancel(self, job: Job) -> None:
        """Give up a job that has not been answered: `done` is not called. Does nothing for any other job."""
        if job not in self._pending:
            return
        del self._pending[job]
        self.in_flight -= 1
        with self._mutex:
            if job.started_at is None:
                job.cancelled, job.item = True, b""  # frees the image's memory before a worker reaches it

    def _schedule_expiry(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        self._expiry_timer = loop.call_later(seconds, self._expire_due)

    def _expire_due(self) -> None:
        """Fail the jobs whose deadline has passed, and set the timer for the next deadline."""
        self._expiry_timer = None
        now = time.monotonic()
        for job in [job for job in self._pending if job.deadline <= now]:
            self.stats.expired += 1
            self.cancel(job)
            job.done(DeadlineError(started=job.started_at is not None))
        if self._pending:
            first = min(self._pending, key=lambda job: job.deadline)
            self._schedule_expiry(first.loop, max(0.0, first.deadline - now))

    def _deliver(self, job: Job) -> None:
        """On the event loop: hand over a job's outcome, unless it was cancelled."""
        if job in self._pending:
            del self._pending[job]
            self.in_flight -= 1
            assert job.outcome is not None
            job.done(job.outcome)

    # --- worker threads -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        wake_up = threading.Lock()
        wake_up.acquire()
        while self._process_next(wake_up):
            pass

    def _process_next(self, wake_up: threading.Lock) -> bool:
        """Take and process one batch; in a frame of its own, so that an idle worker keeps no image and no model alive."""
        jobs = self._next_batch(wake_up)
        try:
            self._process(jobs)
        except BaseException as error:  # the edge of this thread: a bug here must not leave clients waiting
            LOG.exception("a worker failed")
            for job in jobs:
                if job.outcome is None:
                    self._finish(job, EdgelineError(f"a worker failed: {type(error).__name__}", code="internal_error"))
        return bool(jobs)

    def _next_batch(self, wake_up: threading.Lock) -> list[Job]:
        """Wait for the next jobs of one model that are not cancelled; none when the engine closes."""
        while True:
            with self._mutex:
                jobs: list[Job] = []
                limit = max(size for size in BATCHES if size <= max(1, min(len(self._queue), self.plan.batch)))
                while self._queue and len(jobs) < limit:
                    if jobs and not _fits_batch(self._queue[0], jobs):
                        break
                    job = self._queue.popleft()
                    if job.cancelled:
                        self.stats.abandoned += 1
                    else:
                        jobs.append(job)
                if jobs:
                    now = time.monotonic()
                    for job in jobs:
                        job.started_at = now
                    return jobs
                if self.closing:
                    return []
                self._idle.append(wake_up)
            wake_up.acquire()

    def _process(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        begun = time.perf_counter()
        decoded = [(job, pixels_HW3) for job in jobs if (pixels_HW3 := self._decode(job)) is not None]
        if decoded:
            self._infer(decoded)
        cost_s = (time.perf_counter() - begun) / len(jobs)
        stats = self.stats
        if stats.cost_s == 0:
            stats.cost_s = cost_s
        else:
            stats.cost_s += SMOOTHING * (min(cost_s, OUTLIER * stats.cost_s) - stats.cost_s)

    def _decode(self, job: Job) -> np.ndarray | None:
        if isinstance(job.item, np.ndarray):
            return job.item
        begun = time.perf_counter()
        try:
            pixels_HW3 = job.classifier.pixels(job.item)
            if job.explain:
                job.region = region_of(job.item, job.classifier.manifest.preprocess)
        except Exception as error:
            self._finish(job, _without_traceback(error))
            return None
        job.decode_s = time.perf_counter() - begun
        return pixels_HW3

    def _infer(self, decoded: list[tuple[Job, np.ndarray]]) -> None:
        begun = time.perf_counter()
        first, first_pixels_HW3 = decoded[0]
        try:
            pixels_NHW3 = first_pixels_HW3[None] if len(decoded) == 1 else np.stack([pixels_HW3 for _, pixels_HW3 in decoded])
            outputs = first.classifier.run(pixels_NHW3, explain=first.explain)
        except Exception as error:
            if len(decoded) > 1:
                self.stats.retried += len(decoded)
                for each in decoded:
                    self._infer([each])
                return
            self._finish(first, _without_traceback(error))
            return
        infer_s = time.perf_counter() - begun
        self.stats.runs += 1
        for row, (job, pixels_HW3) in enumerate(decoded):
            assert job.started_at is not None
            answer = Answer(
                probabilities_K=outputs.probabilities_NK[row],
                logits_K=outputs.logits_NK[row],
                queue_s=job.started_at - job.queued_at,
                decode_s=job.decode_s,
                infer_s=infer_s,
                batch=len(decoded),
                first=row == 0,
                pixels_HW3=pixels_HW3,
                embedding_C=None if outputs.embedding_NC is None else outputs.embedding_NC[row],
                evidence_Khw=None if outputs.evidence_NKhw is None else outputs.evidence_NKhw[row],
                region=job.region,
            )
            self._finish(job, answer)

    def _finish(self, job: Job, outcome: Answer | Exception) -> None:
        job.outcome = outcome
        self.stats.images += 1
        if self._on_answer is not None and isinstance(outcome, Answer):
            try:
                self._on_answer(job, outcome)
            except Exception:  # statistics must not cost an answer
                LOG.exception("an answer could not be recorded")
        try:
            job.loop.call_soon_threadsafe(self._deliver, job)
        except RuntimeError:  # the event loop is closed: the server has ended its grace period
            self.stats.abandoned += 1


def _fits_batch(job: Job, jobs: list[Job]) -> bool:
    """Whether a job can join a batch: the same outputs of the same model, and the batch is not full."""
    first = jobs[0]
    if job.classifier is not first.classifier or job.explain is not first.explain:
        return False
    return len(jobs) < first.classifier.variant.max_batch


def _without_traceback(error: Exception) -> Exception:
    """An error without its frames, which would keep the image alive until the garbage collector runs."""
    return error.with_traceback(None) if isinstance(error, EdgelineError) else error
