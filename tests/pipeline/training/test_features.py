import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.data import samples
from edgeline.pipeline.data.samples import Prepared, Sample
from edgeline.pipeline.models.backbones import Network, Normalization, build
from edgeline.pipeline.runs import step
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.training import features
from edgeline.pipeline.training.augment import augment
from edgeline.pipeline.training.features import CPU_BATCH, backbone_digest, compute_features, fold_batch_norm
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec, preprocess

CPU = torch.device("cpu")
Compute = Callable[..., np.ndarray]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went to a backbone, batch by batch."""
    sizes: list[int] = []

    def watched(*args: Any) -> Iterator[np.ndarray]:
        for batch_NHW3 in samples.stream_pixels(*args):
            sizes.append(len(batch_NHW3))
            yield batch_NHW3

    monkeypatch.setattr(features, "stream_pixels", watched)
    return sizes


@pytest.fixture(name="compute")
def compute_on_the_cpu(small: Network, spec: PreprocessSpec, cache: ContentCache, tmp_path: Path) -> Compute:
    """`compute(samples, **changes)`: their features by a small network, small pictures and the test's cache."""
    given = {"network": small, "spec": spec, "cache": cache, "device": CPU, "out": tmp_path / "features.npy"}
    return lambda samples, **changes: compute_features(samples=samples, **given | changes)


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


def test_what_was_computed_is_never_computed_again(
    compute: Compute, computed: list[int], shapes: Prepared, tmp_path: Path
) -> None:
    first = compute(shapes.of("val"))
    assert sum(computed) == 12
    again = compute(shapes.of("val")[::-1], out=tmp_path / "again.npy")
    assert sum(computed) == 12
    assert np.array_equal(again[::-1], first)


def test_a_copy_costs_nothing_and_a_changed_image_costs_one(
    compute: Compute, computed: list[int], shapes: Prepared, make_sample: Callable[..., Sample], tmp_path: Path
) -> None:
    first, second, third = shapes.of("val")[:3]
    twin = make_sample(Path(shutil.copy(first.path, tmp_path / "copy.png")))
    table_ND = compute([first, twin, second])
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
def test_the_features_of_something_else_are_not_taken(
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
    "a library": (step, "_version", lambda package: "99.0"),
}


@pytest.mark.parametrize(("module", "function", "replacement"), OTHERS.values(), ids=OTHERS)
def test_other_code_and_other_libraries_compute_again(
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


def test_a_killed_extraction_keeps_what_was_done(
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
    # Not to the last bit: another size of batch rounds otherwise.
    np.testing.assert_allclose(compute(shapes.of("val")), before_ND, rtol=0, atol=1e-5 * np.abs(before_ND).max())
    assert computed == [8, 4, 1]


def test_features_that_are_no_numbers_name_the_image_and_are_not_kept(
    compute: Compute, small: Network, shapes: Prepared, cache: ContentCache
) -> None:
    def spoil(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.index_fill(0, torch.tensor([len(output) - 1]), torch.nan)  # a stand-in for half precision overflowing

    small.backbone.register_forward_hook(spoil)
    with pytest.raises(TrainingError, match=r"not finite for \S+/frame/15\.png; are its weights whole") as refusal:
        compute(shapes.of("val"))
    assert refusal.value.code == "features_not_finite"
    with closing(sqlite3.connect(cache.path)) as database:
        assert database.execute("SELECT count(*) FROM rows").fetchone() == (0,)


def test_a_batch_that_does_not_fit_is_said_so(compute: Compute, small: Network, shapes: Prepared) -> None:
    def run_out(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 1:  # a stand-in: to fill this machine's memory would hit its other users
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    small.backbone.register_forward_pre_hook(run_out)
    with pytest.raises(TrainingError, match="a batch of 8 images does not fit into memory; take a smaller model") as refusal:
        compute(shapes.of("val"))
    assert refusal.value.code == "out_of_memory"


# Lite0 has its trained weights; the others random ones, and statistics as if they had been trained.
@pytest.mark.parametrize("model", ["efficientnet_lite0", "mobilenet_v2", "resnet18", "timm:mobilenetv4_conv_small"])
def test_folded_batch_norms_give_the_same_features_and_touch_nothing(model: str) -> None:
    network, _ = build(model, "imagenet" if model == "efficientnet_lite0" else "none", classes=2)
    if model != "efficientnet_lite0":
        disturb_statistics(network)
    spec = PreprocessSpec(height=96, width=96)
    digest, parts = backbone_digest(network), repr(network)
    folded = fold_batch_norm(network, spec)
    images_NCHW = torch.rand(4, 3, 96, 96) * 255
    with torch.inference_mode():
        expected_ND, observed_ND = network.features(images_NCHW), folded.features(images_NCHW)
    assert not norms(folded)
    assert (observed_ND - expected_ND).abs().max() <= 1e-4 * expected_ND.abs().max()
    assert (backbone_digest(network), repr(network)) == (digest, parts)


@pytest.mark.parametrize("model", ["alexnet", "timm:convnext_atto"])
def test_a_network_with_nothing_to_fold_stays_what_it_is(model: str) -> None:
    network, spec = build(model, "none", classes=2)
    assert backbone_digest(fold_batch_norm(network, spec)) == backbone_digest(network)


def norms(network: Network) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


def disturb_statistics(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.uniform_(-0.5, 0.5, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        nn.init.uniform_(norm.bias, -0.5, 0.5, generator=generator)


class SecondReader(nn.Module):
    """Its convolution's output goes into the norm and past it, as in pre-activation networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        found = self.conv(images_NCHW)
        return (found + self.norm(found)).mean((2, 3))


class InPlace(SecondReader):
    """Its convolution's output is rectified in place, so it is the same tensor that the norm gets."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.norm(functional.relu_(self.conv(images_NCHW))).mean((2, 3))


@pytest.mark.parametrize("backbone", [SecondReader, InPlace])
def test_a_norm_that_only_seems_to_follow_its_convolution_is_left_alone(backbone: type[SecondReader]) -> None:
    network = Network(backbone(), 4, 2, 0.0, Normalization((127.0,) * 3, (128.0,) * 3)).eval()
    disturb_statistics(network)
    folded = fold_batch_norm(network, PreprocessSpec(height=16, width=16))
    images_NCHW = torch.rand(2, 3, 16, 16) * 255
    with torch.inference_mode():
        assert torch.equal(folded.features(images_NCHW), network.features(images_NCHW))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_features_of_the_cpu(compute: Compute, shapes: Prepared) -> None:
    expected_ND = np.array(compute(shapes.of("val")))
    observed_ND = compute(shapes.of("val"), device=torch.device("cuda"))
    np.testing.assert_allclose(observed_ND, expected_ND, rtol=0, atol=0.02 * np.abs(expected_ND).max())
