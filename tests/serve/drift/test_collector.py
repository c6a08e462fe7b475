"""Recorded statistics, their memory, and concurrent recording."""

import math
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.collector import BATCH, Drift, Origin, drift_of, origin_of

IDENTITY = {"model": "letters", "version": 2, "manifest_sha256": None}


def test_the_statistics_are_those_of_the_image_and_its_prediction() -> None:
    drift = Drift(("a", "b", "c", "d"), 224, 224, **IDENTITY)
    pixels = np.random.default_rng(0).integers(60, 120, (224, 224, 3), dtype=np.uint8)
    probabilities = np.array([0.05, 0.6, 0.25, 0.1], np.float32)
    drift.observe(pixels, probabilities, Origin(4000, 3000, 123_456))
    snapshot = drift.snapshot()
    means = {name: held["mean"] for name, held in snapshot["statistics"].items()}
    assert means == pytest.approx(
        {
            "brightness": pixels.mean(),
            "contrast": pixels.std(),
            "width": 4000,
            "height": 3000,
            "aspect": 4 / 3,
            "size_bytes": 123_456,
            "top": 0.6,
            "margin": 0.35,
            "entropy": -sum(p * math.log(p) for p in (0.05, 0.6, 0.25, 0.1)) / math.log(4),
        },
        rel=0.02,
    )
    assert snapshot["predicted"] == {"labels": ["a", "b", "c", "d"], "counts": [0, 1, 0, 0]}
    assert snapshot.items() >= IDENTITY.items()


@pytest.mark.parametrize("shape", [(1, 1), (12, 16), (224, 224), (240, 240), (7, 1000), (333, 512)])
def test_every_column_and_color_is_sampled(shape: tuple[int, int]) -> None:
    height, width = shape
    drift = Drift(("a", "b"), height, width, **IDENTITY)
    for color in range(3):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., color] = 240
        drift.observe(pixels, np.array([1, 0], np.float32))
    held = drift.snapshot()["statistics"]["brightness"]
    assert held["mean"] == pytest.approx(80, abs=1)
    assert held["variance"] < 2


def test_entropy_is_0_for_certainty_and_1_for_equal_probabilities() -> None:
    drift = Drift(("a", "b", "c"), 8, 8, **IDENTITY)
    pixels = np.zeros((8, 8, 3), np.uint8)
    drift.observe(pixels, np.array([0, 1, 0], np.float32))
    drift.observe(pixels, np.full(3, 1 / 3, np.float32))
    held = drift.snapshot()["statistics"]
    assert held["entropy"]["mean"] == pytest.approx(0.5)
    assert (held["entropy"]["counts"][0], held["entropy"]["counts"][-1]) == (1, 1)
    assert held["margin"]["mean"] == pytest.approx(0.5)


def test_concurrent_threads_lose_no_image() -> None:
    drift = Drift(("a", "b"), 8, 8, **IDENTITY)
    each, threads = 5 * BATCH + 3, 8
    started = threading.Barrier(threads + 1)

    def observe(level: int) -> None:
        pixels = np.full((8, 8, 3), level, np.uint8)
        answer = np.array([level % 2, 1 - level % 2], np.float32)
        started.wait()
        for _ in range(each):
            drift.observe(pixels, answer, Origin(10 * level, 10))

    running = [threading.Thread(target=observe, args=(level,)) for level in range(100, 100 + threads)]
    for thread in running:
        thread.start()
    started.wait()
    counts = [drift.snapshot()["count"] for _ in range(50)]
    for thread in running:
        thread.join()
    snapshot = drift.snapshot()
    assert counts == sorted(counts)
    assert drift.count == snapshot["count"] == threads * each
    assert snapshot["predicted"]["counts"] == [threads // 2 * each] * 2
    assert snapshot["statistics"]["brightness"]["mean"] == pytest.approx(np.mean(range(100, 100 + threads)))
    assert snapshot["statistics"]["aspect"]["mean"] == pytest.approx(np.mean(range(100, 100 + threads)))


def test_memory_does_not_grow_with_the_images() -> None:
    drift = Drift(tuple(map(str, range(1000))), 224, 224, **IDENTITY)
    pixels = np.zeros((224, 224, 3), np.uint8)
    answer = np.full(1000, 0.001, np.float32)

    def observe(count: int) -> None:
        for _ in range(count):
            drift.observe(pixels, answer, Origin(100, 100, 100))

    observe(BATCH)
    tracemalloc.start()
    observe(20 * BATCH + 7)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20_000
    assert peak < 2_000_000


def test_a_classifiers_statistics_name_its_manifest(artifact_template: Path) -> None:
    import hashlib

    classifier = Classifier.open(artifact_template)
    snapshot = drift_of(classifier).snapshot()
    digest = hashlib.sha256((artifact_template / "manifest.json").read_bytes()).hexdigest()
    assert (snapshot["model"], snapshot["version"], snapshot["manifest_sha256"]) == ("colors", 1, digest)
    assert snapshot["count"] == 0


def test_an_images_origin_is_read_from_its_header(artifact_template: Path) -> None:
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    assert origin_of(photo) == Origin(width=40, height=30, size_bytes=len(photo))
