import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.evaluation.evaluate import compute_logits
from edgeline.pipeline.evaluation.metrics import nll
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.class_weights import class_weights
from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.folds import NEVER
from edgeline.pipeline.training.heads import FeatureRows, HeadData, TrainedHead, train_heads, train_side_by_side
from edgeline.pipeline.training.strategies import head
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec

CPU = torch.device("cpu")
PLAIN = TrainConfig(refit=False, dropout=0, epochs=20, views=0)
Fitted = Callable[..., TrainingResult]


@pytest.fixture(name="fitted")
def fit_on_shapes(shapes: Prepared, spec: PreprocessSpec, tmp_path: Path) -> Fitted:
    """`fitted(network, config, **changes)`: the result of training its head on the shapes."""

    def run(network: Network, config: TrainConfig, **changes: Any) -> TrainingResult:
        given = {"spec": spec, "prepared": shapes, "seed": 0, "folder": tmp_path, "cache": tmp_path / "cache", "device": CPU}
        return head.fit(TrainingContext(network=network, config=config, **given | changes))

    return run


def targets(prepared: Prepared, split: Any) -> np.ndarray:
    return np.array([sample.index for sample in prepared.of(split)])


@pytest.mark.long
def test_a_head_on_imagenet_features_classifies_the_shapes(
    fitted: Fitted, lite0: Network, shapes: Prepared, spec: PreprocessSpec, tmp_path: Path
) -> None:
    epochs = fitted(lite0, TrainConfig(views=0)).history.epochs
    accuracy = (compute_logits(lite0, shapes.of("test"), spec, CPU).argmax(1) == targets(shapes, "test")).mean()
    assert accuracy >= 0.75  # a third by chance
    assert epochs[-1]["train_loss"] < 0.3 * epochs[0]["train_loss"]
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.long
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
    assert np.array_equal(first.calibration.logits_NK, again.calibration.logits_NK)
    assert not np.array_equal(first.calibration.logits_NK, other.calibration.logits_NK)


def test_the_network_on_pixels_has_the_logits_of_the_head_on_normalized_features(
    fitted: Fitted, lite0: Network, shapes: Prepared, spec: PreprocessSpec
) -> None:
    expected_NK = fitted(lite0, PLAIN).calibration.logits_NK
    observed_NK = compute_logits(lite0, shapes.of("val"), spec, CPU)
    assert np.abs(expected_NK).max() > 0.1
    np.testing.assert_allclose(observed_NK, expected_NK, rtol=0, atol=1e-4)


