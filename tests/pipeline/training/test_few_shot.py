from pathlib import Path

import numpy as np
import pytest
import torch

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.training.strategies import few_shot
from edgeline.serve.preprocess import PreprocessSpec


def gaussian_classes(images: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (1, M, 40) of three classes, which differ in directions of small variance only."""
    rng = np.random.default_rng(seed)
    targets_M = np.arange(images) % 3
    features_MD = rng.normal(size=(images, 40)) * np.where(np.arange(40) < 20, 2.0, 0.5)
    features_MD[np.arange(images), 20 + targets_M] += 2.0
    return features_MD[None].astype(np.float32), targets_M


def accuracy(weight_KD: np.ndarray, bias_K: np.ndarray) -> float:
    features_1MD, targets_M = gaussian_classes(600, seed=1)
    return float(((features_1MD[0] @ weight_KD.T + bias_K).argmax(1) == targets_M).mean())


def test_the_layer_finds_classes_that_plain_distances_to_the_means_do_not() -> None:
    features_1MD, targets_M = gaussian_classes(60)
    means_KD = np.stack([features_1MD[0, targets_M == label].mean(0) for label in range(3)])
    plain = accuracy(means_KD, -(means_KD**2).sum(1) / 2)
    assert accuracy(*few_shot.class_means(features_1MD, targets_M)) > plain + 0.05


def test_views_move_the_means() -> None:
    features_1MD, targets_M = gaussian_classes(30)
    once = few_shot.class_means(features_1MD, targets_M)
    same = few_shot.class_means(np.concatenate([features_1MD, features_1MD]), targets_M)
    moved = few_shot.class_means(np.concatenate([features_1MD, features_1MD + targets_M[None, :, None]]), targets_M)
    np.testing.assert_allclose(same[0], once[0], rtol=1e-4, atol=1e-6)
    assert not np.allclose(moved[0], once[0], rtol=1e-2)


def test_constant_features_give_finite_weights() -> None:
    weight_KD, bias_K = few_shot.class_means(np.ones((1, 6, 4), np.float32), np.array([0, 1, 2] * 2))
    assert np.isfinite(weight_KD).all()
    assert np.isfinite(bias_K).all()


@pytest.mark.parametrize("each", [2, 3])
def test_a_few_images_of_each_class_are_enough(
    each: int, lite0: Network, shapes: Prepared, spec: PreprocessSpec, tmp_path: Path
) -> None:
    few = tuple(sample for start in (0, 12, 24) for sample in shapes.of("train")[start : start + each])
    prepared = Prepared(shapes.labels, (*few, *shapes.of("val")[::4]), "few")
    config = TrainConfig(strategy="few-shot", views=1)
    given = {"spec": spec, "seed": 0, "folder": tmp_path, "cache": tmp_path / "cache", "device": torch.device("cpu")}
    result = few_shot.fit(TrainingContext(network=lite0, prepared=prepared, config=config, **given))
    assert result.calibration.logits_NK.shape == (3 * each + 3, 3)
    assert (result.calibration.logits_NK.argmax(1) == result.calibration.targets_N).mean() > 0.5  # a third by chance
    assert torch.isfinite(lite0.classifier.weight).all()


def test_without_refit_the_validation_images_are_held_out_alone(
    lite0: Network, shapes: Prepared, spec: PreprocessSpec, tmp_path: Path
) -> None:
    config = TrainConfig(strategy="few-shot", views=0, refit=False)
    given = {"spec": spec, "seed": 0, "folder": tmp_path, "cache": tmp_path / "cache", "device": torch.device("cpu")}
    result = few_shot.fit(TrainingContext(network=lite0, prepared=shapes, config=config, **given))
    assert result.calibration.images == [sample.sha256 for sample in shapes.of("val")]
