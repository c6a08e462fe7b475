import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.config import TrainConfig
from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.evaluation.evaluate import compute_logits
from edgeline.pipeline.evaluation.metrics import nll
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.training import linear_probe as fit_head
from edgeline.pipeline.training.history import Fit
from edgeline.pipeline.training.linear_probe import FeatureRows, fit_linear
from edgeline.pipeline.training.train import class_weights
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec

CPU = torch.device("cpu")
PLAIN = TrainConfig(refit=False, dropout=0, epochs=20)
Fitted = Callable[..., Fit]


@pytest.fixture(name="fitted")
def fit_on_shapes(shapes: Prepared, spec: PreprocessSpec, tmp_path: Path) -> Fitted:
    """`fitted(network, config, seed=0, **changes)`: the course of fitting its head on the shapes."""

    def run(network: Network, config: TrainConfig, seed: int = 0, cache: ContentCache | None = None) -> Fit:
        cache = cache or ContentCache(tmp_path / "cache" / "features.sqlite")
        weights_K = torch.ones(len(shapes.labels))
        return fit_head.fit(network, spec, shapes, config, weights_K, seed=seed, folder=tmp_path, cache=cache, device=CPU)

    return run


def targets(prepared: Prepared, split: Any) -> np.ndarray:
    return np.array([sample.index for sample in prepared.of(split)])


def test_a_head_on_imagenet_features_tells_shapes_apart(
    fitted: Fitted, lite0: Network, shapes: Prepared, spec: PreprocessSpec, tmp_path: Path
) -> None:
    course = fitted(lite0, TrainConfig())
    accuracy = (compute_logits(lite0, shapes.of("test"), spec, CPU).argmax(1) == targets(shapes, "test")).mean()
    assert accuracy >= 0.75  # a third by chance
    assert course.history[-1]["train_loss"] < 0.3 * course.history[0]["train_loss"]
    assert not list(tmp_path.glob("*.npy"))


def test_the_same_seed_gives_the_same_weights_to_the_bit(
    fitted: Fitted, lite0_template: tuple[Network, PreprocessSpec], lite0: Network, tmp_path: Path
) -> None:
    config = TrainConfig(views=1, epochs=5)
    networks = [lite0, *(copy.deepcopy(lite0) for _ in range(2))]
    first, again, other = (
        fitted(network, config, seed, ContentCache(tmp_path / f"{number}.sqlite"))
        for number, (network, seed) in enumerate(zip(networks, (3, 3, 4), strict=True))
    )
    weights = [network.classifier.weight for network in networks]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    # The refit seeds itself, so the course before it is compared too.
    assert np.array_equal(first.val_logits_NK, again.val_logits_NK)
    assert not np.array_equal(first.val_logits_NK, other.val_logits_NK)


def test_the_network_gives_on_pixels_what_the_head_gave_on_normalized_features(
    fitted: Fitted, lite0: Network, shapes: Prepared, spec: PreprocessSpec
) -> None:
    course = fitted(lite0, PLAIN)
    observed_NK = compute_logits(lite0, shapes.of("val"), spec, CPU)
    assert np.abs(course.val_logits_NK).max() > 0.1
    np.testing.assert_allclose(observed_NK, course.val_logits_NK, rtol=0, atol=1e-4)


def test_the_refit_learns_validation_too_and_calibration_keeps_the_logits_from_before(
    fitted: Fitted, lite0: Network, shapes: Prepared, spec: PreprocessSpec
) -> None:
    course = fitted(lite0, PLAIN.model_copy(update={"refit": True, "epochs": 60}))
    before = nll(course.val_logits_NK, targets(shapes, "val"))
    after = nll(compute_logits(lite0, shapes.of("val"), spec, CPU), targets(shapes, "val"))
    assert before == pytest.approx(course.best_loss, abs=1e-5)
    assert after < 0.8 * before


def test_views_are_further_training_images(fitted: Fitted, lite0: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    true = fit_head.fit_linear

    def watched(head: nn.Sequential, features: FeatureRows, targets_N: Tensor, *rest: Any) -> Fit:
        sizes.append((len(features), len(targets_N)))
        assert len({row.numpy().tobytes() for row in features[torch.tensor([0, 36, 72])]}) == 3
        return true(head, features, targets_N, *rest)

    monkeypatch.setattr(fit_head, "fit_linear", watched)
    fitted(lite0, PLAIN.model_copy(update={"views": 2, "epochs": 1}))
    assert sizes == [(3 * 36, 3 * 36)]


def test_the_refit_sees_as_many_views_of_validation(fitted: Fitted, lite0: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, list[int]]] = []
    true = fit_head.refit

    def watched(head: nn.Sequential, features: FeatureRows, targets_N: Tensor, *rest: Any, epochs: int) -> None:
        sizes.append((len(features), targets_N.bincount().tolist()))
        assert torch.equal(targets_N[108:], torch.tensor(([0] * 4 + [1] * 4 + [2] * 4) * 3))
        true(head, features, targets_N, *rest, epochs=epochs)

    monkeypatch.setattr(fit_head, "refit", watched)
    fitted(lite0, PLAIN.model_copy(update={"views": 2, "epochs": 1, "refit": True}))
    assert sizes == [(3 * 48, [48, 48, 48])]


