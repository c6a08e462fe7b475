"""Runner threads behind one bounded queue: images in, probabilities out.

    engine = Engine()
    engine.start(ConcurrencyPlan(runners=2, threads=1))
    answer = await engine.answer(classifier, image_bytes, within_s=2.0)

A runner takes what waits, never waits for more, decodes it and runs it. Only an image that was decoded can join others in a
batch, and a batch that fails is run again one by one; so an image can spoil nobody's answer but its own.

Overload is refused at the door: no more waits than can be answered in time, and what nobody waits for any more, because its
time is over or its client has gone, is not computed.

Shapes: N images, K classes, H x W the model's input. Arrays carry them as a suffix.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import DeadlineError, EdgelineError, OverloadedError
from edgeline.serve.explain import Region, region_of

LOG = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8)
"""Sizes that are run: few, so that the runtime's memory has few shapes."""
SMOOTHING = 0.1
"""Weight of the newest image in the running mean of what one costs."""
OUTLIER = 8
"""What counts of an image that cost more than so many means: one that met a pause of the process says nothing of the next."""
MARGIN = 0.8
"""Share of a request's time that may be filled by what is expected: of those that just fit, many would come too late, and what
was spent on them would be lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcurrencyPlan:
    """How the cores are used."""

    runners: int
    """Threads that decode and run."""
    threads: int
    """Threads inside the runtime for one run."""
    batch: int = 1
    """Most images of one run; 1 where batches bring nothing."""


@dataclass(slots=True)
class Answer:
    """What one image got, and what it took."""

    probabilities_K: np.ndarray
    logits_K: np.ndarray
    queue_s: float
    decode_s: float
    infer_s: float
    batch: int
    """Images of the same run."""
    first: bool
    """Whether it is the first of them, so that a run is counted once."""
    pixels_HW3: np.ndarray
    embedding_C: np.ndarray | None = None
    """Of an artifact that explains itself."""
    evidence_Khw: np.ndarray | None = None
    """Where it was asked for."""
    region: Region | None = None
    """Of an encoded image, then: what of it the model saw."""


@dataclass(eq=False, slots=True)
class Job:
    """One image on its way through."""

    classifier: Classifier
    item: bytes | np.ndarray
    """An encoded image, or uint8 (H, W, 3) pixels of the model's resolution."""
    loop: asyncio.AbstractEventLoop
    done: Callable[[Answer | Exception], None]
    """Called once, on that loop; not at all for a job that was dropped."""
    arrived: float
    due: float
    explain: bool = False
    """Whether the evidence is wanted too."""
    taken: float = 0.0
    decode_s: float = 0.0
    region: Region | None = None
    dropped: bool = False
    """Nobody waits for it any more."""
    outcome: Answer | Exception | None = None


@dataclass(slots=True)
class EngineStats:
    """What an engine has done since it started; counters only grow."""

    rejected: int = 0
    expired: int = 0
    abandoned: int = 0
    runs: int = 0
    retried: int = 0
    """Images that were run again alone, because their batch failed."""
    images: int = 0
    cost_s: float = field(default=0.0)
    """Running mean of a runner's time for one image; 0 before the first."""


