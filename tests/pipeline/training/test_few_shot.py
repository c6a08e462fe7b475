from pathlib import Path
from typing import Any

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


def test_the_cosine_layer_gives_every_image_the_class_of_the_true_cosine() -> None:
    features_1MD, targets_M = gaussian_classes(60)
    weight_KD, bias_K = few_shot.class_directions(features_1MD, targets_M)
    np.testing.assert_allclose(np.linalg.norm(weight_KD, axis=1), 1)
    center_D = np.stack([features_1MD[0, targets_M == label].mean(0) for label in range(3)]).mean(0)
    test_ND = gaussian_classes(300, seed=1)[0][0]
    directions_ND = (test_ND - center_D) / np.linalg.norm(test_ND - center_D, axis=1, keepdims=True)
    logits_NK = test_ND @ weight_KD.T + bias_K
    assert (logits_NK.argmax(1) == (directions_ND @ weight_KD.T).argmax(1)).all()
    assert len(set(logits_NK.argmax(1).tolist())) == 3


@pytest.mark.long
def test_the_metric_with_the_lower_held_out_loss_is_used(
    lite0: Network, shapes: Prepared, spec: PreprocessSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(tables_VMD: np.ndarray, targets_M: np.ndarray) -> few_shot.Layer:
        return few_shot.class_means(tables_VMD, np.roll(targets_M, 1))

    given = {"spec": spec, "seed": 0, "folder": tmp_path, "cache": tmp_path / "cache", "device": torch.device("cpu")}
    context = TrainingContext(network=lite0, prepared=shapes, config=TrainConfig(strategy="few-shot", views=0), **given)
    for good, metrics in (
        ("cosine", {"distance": shuffled, "cosine": few_shot.class_directions}),
        ("distance", {"distance": few_shot.class_means, "cosine": shuffled}),
    ):
        monkeypatch.setattr(few_shot, "METRICS", metrics)
        result = few_shot.fit(context)
        assert f"the metric `{good}`" in result.findings[0].message
        assert result.history.epochs[0]["val_accuracy"] > 0.6


def test_the_scale_of_the_logits_does_not_matter_and_stays_finite_without_a_mistake() -> None:
    targets_N = np.arange(30) % 3
    logits_NK = np.eye(3)[targets_N] + np.random.default_rng(0).normal(0, 0.3, (30, 3))
    loss, scale = few_shot.fit_scale(logits_NK, targets_N)
    same, other = few_shot.fit_scale(1e9 * logits_NK, targets_N)
    assert same == pytest.approx(loss)
    assert 1e9 * other == pytest.approx(scale)
    _, perfect = few_shot.fit_scale(np.eye(3)[targets_N], targets_N)
    confidence = np.exp(perfect) / (np.exp(perfect) + 2)
    assert 0.9 < confidence < 0.99


@pytest.mark.parametrize("metric", few_shot.METRICS.values(), ids=few_shot.METRICS)
@pytest.mark.parametrize("each", [1, 2])
def test_features_without_variance_give_finite_weights(metric: Any, each: int) -> None:
    targets_M = np.array([0, 1, 2] * each)
    for features_1MD in (np.ones((1, 3 * each, 4), np.float32), np.eye(3, 4, dtype=np.float32)[targets_M][None]):
        weight_KD, bias_K = metric(features_1MD, targets_M)
        assert np.isfinite(weight_KD).all()
        assert np.isfinite(bias_K).all()
    assert ((features_1MD[0] @ weight_KD.T + bias_K).argmax(1) == targets_M).all()


@pytest.mark.parametrize("each", [1, 2, 3])
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
