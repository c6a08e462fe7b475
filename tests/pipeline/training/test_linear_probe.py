import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeline.pipeline.config import TrainConfig
from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.evaluation.evaluate import compute_logits
from edgeline.pipeline.evaluation.metrics import nll
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.training import linear_probe
from edgeline.pipeline.training.class_weights import class_weights
from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.linear_probe import FeatureRows, HeadTrainer, LabeledFeatures
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec

CPU = torch.device("cpu")
PLAIN = TrainConfig(refit=False, dropout=0, epochs=20)
Fitted = Callable[..., TrainingResult]


@pytest.fixture(name="fitted")
def fit_on_shapes(shapes: Prepared, spec: PreprocessSpec, tmp_path: Path) -> Fitted:
    """`fitted(network, config, **changes)`: the result of training its head on the shapes."""

    def run(network: Network, config: TrainConfig, **changes: Any) -> TrainingResult:
        given = {"spec": spec, "prepared": shapes, "seed": 0, "folder": tmp_path, "cache": tmp_path / "cache", "device": CPU}
        return linear_probe.fit(TrainingContext(network=network, config=config, **given | changes))

    return run


def targets(prepared: Prepared, split: Any) -> np.ndarray:
    return np.array([sample.index for sample in prepared.of(split)])


def test_a_head_on_imagenet_features_classifies_the_shapes(
    fitted: Fitted, lite0: Network, shapes: Prepared, spec: PreprocessSpec, tmp_path: Path
) -> None:
    epochs = fitted(lite0, TrainConfig()).history.epochs
    accuracy = (compute_logits(lite0, shapes.of("test"), spec, CPU).argmax(1) == targets(shapes, "test")).mean()
    assert accuracy >= 0.75  # a third by chance
    assert epochs[-1]["train_loss"] < 0.3 * epochs[0]["train_loss"]
    assert not list(tmp_path.glob("*.npy"))


def test_the_same_seed_gives_the_same_weights_bit_for_bit(fitted: Fitted, small: Network, tmp_path: Path) -> None:
    config = TrainConfig(views=1, epochs=5)
    networks = [small, *(copy.deepcopy(small) for _ in range(2))]
    first, again, other = (
        fitted(network, config, seed=seed, cache=tmp_path / f"cache-{number}")
        for number, (network, seed) in enumerate(zip(networks, (3, 3, 4), strict=True))
    )
    weights = [network.classifier.weight for network in networks]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    # The refit seeds itself, so the training before it is compared too.
    assert np.array_equal(first.val_logits_NK, again.val_logits_NK)
    assert not np.array_equal(first.val_logits_NK, other.val_logits_NK)


def test_the_network_on_pixels_has_the_logits_of_the_head_on_normalized_features(
    fitted: Fitted, lite0: Network, shapes: Prepared, spec: PreprocessSpec
) -> None:
    expected_NK = fitted(lite0, PLAIN).val_logits_NK
    observed_NK = compute_logits(lite0, shapes.of("val"), spec, CPU)
    assert np.abs(expected_NK).max() > 0.1
    np.testing.assert_allclose(observed_NK, expected_NK, rtol=0, atol=1e-4)


def test_the_refit_learns_from_validation_and_calibration_gets_the_logits_from_before(
    fitted: Fitted, lite0: Network, shapes: Prepared, spec: PreprocessSpec
) -> None:
    result = fitted(lite0, PLAIN.model_copy(update={"refit": True, "epochs": 60}))
    before = nll(result.val_logits_NK, targets(shapes, "val"))
    after = nll(compute_logits(lite0, shapes.of("val"), spec, CPU), targets(shapes, "val"))
    assert before == pytest.approx(result.history.best_loss, abs=1e-5)
    assert after < 0.8 * before


def test_views_are_further_training_images(fitted: Fitted, small: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    original = HeadTrainer.fit

    def recording(trainer: HeadTrainer, head: nn.Sequential, train: LabeledFeatures, val: LabeledFeatures) -> TrainingResult:
        sizes.append((len(train.features), len(train.targets_N)))
        assert len({row.numpy().tobytes() for row in train.features[torch.tensor([0, 36, 72])]}) == 3
        return original(trainer, head, train, val)

    monkeypatch.setattr(HeadTrainer, "fit", recording)
    fitted(small, PLAIN.model_copy(update={"views": 2, "epochs": 1}))
    assert sizes == [(3 * 36, 3 * 36)]


def test_the_refit_trains_on_the_same_views_of_validation_images(
    fitted: Fitted, small: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, list[int]]] = []
    original = HeadTrainer.refit

    def recording(trainer: HeadTrainer, head: nn.Sequential, everything: LabeledFeatures, epochs: int) -> None:
        sizes.append((len(everything.features), everything.targets_N.bincount().tolist()))
        assert torch.equal(everything.targets_N[108:], torch.tensor(([0] * 4 + [1] * 4 + [2] * 4) * 3))
        original(trainer, head, everything, epochs)

    monkeypatch.setattr(HeadTrainer, "refit", recording)
    fitted(small, PLAIN.model_copy(update={"views": 2, "epochs": 1, "refit": True}))
    assert sizes == [(3 * 48, [48, 48, 48])]