def test_without_refit_the_head_learns_from_the_training_images_alone(
    fitted: Fitted, lite0: Network, shapes: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = record(monkeypatch)
    result = fitted(lite0, PLAIN.model_copy(update={"epochs": 1}))
    assert data[0].folds_M.tolist() == [NEVER] * 36 + [0] * 12
    assert result.calibration.images == [sample.sha256 for sample in shapes.of("val")]


def test_with_refit_every_image_is_held_out_once_and_its_logits_are_kept(
    fitted: Fitted, lite0: Network, shapes: Prepared
) -> None:
    result = fitted(lite0, PLAIN.model_copy(update={"refit": True, "epochs": 1}))
    samples = shapes.of("train") + shapes.of("val")
    assert result.out_of_fold is result.calibration
    assert result.calibration.images == [sample.sha256 for sample in samples]
    assert result.calibration.targets_N.tolist() == [sample.index for sample in samples]
    assert result.calibration.logits_NK.shape == (48, 3)


def test_if_no_class_has_two_groups_the_validation_images_are_held_out(shapes: Prepared) -> None:
    samples = [replace(sample, group=sample.label) for sample in [*shapes.of("train"), *shapes.of("val")]]
    assert head.held_out_folds(samples, TrainConfig()).tolist() == [NEVER] * 36 + [0] * 12


@pytest.mark.parametrize("val", [1, 2], ids=["a validation image of each class", "of two classes only"])
def test_one_training_image_of_each_class_is_enough(
    val: int, fitted: Fitted, lite0: Network, shapes: Prepared, spec: PreprocessSpec
) -> None:
    samples = (*shapes.of("train")[::12], *shapes.of("val")[:: 4 * val])
    one = Prepared(shapes.labels, (*samples, *shapes.of("test")), "one")
    result = fitted(lite0, TrainConfig(epochs=20, views=1), prepared=one)
    held_out = {sample.sha256: sample.index for sample in samples}
    assert [held_out[image] for image in result.calibration.images] == result.calibration.targets_N.tolist()
    classes = result.calibration.targets_N.tolist()
    assert sorted(classes) == ([0, 0, 1, 1, 2, 2] if val == 1 else [0, 0, 2, 2])  # one image of a class is never held out
    assert (compute_logits(lite0, one.of("test"), spec, CPU).argmax(1) == targets(one, "test")).mean() > 0.4


def test_views_are_further_rows_of_the_same_images(fitted: Fitted, small: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    data = record(monkeypatch)
    fitted(small, PLAIN.model_copy(update={"views": 2, "epochs": 1}))
    assert [table.shape for table in data[0].tables] == [(48, 1024)] * 3
    assert len({table[0].tobytes() for table in data[0].tables}) == 3


def record(monkeypatch: pytest.MonkeyPatch) -> list[HeadData]:
    """The data that later calls of `train_heads` get."""
    seen: list[HeadData] = []

    def recording(data: HeadData, *arguments: Any) -> TrainedHead:
        seen.append(data)
        return train_heads(data, *arguments)

    monkeypatch.setattr(head, "train_heads", recording)
    return seen


@pytest.mark.parametrize(
    ("settings", "images", "classes", "expected"),
    [
        ({}, 200, 10, 4),
        ({}, 1268, 81, 2),
        ({}, 1268, 10, 0),
        ({}, 5000, 200, 0),
        ({"augment": "none"}, 200, 10, 0),
        ({"views": 3}, 5000, 200, 3),
    ],
)
def test_fewer_images_get_more_views(settings: dict[str, Any], images: int, classes: int, expected: int) -> None:
    assert head.number_of_views(TrainConfig(**settings), images, classes) == expected


def test_rows_are_read_over_several_tables_centered_and_scaled() -> None:
    tables = [np.random.default_rng(n).normal(size=(4, 5)).astype(np.float32) for n in range(3)]
    rows = FeatureRows(tables)
    order = np.array([[11, 0, 3], [2, 4, 0]])
    mean_D = tables[0].mean(0)
    expected = (np.concatenate(tables)[order] - mean_D) / np.sqrt(((tables[0] - mean_D) ** 2).mean())
    assert len(rows) == 12
    np.testing.assert_allclose(rows[order], expected, rtol=0, atol=1e-5)


def noise(images: int, *, classes: int = 2) -> HeadData:
    """Features that do not depend on the class, in two folds."""
    rng = np.random.default_rng(0)
    features_MD = rng.normal(size=(images, 50)).astype(np.float32)
    return HeadData(tables=[features_MD], targets_M=rng.integers(0, classes, images), folds_M=np.arange(images) % 2)


def logits(trained: TrainedHead, features_ND: np.ndarray) -> np.ndarray:
    return features_ND @ trained.weight_KD.numpy().T + trained.bias_K.numpy()


def test_the_epoch_with_the_best_held_out_loss_ships() -> None:
    data, config = noise(60), TrainConfig(patience=7, learning_rate=0.01)
    trained = train_heads(data, config, torch.ones(2), 0)
    history = trained.history
    assert nll(trained.held_out_logits_NK, data.targets_M) == pytest.approx(history.best_loss, abs=1e-5)
    # Heads overfit to noise quickly, so the best epoch is an early one. Seven more follow.
    assert len(history.epochs) == history.best_epoch + 7 < 200
    assert history.epochs[-1]["val_loss"] > history.best_loss
    up_to_the_best = train_heads(data, config.model_copy(update={"epochs": history.best_epoch}), torch.ones(2), 0)
    assert torch.equal(trained.weight_KD, up_to_the_best.weight_KD)


def test_a_held_out_image_does_not_influence_its_own_logits_but_those_of_others_and_the_shipped_head() -> None:
    data, config = noise(40, classes=3), TrainConfig(epochs=3, refit=True)
    changed_M = data.targets_M.copy()
    changed_M[6] = (changed_M[6] + 1) % 3  # of fold 0
    other = HeadData(tables=data.tables, targets_M=changed_M, folds_M=data.folds_M)
    before, after = (train_heads(one, config, torch.ones(3), 0) for one in (data, other))
    same = (before.held_out_logits_NK == after.held_out_logits_NK).all(1)
    assert same[0::2].all()
    assert not same[1::2].any()
    assert not torch.equal(before.weight_KD, after.weight_KD)


@pytest.mark.long
def test_on_shuffled_labels_the_held_out_accuracy_is_that_of_chance_although_views_of_an_image_are_alike() -> None:
    rng, images, classes = np.random.default_rng(0), 600, 3
    features_MD = rng.normal(size=(images, 200)).astype(np.float32)
    views = [features_MD + rng.normal(scale=0.1, size=features_MD.shape).astype(np.float32) for _ in range(2)]
    targets_M = rng.integers(0, classes, images)
    data = HeadData(tables=[features_MD, *views], targets_M=targets_M, folds_M=np.arange(images) % 5)
    trained = train_heads(data, TrainConfig(epochs=10, dropout=0, learning_rate=0.01), torch.ones(classes), seed=0)
    assert (logits(trained, features_MD).argmax(1) == targets_M).mean() > 0.55  # it has learned the images themselves
    held_out = (trained.held_out_logits_NK.argmax(1) == targets_M[trained.held_out_rows]).mean()
    assert held_out == pytest.approx(1 / classes, abs=3 * np.sqrt(2 / 9 / images))


def test_images_without_a_fold_are_trained_on_and_not_held_out() -> None:
    data = noise(40)
    data = HeadData(tables=data.tables, targets_M=data.targets_M, folds_M=np.where(np.arange(40) < 30, NEVER, 0))
    trained = train_heads(data, TrainConfig(epochs=2, refit=False), torch.ones(2), 0)
    assert trained.held_out_rows.tolist() == list(range(30, 40))
    np.testing.assert_allclose(trained.held_out_logits_NK, logits(trained, data.tables[0][30:]), rtol=0, atol=1e-5)


def test_the_number_of_epochs_in_the_configuration_is_the_limit() -> None:
    assert len(train_heads(noise(20), TrainConfig(epochs=3), torch.ones(2), 0).history.epochs) == 3


def test_heads_with_different_settings_side_by_side_get_the_weights_that_they_get_alone() -> None:
    data = noise(60)
    configs = [
        TrainConfig(**{"patience": 3, "epochs": 30, "batch_size": 16} | settings)
        for settings in (
            {},
            {"dropout": 0},
            {"dropout": 0.2, "learning_rate": 0.05},
            {"weight_decay": 10},
            {"label_smoothing": 0.2},
        )
    ]
    together = train_side_by_side(data, configs, torch.ones(2), 0)
    assert len({len(each.history.epochs) for each in together}) > 1  # each stops when it is time for it
    for config, one in zip(configs, together, strict=True):
        alone = train_heads(data, config, torch.ones(2), 0)
        assert torch.equal(one.weight_KD, alone.weight_KD)
        assert torch.equal(one.bias_K, alone.bias_K)
        assert (one.held_out_logits_NK == alone.held_out_logits_NK).all()
        assert one.history == alone.history
    assert len({each.weight_KD.numpy().tobytes() for each in together}) == len(configs)


def rare_recall(prepared: Prepared, config: TrainConfig, data: HeadData) -> float:
    trained = train_heads(data, config, class_weights(prepared, config), 0)
    predicted_N = logits(trained, data.tables[0]).argmax(1)
    return float((predicted_N[data.targets_M == 1] == 1).mean())


@pytest.mark.long
def test_class_weights_find_more_of_a_rare_class(shapes: Prepared) -> None:
    rng = np.random.default_rng(0)
    features_MD = np.concatenate([rng.normal(0, 1, (180, 2)), rng.normal(1, 1, (20, 2))]).astype(np.float32)
    data = HeadData(tables=[features_MD], targets_M=np.array([0] * 180 + [1] * 20), folds_M=np.arange(200) % 2)
    common, rare = shapes.of("train")[0], shapes.of("train")[12]
    val = tuple(shapes.of("val")[::4][:2])
    prepared = Prepared(("disc", "frame"), (*[common] * 180, *[rare] * 20, *val), "")
    config = {"epochs": 100, "learning_rate": 0.02, "patience": 100, "dropout": 0}
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
    data = HeadData(tables=[features_ND.astype(np.float32)], targets_M=noise(40).targets_M, folds_M=np.arange(40) % 2)
    with pytest.raises(TrainingError, match=f"the loss became (nan|inf) in {where}") as caught:
        train_heads(data, TrainConfig(**settings), torch.ones(2), 0)
    assert caught.value.code == "loss_not_finite"


def test_constant_features_do_not_cause_a_division_by_zero(fitted: Fitted, small: Network) -> None:
    for parameter in small.backbone.parameters():
        nn.init.zeros_(parameter)
    result = fitted(small, PLAIN)
    assert math.isfinite(result.history.best_loss)
    assert torch.isfinite(small.classifier.weight).all()
