import importlib.metadata
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeline.pipeline.data import samples
from edgeline.pipeline.data.samples import Prepared, Sample
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.devices import CPU_BATCH
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.training import features
from edgeline.pipeline.training.augment import augment
from edgeline.pipeline.training.features import FeatureExtractor
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec, preprocess

CPU = torch.device("cpu")
Compute = Callable[..., np.ndarray]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that were passed to a backbone."""
    sizes: list[int] = []

    def recording(*args: Any) -> Iterator[np.ndarray]:
        for batch_NHW3 in samples.stream_pixels(*args):
            sizes.append(len(batch_NHW3))
            yield batch_NHW3

    monkeypatch.setattr(features, "stream_pixels", recording)
    return sizes


@pytest.fixture(name="compute")
def compute_on_the_cpu(small: Network, spec: PreprocessSpec, cache: ContentCache, tmp_path: Path) -> Compute:
    """`compute(samples, **changes)`: their features by a small network, small pictures and the test's cache."""

    def run(
        samples: Sequence[Sample],
        out: Path = tmp_path / "features.npy",
        spec: PreprocessSpec = spec,
        device: torch.device = CPU,
        **view: Any,
    ) -> np.ndarray:
        return FeatureExtractor(small, spec, cache, device).compute(samples, out, **view)

    return run


def test_features_are_those_of_a_plain_forward_pass(
    compute: Compute, small: Network, spec: PreprocessSpec, shapes: Prepared, tmp_path: Path
) -> None:
    wanted = shapes.of("val")
    table_ND = compute(wanted)
    pixels_NHW3 = np.stack([preprocess(Path(s.path).read_bytes(), spec) for s in wanted])
    with torch.inference_mode():
        expected_ND = small.features(torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).float()).numpy()
    assert (table_ND.dtype, table_ND.shape) == (np.float32, (12, 1024))
    np.testing.assert_allclose(table_ND, expected_ND, rtol=0, atol=1e-4 * np.abs(expected_ND).max())
    assert isinstance(table_ND.base, np.memmap)
    assert np.array_equal(np.load(tmp_path / "features.npy"), table_ND)


def test_cached_features_are_not_computed_again(
    compute: Compute, computed: list[int], shapes: Prepared, tmp_path: Path
) -> None:
    first = compute(shapes.of("val"))
    assert sum(computed) == 12
    again = compute(shapes.of("val")[::-1], out=tmp_path / "again.npy")
    assert sum(computed) == 12
    assert np.array_equal(again[::-1], first)


def test_a_copy_is_not_computed_and_a_changed_image_is(
    compute: Compute, computed: list[int], shapes: Prepared, make_sample: Callable[..., Sample], tmp_path: Path
) -> None:
    first, second, third = shapes.of("val")[:3]
    same = make_sample(Path(shutil.copy(first.path, tmp_path / "copy.png")))
    table_ND = compute([first, same, second])
    assert sum(computed) == 2
    assert np.array_equal(table_ND[0], table_ND[1])
    changed = make_sample(Path(shutil.copy(third.path, tmp_path / "copy.png")))
    compute([first, changed, second], out=tmp_path / "again.npy")
    assert sum(computed) == 3


def other_weights(network: Network, spec: PreprocessSpec) -> dict[str, Any]:
    weight = next(network.backbone.parameters())
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1
    return {}


def other_statistics(network: Network, spec: PreprocessSpec) -> dict[str, Any]:
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).running_mean[0] += 1
    return {}


def other_normalization(network: Network, spec: PreprocessSpec) -> dict[str, Any]:
    network.mean += 3
    return {}


MISSES: dict[str, Callable[[Network, PreprocessSpec], dict[str, Any]]] = {
    "other weights": other_weights,
    "other statistics": other_statistics,
    "another normalization": other_normalization,
    "another preprocessing": lambda network, spec: {"spec": PreprocessSpec(height=32, width=32, crop_fraction=1.0)},
    "another view": lambda network, spec: {"view": "flip-1", "augment": partial(augment, kind="flip", view=1)},
}