def rows(features_ND: np.ndarray) -> FeatureRows:
    return FeatureRows([features_ND.astype(np.float32)], torch.zeros(features_ND.shape[1]), 1.0)


def test_rows_are_read_over_several_tables_centered_and_scaled() -> None:
    tables = [np.random.default_rng(n).normal(size=(n, 5)).astype(np.float32) for n in (3, 1, 4)]
    mean_D = torch.arange(5.0)
    rows = FeatureRows(tables, mean_D, 2.0)
    order = torch.tensor([7, 0, 3, 2, 4, 0])
    expected_ND = (torch.from_numpy(np.concatenate(tables))[order] - mean_D) / 2
    assert len(rows) == 8
    assert torch.equal(rows[order], expected_ND)


def noise(images: int, seed: int, classes: int = 2) -> LabeledFeatures:
    """Features that do not depend on the class."""
    rng = np.random.default_rng(seed)
    return LabeledFeatures(rows(rng.normal(size=(images, 50))), torch.from_numpy(rng.integers(0, classes, images)))


def test_the_head_ends_with_the_weights_that_were_best_on_validation() -> None:
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(50, 2))
    val = noise(40, 2)
    result = HeadTrainer(TrainConfig(patience=7, learning_rate=0.01), torch.ones(2), 0).fit(head, noise(40, 1), val)
    history = result.history
    head.eval()
    logits_NK = head(val.features[torch.arange(40)])
    assert functional.cross_entropy(logits_NK, val.targets_N).item() == pytest.approx(history.best_loss, abs=1e-6)
    np.testing.assert_allclose(result.val_logits_NK, logits_NK.detach(), rtol=0, atol=1e-6)
    # The head overfits to noise quickly, so the best epoch is an early one. Seven more follow.
    assert len(history.epochs) == history.best_epoch + 7 < 200
    assert history.epochs[-1]["val_loss"] > history.best_loss


def test_the_number_of_epochs_in_the_configuration_is_the_limit() -> None:
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(50, 2))
    result = HeadTrainer(TrainConfig(epochs=3), torch.ones(2), 0).fit(head, noise(20, 1), noise(20, 2))
    assert len(result.history.epochs) == 3


def rare_recall(prepared: Prepared, config: TrainConfig, data: LabeledFeatures) -> float:
    head = nn.Sequential(nn.Dropout(0), nn.Linear(2, 2))
    HeadTrainer(config, class_weights(prepared, config), 0).fit(head, data, data)
    predicted_N = head(data.features[torch.arange(len(data.features))]).argmax(1)
    return (predicted_N[data.targets_N == 1] == 1).float().mean().item()


def test_class_weights_find_more_of_a_rare_class(shapes: Prepared) -> None:
    rng = np.random.default_rng(0)
    features = rows(np.concatenate([rng.normal(0, 1, (180, 2)), rng.normal(1, 1, (20, 2))]))
    data = LabeledFeatures(features, torch.tensor([0] * 180 + [1] * 20))
    common, rare = shapes.of("train")[0], shapes.of("train")[12]
    val = tuple(shapes.of("val")[::4][:2])
    prepared = Prepared(("disc", "frame"), (*[common] * 180, *[rare] * 20, *val), "")
    config = {"epochs": 100, "learning_rate": 0.02, "patience": 100}
    plain = rare_recall(prepared, TrainConfig(class_weights="none", **config), data)
    balanced = rare_recall(prepared, TrainConfig(class_weights="balanced", **config), data)
    assert plain < 0.3
    assert balanced > 0.6


def nan_features(features_ND: np.ndarray) -> np.ndarray:
    features_ND[3, 1] = math.nan
    return features_ND


DIVERGING = {
    "a feature that is not a number": (nan_features, {}, "epoch 1"),
    "a huge learning rate": (lambda features_ND: features_ND, {"learning_rate": 1e38}, "epoch [12]"),
    "a rate that soon explodes": (lambda features_ND: features_ND * 1e18, {"learning_rate": 1e21}, "epoch [12]"),
}


@pytest.mark.parametrize(("spoil", "settings", "where"), DIVERGING.values(), ids=DIVERGING)
def test_a_loss_that_is_not_finite_stops_training_and_names_the_epoch(
    spoil: Callable[[np.ndarray], np.ndarray], settings: dict[str, Any], where: str
) -> None:
    features_ND = spoil(np.random.default_rng(0).normal(size=(40, 50)))
    train = LabeledFeatures(rows(features_ND), noise(40, 1).targets_N)
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(50, 2))
    trainer = HeadTrainer(TrainConfig(**settings), torch.ones(2), 0)
    with pytest.raises(TrainingError, match=f"the loss became (nan|inf) in {where}") as caught:
        trainer.fit(head, train, noise(20, 2))
    assert caught.value.code == "loss_not_finite"
    assert not head[1].weight.isnan().any()  # nothing was learned from such a loss


def test_constant_features_do_not_cause_a_division_by_zero(fitted: Fitted, small: Network) -> None:
    for parameter in small.backbone.parameters():
        nn.init.zeros_(parameter)
    result = fitted(small, PLAIN)
    assert math.isfinite(result.history.best_loss)
    assert torch.isfinite(small.classifier.weight).all()
