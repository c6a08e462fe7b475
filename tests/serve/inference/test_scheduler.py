"""The runners: isolation, admission, deadlines, batches."""

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
from edgeline.serve.inference.scheduler import Answer, ConcurrencyPlan, Engine

WAIT_S = 20.0


@pytest.fixture(scope="module")
def classifier(artifact_template: Path) -> Classifier:
    return Classifier.open(artifact_template, threads=1)


@pytest.fixture(scope="module")
def photos(artifact_template: Path) -> list[bytes]:
    return [(artifact_template / "golden" / f"{index}.jpg").read_bytes() for index in range(4)]


class Held(Classifier):
    """Decodes nothing until it is let go; tells when it was asked to."""

    begun: threading.Semaphore
    go_on: threading.Event
    poison: bytes = b""
    sizes: list[int]

    def pixels(self, image: bytes) -> np.ndarray:
        self.begun.release()
        assert self.go_on.wait(WAIT_S)
        return super().pixels(image)

    def run(self, pixels_NHW3: np.ndarray, *, explain: bool = False) -> Outputs:
        self.sizes.append(len(pixels_NHW3))
        if self.poison and any(np.array_equal(pixels_HW3, super(Held, self).pixels(self.poison)) for pixels_HW3 in pixels_NHW3):
            raise ArtifactError("no number", code="model_output_not_finite")
        return super().run(pixels_NHW3, explain=explain)


@pytest.fixture
def held(artifact_template: Path) -> Iterator[Held]:
    Held.begun, Held.go_on, Held.sizes = threading.Semaphore(0), threading.Event(), []
    classifier = Held.open(artifact_template, threads=1, prove=False)
    yield classifier
    classifier.go_on.set()


def run(plan: ConcurrencyPlan, story: Callable[[Engine], Coroutine[Any, Any, None]], **options: Any) -> Engine:
    """Run a story on an event loop with a started engine."""
    engine = Engine(**options)

    async def told() -> None:
        engine.start(plan)
        await asyncio.wait_for(story(engine), WAIT_S)

    try:
        asyncio.run(told())
    finally:
        assert engine.close(WAIT_S)
    return engine


async def begun(classifier: Held, times: int = 1) -> None:
    for _ in range(times):
        assert await asyncio.to_thread(classifier.begun.acquire, timeout=WAIT_S)


async def ask(engine: Engine, classifier: Classifier, image: Any, within_s: float = WAIT_S) -> "asyncio.Task[Answer]":
    """Ask, and return when the question is in the queue."""
    task = asyncio.create_task(engine.answer(classifier, image, within_s))
    await asyncio.sleep(0)
    return task


ONE = ConcurrencyPlan(runners=1, threads=1)
BATCHES_OF_8 = ConcurrencyPlan(runners=1, threads=1, batch=8)