@pytest.mark.parametrize("change", MISSES.values(), ids=MISSES)
def test_features_cached_for_other_inputs_are_not_used(
    change: Callable[..., dict[str, Any]],
    compute: Compute,
    computed: list[int],
    small: Network,
    spec: PreprocessSpec,
    shapes: Prepared,
) -> None:
    before_ND = np.array(compute(shapes.of("val")[:3]))
    after_ND = compute(shapes.of("val")[:3], **change(small, spec))
    assert computed == [3, 3]
    assert not np.array_equal(after_ND, before_ND)


OTHERS: dict[str, tuple[ModuleType, str, Callable[..., str]]] = {
    "code": (features, "code_digest", lambda *modules: "another source"),
    "a library": (importlib.metadata, "version", lambda package: "99.0"),
}


@pytest.mark.parametrize(("module", "function", "replacement"), OTHERS.values(), ids=OTHERS)
def test_features_cached_by_other_code_or_libraries_are_not_used(
    module: ModuleType,
    function: str,
    replacement: Callable[..., str],
    compute: Compute,
    computed: list[int],
    shapes: Prepared,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute(shapes.of("val")[:2])
    monkeypatch.setattr(module, function, replacement)
    compute(shapes.of("val")[:2])
    assert computed == [2, 2]


def test_an_interrupted_extraction_resumes_after_the_last_batch(
    compute: Compute, computed: list[int], shapes: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, read = shapes.of("train"), samples.read_image
    last = wanted[2 * CPU_BATCH + 3]

    def read_until_there(sample: Sample) -> bytes:
        if sample is last:
            raise KeyboardInterrupt
        return read(sample)

    monkeypatch.setattr(samples, "read_image", read_until_there)
    with pytest.raises(KeyboardInterrupt):
        compute(wanted)
    assert computed == [CPU_BATCH, CPU_BATCH]
    monkeypatch.setattr(samples, "read_image", read)
    assert compute(wanted).shape == (36, 1024)
    assert sum(computed) == 36


def test_a_damaged_row_is_computed_again(compute: Compute, computed: list[int], shapes: Prepared, cache: ContentCache) -> None:
    before_ND = np.array(compute(shapes.of("val")))
    with closing(sqlite3.connect(cache.path)) as database, database:
        database.execute("UPDATE rows SET value = zeroblob(4096) WHERE key = (SELECT min(key) FROM rows)")
    # Not bit for bit: rounding depends on the batch size.
    np.testing.assert_allclose(compute(shapes.of("val")), before_ND, rtol=0, atol=1e-5 * np.abs(before_ND).max())
    assert computed == [8, 4, 1]


def test_features_that_are_not_finite_name_the_image_and_are_not_cached(
    compute: Compute, small: Network, shapes: Prepared, cache: ContentCache
) -> None:
    def spoil(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.index_fill(0, torch.tensor([len(output) - 1]), torch.nan)  # a stand-in for half precision overflowing

    small.backbone.register_forward_hook(spoil)
    with pytest.raises(TrainingError, match=r"features of \S+/frame/15\.png are not finite; check that") as caught:
        compute(shapes.of("val"))
    assert caught.value.code == "features_not_finite"
    with closing(sqlite3.connect(cache.path)) as database:
        assert database.execute("SELECT count(*) FROM rows").fetchone() == (0,)


def test_a_batch_that_does_not_fit_into_memory_is_reported(compute: Compute, small: Network, shapes: Prepared) -> None:
    def run_out(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 1:  # a stand-in: to fill this machine's memory would hit its other users
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    small.backbone.register_forward_pre_hook(run_out)
    with pytest.raises(
        TrainingError,
        match=r"a batch of 8 images does not fit into memory \(tried to allocate 20 GiB\); choose a smaller model",
    ) as caught:
        compute(shapes.of("val"))
    assert caught.value.code == "out_of_memory"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_features_of_the_cpu(compute: Compute, shapes: Prepared) -> None:
    expected_ND = np.array(compute(shapes.of("val")))
    observed_ND = compute(shapes.of("val"), device=torch.device("cuda"))
    np.testing.assert_allclose(observed_ND, expected_ND, rtol=0, atol=0.02 * np.abs(expected_ND).max())
