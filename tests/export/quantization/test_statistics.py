"""Activations measured image by image give ONNX Runtime's ranges, and are found again by content."""

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeline.export.quantization import statistics
from edgeline.export.quantization.static_int8 import Quantizable, input_means, make_ready, measure_ranges
from edgeline.export.quantization.statistics import Statistics, measure
from edgeline.pipeline.data.samples import Sample, stream_pixels
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.small_graphs import IMAGENET, SIZE, convolutional

SPEC = PreprocessSpec(height=SIZE, width=SIZE)
IMAGES = 19
"""Two full batches and a part of one."""


@pytest.fixture(name="ready", scope="module")
def _ready() -> Quantizable:
    return make_ready(convolutional(*IMAGENET, layers=3))


@pytest.fixture(name="samples", scope="module")
def _samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    chance, folder = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        Image.fromarray(chance.integers(0, 40 + 10 * number, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return [sample_of(folder / f"{number}.png") for number in range(IMAGES)]


def sample_of(path: Path) -> Sample:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Sample(
        path=str(path), label="a", index=0, split="train", group="", sha256=digest, pixels="", width=SIZE, height=SIZE
    )


@pytest.fixture(name="cache")
def _cache(tmp_path: Path) -> ContentCache:
    return ContentCache(tmp_path / "activations.sqlite")


def same(one: Statistics, other: Statistics) -> bool:
    return (
        one.low_NT.tobytes() == other.low_NT.tobytes()
        and one.high_NT.tobytes() == other.high_NT.tobytes()
        and [m.tobytes() for m in one.means_NC.values()] == [m.tobytes() for m in other.means_NC.values()]
    )


@pytest.mark.parametrize("method", ["minmax", "average"])
def test_the_ranges_are_those_of_onnx_runtimes_calibrator(ready: Quantizable, samples: list[Sample], method: str) -> None:
    expected = measure_ranges(ready, stream_pixels(samples, SPEC, 8), average=method == "average")
    observed = measure(ready, samples, SPEC, None).ranges(method)
    assert set(expected.data) - set(observed.data) == {"logits", "probabilities"}, "what follows the last layer"
    for name, found in observed.data.items():
        np.testing.assert_allclose(found.range_value, expected.data[name].range_value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_means_are_those_of_the_convolutions_inputs(ready: Quantizable, samples: list[Sample]) -> None:
    expected = input_means(ready, stream_pixels(samples, SPEC, 8))
    observed = measure(ready, samples, SPEC, None).means
    assert expected.keys() == observed.keys()
    for name, mean_C in observed.items():
        np.testing.assert_allclose(mean_C, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_image_has_the_same_figures_whatever_it_is_measured_with(ready: Quantizable, samples: list[Sample]) -> None:
    together = measure(ready, samples, SPEC, None)
    for number in (0, 12, 18):
        alone = measure(ready, samples[number : number + 1], SPEC, None)
        assert alone.low_NT.tobytes() == together.low_NT[number].tobytes()
        assert alone.high_NT.tobytes() == together.high_NT[number].tobytes()


def test_only_new_images_are_run_and_the_figures_are_those_of_measuring_all(
    ready: Quantizable, samples: list[Sample], cache: ContentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = measure(ready, samples, SPEC, None)
    measure(ready, samples[:-1], SPEC, cache)
    run: list[int] = []
    original = statistics._Measuring.run
    monkeypatch.setattr(statistics._Measuring, "run", lambda self, batch: run.append(len(batch)) or original(self, batch))
    assert same(measure(ready, samples, SPEC, cache), expected)
    assert run == [1]
    assert same(measure(ready, samples, SPEC, cache), expected)
    assert run == [1]


def test_a_new_head_changes_nothing_and_another_backbone_everything(
    ready: Quantizable, samples: list[Sample], cache: ContentCache
) -> None:
    measure(ready, samples, SPEC, cache)
    before = set(keys(cache))
    other_head = make_ready(convolutional(*IMAGENET, layers=3))
    for tensor in other_head.model.graph.initializer:
        if tensor.name == "matrix":
            tensor.raw_data = np.ones(len(tensor.raw_data) // 4, np.float32).tobytes()
    measure(other_head, samples, SPEC, cache)
    assert set(keys(cache)) == before
    measure(make_ready(convolutional(*IMAGENET, layers=3, seed=1)), samples, SPEC, cache)
    assert len(keys(cache)) == 2 * len(before)


def test_a_damaged_row_is_noticed_and_measured_again(ready: Quantizable, samples: list[Sample], cache: ContentCache) -> None:
    expected = measure(ready, samples, SPEC, cache)
    damaged = keys(cache)[3]
    [(_, row)] = cache.get([damaged])
    cache.put([(damaged, row[:-4] + bytes(4))])  # with a checksum that fits
    assert same(measure(ready, samples, SPEC, cache), expected)
    assert list(cache.get([damaged])) == [(damaged, row)]


def keys(cache: ContentCache) -> list[str]:
    with closing(sqlite3.connect(cache.path)) as database:
        return [key for (key,) in database.execute("SELECT key FROM rows ORDER BY key")]