def test_an_answer_is_what_the_classifier_gives(classifier: Classifier, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        for photo in photos:
            answer = await engine.answer(classifier, photo, WAIT_S)
            probabilities_NK, logits_NK = classifier.answer(classifier.pixels(photo)[None])
            np.testing.assert_array_equal(answer.probabilities_K, probabilities_NK[0])
            np.testing.assert_array_equal(answer.logits_K, logits_NK[0])
            assert answer.queue_s >= 0
            assert answer.decode_s > 0
            assert answer.infer_s > 0

    assert run(ConcurrencyPlan(runners=2, threads=1), story).totals.images == 4


def test_pixels_are_answered_as_the_image_they_come_from(classifier: Classifier, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        image = await engine.answer(classifier, photos[0], WAIT_S)
        pixels = await engine.answer(classifier, classifier.pixels(photos[0]), WAIT_S)
        np.testing.assert_array_equal(image.probabilities_K, pixels.probabilities_K)

    run(ONE, story)


def test_what_waits_is_run_together_and_nothing_waits_for_more(held: Held, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        first = await ask(engine, held, photos[0])
        await begun(held)
        others = [await ask(engine, held, photo) for photo in photos * 3]
        held.go_on.set()
        answers = await asyncio.gather(first, *others)
        assert [answer.batch for answer in answers] == [1] + [4] * 12  # as many as the artifact was proven with
        for answer, photo in zip(answers[1:], photos * 3, strict=True):
            alone = await engine.answer(held, photo, WAIT_S)
            np.testing.assert_allclose(answer.probabilities_K, alone.probabilities_K, atol=1e-6)

    run(BATCHES_OF_8, story)
    assert held.sizes[:4] == [1, 4, 4, 4]


def test_a_batch_holds_images_of_one_model_only(held: Held, classifier: Classifier, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        first = await ask(engine, held, photos[0])
        await begun(held)
        mixed = [await ask(engine, model, photos[1]) for model in (held, held, classifier, held)]
        held.go_on.set()
        answers = await asyncio.gather(first, *mixed)
        assert [answer.batch for answer in answers] == [1, 2, 2, 1, 1]

    run(BATCHES_OF_8, story)


def test_of_a_batch_with_one_poisonous_image_exactly_that_one_fails(held: Held, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        first = await ask(engine, held, photos[0])
        await begun(held)
        images = [photos[0], photos[1], held.poison, photos[3], photos[0], photos[1], photos[3], photos[0]]
        asked = [await ask(engine, held, image) for image in images]
        held.go_on.set()
        await first
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Answer, Answer, ArtifactError] + [Answer] * 5
        for answer, image in zip(answers, images, strict=True):
            if isinstance(answer, Answer):
                alone = await engine.answer(held, image, WAIT_S)
                np.testing.assert_array_equal(answer.probabilities_K, alone.probabilities_K)
        assert engine.totals.retried == 4

    Held.poison = photos[2]
    try:
        run(BATCHES_OF_8, story)
    finally:
        Held.poison = b""


def test_an_image_that_is_none_never_joins_a_batch(held: Held, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        first = await ask(engine, held, photos[0])
        await begun(held)
        asked = [await ask(engine, held, image) for image in (photos[1], b"text", photos[2], b"")]
        held.go_on.set()
        await first
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Answer, ImageError, Answer, ImageError]
        assert engine.totals.retried == 0

    run(BATCHES_OF_8, story)
    assert held.sizes == [1, 2]


def test_a_full_queue_takes_nothing_in(held: Held, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        asked = [await ask(engine, held, photos[0])]
        await begun(held)
        asked += [await ask(engine, held, photos[0]) for _ in range(3)]
        assert engine.full(WAIT_S)
        with pytest.raises(OverloadedError) as refusal:
            await engine.answer(held, photos[0], WAIT_S)
        assert refusal.value.retry_after_s >= 0
        held.go_on.set()
        assert len(await asyncio.gather(*asked)) == 4
        assert not engine.full(WAIT_S)
        assert engine.totals.rejected == 1

    run(ONE, story, queue_limit=3)


def test_what_could_not_be_answered_in_time_is_not_taken_in(held: Held, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        first = await ask(engine, held, photos[0])
        await begun(held)
        engine.totals.cost_s = 4.0  # so a new one would take 8 s, of which 0.8 of the deadline may be filled
        with pytest.raises(OverloadedError) as refusal:
            await engine.answer(held, photos[0], 9.9)
        assert refusal.value.retry_after_s == 8.0
        assert not engine.full(10.1)
        held.go_on.set()
        await first

    run(ONE, story)


def test_an_engine_that_expects_too_much_tries_all_the_same_and_learns(classifier: Classifier, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        engine.totals.cost_s = expected = 1e6  # as after a night in which the machine slept
        for _ in range(3):
            await engine.answer(classifier, photos[0], WAIT_S)
        assert engine.totals.cost_s < 0.82 * expected  # the last one may not be counted yet

    run(ONE, story)


def test_a_request_whose_time_is_over_is_told_so_and_never_computed(held: Held, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        first = await ask(engine, held, photos[0])
        await begun(held)
        with pytest.raises(DeadlineError, match="before its image was looked at") as late:
            await engine.answer(held, photos[1], 0.01)
        assert not late.value.started
        held.go_on.set()
        await first
        await engine.answer(held, photos[2], WAIT_S)
        assert engine.totals.expired == 1
        assert engine.totals.abandoned == 1

    run(ONE, story)
    assert held.sizes == [1, 1]


def test_a_request_whose_time_is_over_while_it_is_worked_on_is_told_that(held: Held, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        task = await ask(engine, held, photos[0], 2.0)
        await begun(held)
        with pytest.raises(DeadlineError, match="while its image was worked on") as late:
            await task
        assert late.value.started
        held.go_on.set()

    run(ONE, story)


def test_the_work_of_a_client_that_has_gone_is_dropped(held: Held, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        first = await ask(engine, held, photos[0])
        await begun(held)
        gone = [await ask(engine, held, photos[1]) for _ in range(5)]
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        held.go_on.set()
        await first
        await engine.answer(held, photos[2], WAIT_S)
        assert engine.totals.abandoned == 5
        assert engine.in_flight == 0

    run(ONE, story)
    assert held.sizes == [1, 1]


def test_who_takes_note_of_an_answer_has_the_image_though_its_client_left_meanwhile(held: Held, photos: list[bytes]) -> None:
    noted: list[object] = []

    async def story(engine: Engine) -> None:
        task = await ask(engine, held, photos[0])
        await begun(held)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        held.go_on.set()
        await engine.answer(held, photos[1], WAIT_S)

    run(ONE, story, on_answer=lambda job, answer: noted.append(job.item))
    assert noted == photos[:2]


def test_an_engine_that_closes_answers_what_it_has_taken_in(held: Held, photos: list[bytes]) -> None:
    async def story() -> list[Answer]:
        engine = Engine()
        engine.start(ONE)
        asked = [await ask(engine, held, photo) for photo in photos]
        await begun(held)
        closing = asyncio.create_task(asyncio.to_thread(engine.close, WAIT_S))
        while not engine._closing:
            await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError):
            await engine.answer(held, photos[0], WAIT_S)
        held.go_on.set()
        answers = await asyncio.gather(*asked)
        assert await closing
        return answers

    assert len(asyncio.run(story())) == 4


def test_a_bug_in_a_runner_reaches_the_one_who_asked_and_the_runner_goes_on(
    classifier: Classifier, photos: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async def story(engine: Engine) -> None:
        with pytest.raises(TypeError):
            await engine.answer(classifier, 7, WAIT_S)  # type: ignore[arg-type]
        assert (await engine.answer(classifier, photos[0], WAIT_S)).batch == 1

    run(ONE, story)


def test_no_memory_is_kept_for_what_was_answered(classifier: Classifier, photos: list[bytes]) -> None:
    async def story(engine: Engine) -> None:
        begun_at = time.monotonic()
        for _ in range(50):
            await engine.answer(classifier, photos[0], WAIT_S)
        assert engine.waiting == engine.in_flight == 0
        assert engine.totals.cost_s < time.monotonic() - begun_at

    run(ONE, story)


def test_of_two_runners_at_rest_the_one_with_warm_caches_is_woken(artifact_template: Path, photos: list[bytes]) -> None:
    names: list[str] = []

    class Named(Classifier):
        def pixels(self, image: bytes) -> np.ndarray:
            names.append(threading.current_thread().name)
            return super().pixels(image)

    classifier = Named.open(artifact_template, threads=1, prove=False)

    async def story(engine: Engine) -> None:
        for _ in range(6):
            while len(engine._resting) < 2:
                await asyncio.sleep(0.001)
            await engine.answer(classifier, photos[0], WAIT_S)

    run(ConcurrencyPlan(runners=2, threads=1), story)
    assert len(names) == 6
    assert len(set(names)) == 1


# Why


def test_only_what_asks_for_the_same_is_run_together(explaining_template: Path, photos: list[bytes]) -> None:
    Held.begun, Held.go_on, Held.sizes = threading.Semaphore(0), threading.Event(), []
    classifier = Held.open(explaining_template, threads=1, prove=False)

    async def story(engine: Engine) -> None:
        first = asyncio.ensure_future(engine.answer(classifier, photos[0], WAIT_S))
        await asyncio.to_thread(classifier.begun.acquire)
        asked = [True, True, False, False, True]
        others = [asyncio.ensure_future(engine.answer(classifier, photos[1], WAIT_S, explain=explain)) for explain in asked]
        while engine.waiting < len(asked):
            await asyncio.sleep(0)
        classifier.go_on.set()
        await first
        answers = await asyncio.gather(*others)
        assert [answer.evidence_Khw is not None for answer in answers] == asked
        assert all(np.array_equal(answer.logits_K, answers[0].logits_K) for answer in answers)
        assert answers[0].evidence_Khw is not None
        np.testing.assert_allclose(answers[0].evidence_Khw.mean((1, 2)), answers[0].logits_K, atol=1e-5)

    run(ConcurrencyPlan(runners=1, threads=1, batch=4), story)
    assert classifier.sizes == [1, 2, 2, 1]