class Engine:
    """Owns the runner threads. `answer`, `submit`, `drop` and `full` belong on one event loop; runners are its own."""

    def __init__(self, *, queue_limit: int = 64, on_answer: Callable[[Job, Answer], None] | None = None) -> None:
        self.plan = ConcurrencyPlan(runners=1, threads=1)
        self.queue_limit = queue_limit
        self.totals = EngineStats()
        self.in_flight = 0
        self._on_answer = on_answer
        """Called in a runner's thread for every answer."""
        self._awaited: dict[Job, None] = {}
        """What somebody waits for, in the order it came."""
        self._alarm: asyncio.TimerHandle | None = None
        """Rings when the first of them is due, or earlier. One for all: nearly every job is answered long before."""
        self._queue: deque[Job] = deque()
        self._mutex = threading.Lock()
        self._resting: list[threading.Lock] = []
        """Runners with nothing to do, by the lock that each waits for. The last to rest is woken first: its caches are warm."""
        self._closing = False
        self._runners: list[threading.Thread] = []

    def start(self, plan: ConcurrencyPlan) -> None:
        """Start the runners; before, nothing that waits is answered."""
        self.plan = plan
        for index in range(plan.runners):
            runner = threading.Thread(target=self._run, name=f"edgeline-run-{index}", daemon=True)
            self._runners.append(runner)
            runner.start()

    def close(self, timeout_s: float) -> bool:
        """Refuse what waits, let what runs end.

        Returns:
            Whether every runner ended in time. One inside a decoder or the runtime cannot be stopped from here.
        """
        with self._mutex:
            self._closing = True
            while self._resting:
                self._resting.pop().release()
        until = time.monotonic() + timeout_s
        for runner in self._runners:
            runner.join(max(0.0, until - time.monotonic()))
        return not any(runner.is_alive() for runner in self._runners)

    @property
    def waiting(self) -> int:
        """Images that no runner has taken yet."""
        return len(self._queue)

    def full(self, within_s: float) -> bool:
        """Whether an image that came now would not be answered in time.

        While a runner is free it is tried, whatever is expected: that may be wrong, after a pause of the whole machine for one,
        and only an answer mends it.
        """
        if len(self._queue) >= self.queue_limit:
            return True
        return self.in_flight >= self.plan.runners and self.wait_s() > MARGIN * within_s

    def wait_s(self) -> float:
        """How long a new image would take, as far as the last ones tell: its turn, and its own time."""
        return (self.in_flight / self.plan.runners + 1) * self.totals.cost_s

    async def answer(
        self, classifier: Classifier, item: bytes | np.ndarray, within_s: float, *, explain: bool = False
    ) -> Answer:
        """Answer one image.

        Args:
            classifier: whose answer it is; one that is replaced meanwhile still gives it.
            item: an encoded image, or uint8 (H, W, 3) pixels of the model's resolution.
            within_s: seconds from now that whoever asks is willing to wait.
            explain: whether the evidence is wanted too, of a classifier that explains itself.

        Raises:
            OverloadedError: it would not be answered in time, so it was not taken in.
            DeadlineError: it was taken in, and the time is over.
            ImageError: it is no good image.
            ArtifactError: the model gave a number that is not finite.
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
            self.drop(job)

    def submit(
        self,
        classifier: Classifier,
        item: bytes | np.ndarray,
        within_s: float,
        done: Callable[[Answer | Exception], None],
        *,
        explain: bool = False,
    ) -> Job:
        """Take in one image, as `answer` does, and have `done` told what `answer` returns or raises for it.

        Raises:
            OverloadedError: it would not be answered in time, so it was not taken in.
        """
        if self.full(within_s):
            self.totals.rejected += 1
            raise OverloadedError(retry_after_s=self.wait_s())
        now = time.monotonic()
        job = Job(classifier, item, asyncio.get_running_loop(), done, now, now + within_s, explain)
        with self._mutex:
            if self._closing:
                self.totals.rejected += 1
                raise OverloadedError(retry_after_s=1.0)
            self._queue.append(job)
            if self._resting:
                self._resting.pop().release()
        self.in_flight += 1
        self._awaited[job] = None
        if self._alarm is None or self._alarm.when() > job.loop.time() + within_s:
            self._ring_in(job.loop, within_s)
        return job

    def drop(self, job: Job) -> None:
        """Nobody waits for this job any more."""
        if job not in self._awaited:
            return
        del self._awaited[job]
        self.in_flight -= 1
        with self._mutex:
            if job.taken == 0:
                job.dropped, job.item = True, b""  # its bytes are not to wait for a runner

    def _ring_in(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_later(seconds, self._ring)

    def _ring(self) -> None:
        """Give up what is due, and set the alarm for what is due next."""
        self._alarm = None
        now = time.monotonic()
        for job in [job for job in self._awaited if job.due <= now]:
            self.totals.expired += 1
            self.drop(job)
            job.done(DeadlineError(started=job.taken > 0))
        if self._awaited:
            first = min(self._awaited, key=lambda job: job.due)
            self._ring_in(first.loop, max(0.0, first.due - now))

    def _settle(self, job: Job) -> None:
        """On the event loop: hand over what a runner found, if somebody still waits for it."""
        if job in self._awaited:
            del self._awaited[job]
            self.in_flight -= 1
            assert job.outcome is not None
            job.done(job.outcome)

    # --- runners --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        rest = threading.Lock()
        rest.acquire()
        while self._run_once(rest):
            pass

    def _run_once(self, rest: threading.Lock) -> bool:
        """Take and serve what waits; in a frame of its own, so that a runner at rest holds no image and no model."""
        jobs = self._take(rest)
        try:
            self._serve(jobs)
        except BaseException as error:  # the edge of this thread: a bug here must not leave clients waiting
            LOG.exception("a runner failed")
            for job in jobs:
                if job.outcome is None:
                    self._finish(job, EdgelineError(f"a runner failed: {type(error).__name__}", code="internal_error"))
        return bool(jobs)

    def _take(self, rest: threading.Lock) -> list[Job]:
        """The next images of one model that somebody still waits for; none when the engine closes."""
        while True:
            with self._mutex:
                jobs: list[Job] = []
                most = max(size for size in BATCHES if size <= max(1, min(len(self._queue), self.plan.batch)))
                while self._queue and len(jobs) < most:
                    if jobs and not _belongs(self._queue[0], jobs):
                        break
                    job = self._queue.popleft()
                    if job.dropped:
                        self.totals.abandoned += 1
                    else:
                        jobs.append(job)
                if jobs:
                    now = time.monotonic()
                    for job in jobs:
                        job.taken = now
                    return jobs
                if self._closing:
                    return []
                self._resting.append(rest)
            rest.acquire()

    def _serve(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        begun = time.perf_counter()
        ready = [(job, pixels_HW3) for job in jobs if (pixels_HW3 := self._decode(job)) is not None]
        if ready:
            self._infer(ready)
        cost_s = (time.perf_counter() - begun) / len(jobs)
        totals = self.totals
        if totals.cost_s == 0:
            totals.cost_s = cost_s
        else:
            totals.cost_s += SMOOTHING * (min(cost_s, OUTLIER * totals.cost_s) - totals.cost_s)

    def _decode(self, job: Job) -> np.ndarray | None:
        if isinstance(job.item, np.ndarray):
            return job.item
        begun = time.perf_counter()
        try:
            pixels_HW3 = job.classifier.pixels(job.item)
            if job.explain:
                job.region = region_of(job.item, job.classifier.manifest.preprocess)
        except Exception as error:
            self._finish(job, _bare(error))
            return None
        job.decode_s = time.perf_counter() - begun
        return pixels_HW3

    def _infer(self, ready: list[tuple[Job, np.ndarray]]) -> None:
        begun = time.perf_counter()
        try:
            pixels_NHW3 = ready[0][1][None] if len(ready) == 1 else np.stack([pixels_HW3 for _, pixels_HW3 in ready])
            outputs = ready[0][0].classifier.run(pixels_NHW3, explain=ready[0][0].explain)
        except Exception as error:
            if len(ready) > 1:
                self.totals.retried += len(ready)
                for each in ready:
                    self._infer([each])
                return
            self._finish(ready[0][0], _bare(error))
            return
        infer_s = time.perf_counter() - begun
        self.totals.runs += 1
        for row, (job, pixels_HW3) in enumerate(ready):
            queue_s = job.taken - job.arrived
            answer = Answer(
                outputs.probabilities_NK[row],
                outputs.logits_NK[row],
                queue_s,
                job.decode_s,
                infer_s,
                len(ready),
                row == 0,
                pixels_HW3,
                None if outputs.embedding_NC is None else outputs.embedding_NC[row],
                None if outputs.evidence_NKhw is None else outputs.evidence_NKhw[row],
                job.region,
            )
            self._finish(job, answer)

    def _finish(self, job: Job, outcome: Answer | Exception) -> None:
        job.outcome = outcome
        self.totals.images += 1
        if self._on_answer is not None and isinstance(outcome, Answer):
            try:
                self._on_answer(job, outcome)
            except Exception:  # statistics must not cost an answer
                LOG.exception("an answer could not be taken note of")
        try:
            job.loop.call_soon_threadsafe(self._settle, job)
        except RuntimeError:  # the event loop is closed: the server has ended its grace period
            self.totals.abandoned += 1


def _belongs(job: Job, jobs: list[Job]) -> bool:
    """Whether a job may be run together with others: the same outputs of the same model, and room for it."""
    first = jobs[0]
    if job.classifier is not first.classifier or job.explain is not first.explain:
        return False
    return len(jobs) < first.classifier.variant.max_batch


def _bare(error: Exception) -> Exception:
    """An error without the frames that it came through: they hold the image, and would until the collector runs."""
    return error.with_traceback(None) if isinstance(error, EdgelineError) else error
