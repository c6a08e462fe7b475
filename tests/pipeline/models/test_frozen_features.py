"""Features that are found in the cache have the bits of features that are computed."""

import sqlite3
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
import torch

from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.frozen_features import FrozenBackbone
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.serve.preprocess import PreprocessSpec

CPU = torch.device("cpu")
IMAGES = 19
"""Two full batches and a part of one."""


@pytest.fixture(name="pixels")
def _pixels(spec: PreprocessSpec) -> torch.Tensor:
    chance = np.random.default_rng(0)
    return torch.from_numpy(chance.integers(0, 256, (IMAGES, spec.height, spec.width, 3), dtype=np.uint8))


@pytest.fixture(name="runs")
def _runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each call of the backbone."""
    runs: list[int] = []
    compute: Callable[..., np.ndarray] = FrozenBackbone._compute
    monkeypatch.setattr(FrozenBackbone, "_compute", lambda self, part: runs.append(len(part)) or compute(self, part))
    return runs


def test_a_new_head_runs_no_backbone_and_gives_the_bits_of_the_network(
    small: Network, pixels: torch.Tensor, cache: ContentCache, runs: list[int]
) -> None:
    FrozenBackbone(small, CPU, cache)(pixels)
    assert runs == [8, 8, 3]
    with torch.inference_mode():
        small.classifier.weight.copy_(torch.randn(small.classifier.weight.shape))
        expected_NK = torch.cat([small(part) for part in pixels[:16].split(8)])
        observed_NK = torch.cat([FrozenBackbone(small, CPU, cache)(part) for part in pixels[:16].split(8)])
    assert runs == [8, 8, 3]
    assert torch.equal(observed_NK, expected_NK)


def test_an_image_has_the_same_bits_whatever_it_is_computed_with(
    small: Network, pixels: torch.Tensor, cache: ContentCache
) -> None:
    together = FrozenBackbone(small, CPU, cache).features(pixels)
    other = ContentCache(cache.path.with_name("other.sqlite"))
    alone = torch.cat([FrozenBackbone(small, CPU, other).features(pixels[i : i + 1]) for i in (0, 11, 18)])
    assert torch.equal(alone, together[[0, 11, 18]])


def test_another_backbone_finds_nothing(small: Network, pixels: torch.Tensor, cache: ContentCache, runs: list[int]) -> None:
    FrozenBackbone(small, CPU, cache)(pixels[:8])
    with torch.no_grad():
        next(small.backbone.parameters()).add_(1e-3)
    FrozenBackbone(small, CPU, cache)(pixels[:8])
    assert runs == [8, 8]


def test_a_damaged_row_is_noticed_and_computed_again(
    small: Network, pixels: torch.Tensor, cache: ContentCache, runs: list[int]
) -> None:
    expected = FrozenBackbone(small, CPU, cache)(pixels[:8])
    with closing(sqlite3.connect(cache.path)) as database:
        key = database.execute("SELECT key FROM rows LIMIT 1").fetchone()[0]
    [(_, row)] = cache.get([key])
    cache.put([(key, row[:-4] + bytes(4))])  # with a checksum that fits
    assert torch.equal(FrozenBackbone(small, CPU, cache)(pixels[:8]), expected)
    assert runs == [8, 1]
