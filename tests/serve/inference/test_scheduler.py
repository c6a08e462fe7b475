"""The worker threads: isolation, admission, deadlines, batches."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.serve.classifier import Classifier, Outputs
from edgeline.serve.errors import ArtifactError, DeadlineError, ImageError, OverloadedError
from edgeline.serve.inference.job import Answer
from edgeline.serve.inference.scheduler import ConcurrencyPlan, Engine

WAIT_S = 20.0


@pytest.fixture(scope="module")
def classifier(artifact_template: Path) -> Classifier:
    return Classifier.open(artifact_template, threads=1)


@pytest.fixture(scope="module")
def photos(artifact_template: Path) -> list[bytes]:
    return [(artifact_template / "golden" / f"{index}.jpg").read_bytes() for index in range(4)]


class Blocked(Classifier):
    """Decodes nothing until `unblock` is set; releases `begun` when a decode starts."""

    begun: threading.Semaphore
    unblock: threading.Event
    poison: bytes = b""
    sizes: list[int]

    def pixels(self, image: bytes) -> np.ndarray:
        self.begun.release()
        assert self.unblock.wait(WAIT_S)
        return super().pixels(image)

    def run(self, pixels_NHW3: np.ndarray, *, explain: bool = False) -> Outputs:
        self.sizes.append(len(pixels_NHW3))
        if self.poison and any(
            np.array_equal(pixels_HW3, super(Blocked, self).pixels(self.poison)) for pixels_HW3 in pixels_NHW3
        ):
            raise ArtifactError("not finite", code="model_output_not_finite")
        return super().run(pixels_NHW3, explain=explain)


@pytest.fixture
def blocked(artifact_template: Path) -> Iterator[Blocked]:
    Blocked.begun, Blocked.unblock, Blocked.sizes = threading.Semaphore(0), threading.Event(), []
    classifier = Blocked.open(artifact_template, threads=1, verify=False)
    yield classifier
    classifier.unblock.set()


def run(plan: ConcurrencyPlan, scenario: Callable[[Engine], Coroutine[Any, Any, None]], **options: Any) -> Engine:
    """Run a scenario on an event loop with a started engine."""
    engine = Engine(**options)

    async def main() -> None:
        engine.start(plan)
        await asyncio.wait_for(scenario(engine), WAIT_S)

    try:
        asyncio.run(main())
    finally:
        assert engine.close(WAIT_S)
    return engine


async def begun(classifier: Blocked, times: int = 1) -> None:
    for _ in range(times):
        assert await asyncio.to_thread(classifier.begun.acquire, timeout=WAIT_S)


async def enqueue(engine: Engine, classifier: Classifier, image: Any, within_s: float = WAIT_S) -> "asyncio.Task[Answer]":
    """Request an answer, and return when the image is queued."""
    task = asyncio.create_task(engine.answer(classifier, image, within_s))
    await asyncio.sleep(0)
    return task


ONE = ConcurrencyPlan(workers=1, threads=1)
BATCHES_OF_8 = ConcurrencyPlan(workers=1, threads=1, batch=8)


def test_an_answer_equals_the_outputs_of_the_classifier(classifier: Classifier, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        for photo in photos:
            answer = await engine.answer(classifier, photo, WAIT_S)
            probabilities_NK, logits_NK = classifier.answer(classifier.pixels(photo)[None])
            np.testing.assert_array_equal(answer.probabilities_K, probabilities_NK[0])
            np.testing.assert_array_equal(answer.logits_K, logits_NK[0])
            assert answer.queue_s >= 0
            assert answer.decode_s > 0
            assert answer.infer_s > 0

    assert run(ConcurrencyPlan(workers=2, threads=1), scenario).stats.images == 4


def test_pixels_get_the_answer_of_the_image_they_were_decoded_from(classifier: Classifier, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        image = await engine.answer(classifier, photos[0], WAIT_S)
        pixels = await engine.answer(classifier, classifier.pixels(photos[0]), WAIT_S)
        np.testing.assert_array_equal(image.probabilities_K, pixels.probabilities_K)

    run(ONE, scenario)


def test_queued_images_are_batched_without_waiting_for_more(blocked: Blocked, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        first = await enqueue(engine, blocked, photos[0])
        await begun(blocked)
        others = [await enqueue(engine, blocked, photo) for photo in photos * 3]
        blocked.unblock.set()
        answers = await asyncio.gather(first, *others)
        assert [answer.batch for answer in answers] == [1] + [4] * 12  # the largest batch that the artifact was verified with
        for answer, photo in zip(answers[1:], photos * 3, strict=True):
            alone = await engine.answer(blocked, photo, WAIT_S)
            np.testing.assert_allclose(answer.probabilities_K, alone.probabilities_K, atol=1e-6)

    run(BATCHES_OF_8, scenario)
    assert blocked.sizes[:4] == [1, 4, 4, 4]


def test_a_batch_has_images_of_one_model_only(blocked: Blocked, classifier: Classifier, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        first = await enqueue(engine, blocked, photos[0])
        await begun(blocked)
        mixed = [await enqueue(engine, model, photos[1]) for model in (blocked, blocked, classifier, blocked)]
        blocked.unblock.set()
        answers = await asyncio.gather(first, *mixed)
        assert [answer.batch for answer in answers] == [1, 2, 2, 1, 1]

    run(BATCHES_OF_8, scenario)


def test_one_bad_image_in_a_batch_fails_alone(blocked: Blocked, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        first = await enqueue(engine, blocked, photos[0])
        await begun(blocked)
        images = [photos[0], photos[1], blocked.poison, photos[3], photos[0], photos[1], photos[3], photos[0]]
        tasks = [await enqueue(engine, blocked, image) for image in images]
        blocked.unblock.set()
        await first
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Answer, Answer, ArtifactError] + [Answer] * 5
        for answer, image in zip(answers, images, strict=True):
            if isinstance(answer, Answer):
                alone = await engine.answer(blocked, image, WAIT_S)
                np.testing.assert_array_equal(answer.probabilities_K, alone.probabilities_K)
        assert engine.stats.retried == 4

    Blocked.poison = photos[2]
    try:
        run(BATCHES_OF_8, scenario)
    finally:
        Blocked.poison = b""


def test_bytes_that_are_not_an_image_never_join_a_batch(blocked: Blocked, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        first = await enqueue(engine, blocked, photos[0])
        await begun(blocked)
        tasks = [await enqueue(engine, blocked, image) for image in (photos[1], b"text", photos[2], b"")]
        blocked.unblock.set()
        await first
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Answer, ImageError, Answer, ImageError]
        assert engine.stats.retried == 0

    run(BATCHES_OF_8, scenario)
    assert blocked.sizes == [1, 2]


def test_a_full_queue_rejects_images(blocked: Blocked, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        tasks = [await enqueue(engine, blocked, photos[0])]
        await begun(blocked)
        tasks += [await enqueue(engine, blocked, photos[0]) for _ in range(3)]
        assert engine.full(WAIT_S)
        with pytest.raises(OverloadedError) as caught:
            await engine.answer(blocked, photos[0], WAIT_S)
        assert caught.value.retry_after_s >= 0
        blocked.unblock.set()
        assert len(await asyncio.gather(*tasks)) == 4
        assert not engine.full(WAIT_S)
        assert engine.stats.rejected == 1

    run(ONE, scenario, queue_limit=3)


def test_an_image_that_would_miss_its_deadline_is_rejected(blocked: Blocked, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        first = await enqueue(engine, blocked, photos[0])
        await begun(blocked)
        engine.stats.cost_s = 4.0  # so a new one would take 8 s, of which 0.8 of the deadline may be filled
        with pytest.raises(OverloadedError) as caught:
            await engine.answer(blocked, photos[0], 9.9)
        assert caught.value.retry_after_s == 8.0
        assert not engine.full(10.1)
        blocked.unblock.set()
        await first

    run(ONE, scenario)


def test_an_idle_engine_corrects_an_estimate_that_is_too_high(classifier: Classifier, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        engine.stats.cost_s = expected = 1e6  # for example after the machine was suspended
        for _ in range(3):
            await engine.answer(classifier, photos[0], WAIT_S)
        assert engine.stats.cost_s < 0.82 * expected  # the last one may not be counted yet

    run(ONE, scenario)


def test_an_image_whose_deadline_passes_in_the_queue_is_never_computed(blocked: Blocked, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        first = await enqueue(engine, blocked, photos[0])
        await begun(blocked)
        with pytest.raises(DeadlineError, match="before its image was processed") as late:
            await engine.answer(blocked, photos[1], 0.01)
        assert not late.value.started
        blocked.unblock.set()
        await first
        await engine.answer(blocked, photos[2], WAIT_S)
        assert engine.stats.expired == 1
        assert engine.stats.abandoned == 1

    run(ONE, scenario)
    assert blocked.sizes == [1, 1]


def test_a_deadline_that_passes_during_processing_is_reported_as_such(blocked: Blocked, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        task = await enqueue(engine, blocked, photos[0], 2.0)
        await begun(blocked)
        with pytest.raises(DeadlineError, match="while its image was processed") as late:
            await task
        assert late.value.started
        blocked.unblock.set()

    run(ONE, scenario)


def test_the_queued_images_of_a_disconnected_client_are_not_computed(blocked: Blocked, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        first = await enqueue(engine, blocked, photos[0])
        await begun(blocked)
        gone = [await enqueue(engine, blocked, photos[1]) for _ in range(5)]
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        blocked.unblock.set()
        await first
        await engine.answer(blocked, photos[2], WAIT_S)
        assert engine.stats.abandoned == 5
        assert engine.in_flight == 0

    run(ONE, scenario)
    assert blocked.sizes == [1, 1]


def test_on_answer_gets_the_image_although_its_client_disconnected(blocked: Blocked, photos: list[bytes]) -> None:
    recorded: list[object] = []

    async def scenario(engine: Engine) -> None:
        task = await enqueue(engine, blocked, photos[0])
        await begun(blocked)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        blocked.unblock.set()
        await engine.answer(blocked, photos[1], WAIT_S)

    run(ONE, scenario, on_answer=lambda job, answer: recorded.append(job.item))
    assert recorded == photos[:2]


def test_a_closing_engine_answers_the_images_it_admitted(blocked: Blocked, photos: list[bytes]) -> None:
    async def scenario() -> list[Answer]:
        engine = Engine()
        engine.start(ONE)
        tasks = [await enqueue(engine, blocked, photo) for photo in photos]
        await begun(blocked)
        closing = asyncio.create_task(asyncio.to_thread(engine.close, WAIT_S))
        while not engine.closing:
            await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError):
            await engine.answer(blocked, photos[0], WAIT_S)
        blocked.unblock.set()
        answers = await asyncio.gather(*tasks)
        assert await closing
        return answers

    assert len(asyncio.run(scenario())) == 4


def test_an_exception_in_a_worker_reaches_the_caller_and_the_worker_continues(
    classifier: Classifier, photos: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(engine: Engine) -> None:
        with pytest.raises(TypeError):
            await engine.answer(classifier, 7, WAIT_S)  # type: ignore[arg-type]
        assert (await engine.answer(classifier, photos[0], WAIT_S)).batch == 1

    run(ONE, scenario)


def test_nothing_stays_queued_or_in_flight_after_the_answers(classifier: Classifier, photos: list[bytes]) -> None:
    async def scenario(engine: Engine) -> None:
        begun_at = time.monotonic()
        for _ in range(50):
            await engine.answer(classifier, photos[0], WAIT_S)
        assert engine.waiting == engine.in_flight == 0
        assert engine.stats.cost_s < time.monotonic() - begun_at

    run(ONE, scenario)


def test_of_two_idle_workers_the_last_active_one_is_woken(artifact_template: Path, photos: list[bytes]) -> None:
    names: list[str] = []

    class Named(Classifier):
        def pixels(self, image: bytes) -> np.ndarray:
            names.append(threading.current_thread().name)
            return super().pixels(image)

    classifier = Named.open(artifact_template, threads=1, verify=False)

    async def scenario(engine: Engine) -> None:
        for _ in range(6):
            while engine.idle_workers < 2:
                await asyncio.sleep(0.001)
            await engine.answer(classifier, photos[0], WAIT_S)

    run(ConcurrencyPlan(workers=2, threads=1), scenario)
    assert len(names) == 6
    assert len(set(names)) == 1


# --- explanations ---------------------------------------------------------------------------------------------------


def test_only_images_with_the_same_outputs_are_batched(explaining_template: Path, photos: list[bytes]) -> None:
    Blocked.begun, Blocked.unblock, Blocked.sizes = threading.Semaphore(0), threading.Event(), []
    classifier = Blocked.open(explaining_template, threads=1, verify=False)

    async def scenario(engine: Engine) -> None:
        first = asyncio.ensure_future(engine.answer(classifier, photos[0], WAIT_S))
        await asyncio.to_thread(classifier.begun.acquire)
        flags = [True, True, False, False, True]
        others = [asyncio.ensure_future(engine.answer(classifier, photos[1], WAIT_S, explain=explain)) for explain in flags]
        while engine.waiting < len(flags):
            await asyncio.sleep(0)
        classifier.unblock.set()
        await first
        answers = await asyncio.gather(*others)
        assert [answer.evidence_Khw is not None for answer in answers] == flags
        assert all(np.array_equal(answer.logits_K, answers[0].logits_K) for answer in answers)
        assert answers[0].evidence_Khw is not None
        np.testing.assert_allclose(answers[0].evidence_Khw.mean((1, 2)), answers[0].logits_K, atol=1e-5)

    run(ConcurrencyPlan(workers=1, threads=1, batch=4), scenario)
    assert classifier.sizes == [1, 2, 2, 1]