def rows(features_ND: np.ndarray) -> FeatureRows:
    return FeatureRows([features_ND.astype(np.float32)], torch.zeros(features_ND.shape[1]), 1.0)


def test_rows_are_read_over_several_tables_centered_and_scaled() -> None:
    tables = [np.random.default_rng(n).normal(size=(n, 5)).astype(np.float32) for n in (3, 1, 4)]
    mean_D = torch.arange(5.0)
    held = FeatureRows(tables, mean_D, 2.0)
    order = torch.tensor([7, 0, 3, 2, 4, 0])
    expected_ND = (torch.from_numpy(np.concatenate(tables))[order] - mean_D) / 2
    assert len(held) == 8
    assert torch.equal(held[order], expected_ND)


def noise(images: int, seed: int, classes: int = 2) -> tuple[FeatureRows, Tensor]:
    """Features that say nothing about the class."""
    rng = np.random.default_rng(seed)
    return rows(rng.normal(size=(images, 50))), torch.from_numpy(rng.integers(0, classes, images))


def test_the_head_ends_with_the_weights_that_were_best_on_validation() -> None:
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(50, 2))
    val, val_targets_N = noise(40, 2)
    config = TrainConfig(patience=7, learning_rate=0.01)
    course = fit_linear(head, *noise(40, 1), val, val_targets_N, config, torch.ones(2), 0)
    head.eval()
    logits_NK = head(val[torch.arange(40)])
    assert functional.cross_entropy(logits_NK, val_targets_N).item() == pytest.approx(course.best_loss, abs=1e-6)
    np.testing.assert_allclose(course.val_logits_NK, logits_NK.detach(), rtol=0, atol=1e-6)
    # Noise is soon learned by heart, so the best epoch is an early one, and seven more were tried.
    assert len(course.history) == course.best_epoch + 7 < 200
    assert course.history[-1]["val_loss"] > course.best_loss


def test_no_more_epochs_are_run_than_were_asked_for() -> None:
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(50, 2))
    course = fit_linear(head, *noise(20, 1), *noise(20, 2), TrainConfig(epochs=3), torch.ones(2), 0)
    assert len(course.history) == 3


def rare_recall(prepared: Prepared, config: TrainConfig, features: FeatureRows, targets_N: Tensor) -> float:
    head = nn.Sequential(nn.Dropout(0), nn.Linear(2, 2))
    fit_linear(head, features, targets_N, features, targets_N, config, class_weights(prepared, config), 0)
    called_N = head(features[torch.arange(len(features))]).argmax(1)
    return (called_N[targets_N == 1] == 1).float().mean().item()


def test_class_weights_find_more_of_a_rare_class(shapes: Prepared) -> None:
    rng = np.random.default_rng(0)
    features = rows(np.concatenate([rng.normal(0, 1, (180, 2)), rng.normal(1, 1, (20, 2))]))
    targets_N = torch.tensor([0] * 180 + [1] * 20)
    common, rare = shapes.of("train")[0], shapes.of("train")[12]
    val = tuple(shapes.of("val")[::4][:2])
    prepared = Prepared(("disc", "frame"), (*[common] * 180, *[rare] * 20, *val), "")
    config = {"epochs": 100, "learning_rate": 0.02, "patience": 100}
    plain = rare_recall(prepared, TrainConfig(class_weights="none", **config), features, targets_N)
    balanced = rare_recall(prepared, TrainConfig(class_weights="balanced", **config), features, targets_N)
    assert plain < 0.3
    assert balanced > 0.6


def nan_features(features_ND: np.ndarray) -> np.ndarray:
    features_ND[3, 1] = math.nan
    return features_ND


DIVERGING = {
    "a feature that is no number": (nan_features, {}, "epoch 1"),
    "a huge learning rate": (lambda features_ND: features_ND, {"learning_rate": 1e38}, "epoch [12]"),
    "a rate that soon explodes": (lambda features_ND: features_ND * 1e18, {"learning_rate": 1e21}, "epoch [12]"),
}


@pytest.mark.parametrize(("spoil", "settings", "where"), DIVERGING.values(), ids=DIVERGING)
def test_a_loss_that_is_no_number_stops_training_with_its_epoch(
    spoil: Callable[[np.ndarray], np.ndarray], settings: dict[str, Any], where: str
) -> None:
    features_ND = spoil(np.random.default_rng(0).normal(size=(40, 50)))
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(50, 2))
    with pytest.raises(TrainingError, match=f"the loss became (nan|inf) in {where}") as refusal:
        fit_linear(head, rows(features_ND), noise(40, 1)[1], *noise(20, 2), TrainConfig(**settings), torch.ones(2), 0)
    assert refusal.value.code == "loss_not_finite"
    assert not head[1].weight.isnan().any()  # nothing was learned from such a loss


def test_features_that_never_vary_divide_by_nothing(fitted: Fitted, small: Network) -> None:
    for parameter in small.backbone.parameters():
        nn.init.zeros_(parameter)
    course = fitted(small, PLAIN)
    assert math.isfinite(course.best_loss)
    assert torch.isfinite(small.classifier.weight).all()
