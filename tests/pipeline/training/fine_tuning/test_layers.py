import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.training import optimization
from edgeline.pipeline.training.fine_tuning import layers
from edgeline.pipeline.training.fine_tuning.layers import LayerTrainer
from edgeline.pipeline.training.fine_tuning.plan import unfreeze
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.cases import cases
from tests.support.layer_training import (
    STRATEGIES,
    Fitted,
    config,
    context,
    plan,
)


def stage_names(strategy: str) -> dict[str, Any]:
    return {"unfreeze": ["blocks.5", "blocks.6"]} if strategy == "partial" else {}


@pytest.mark.long
@pytest.mark.parametrize("strategy", cases({name: name for name in STRATEGIES}, quick=["lp-ft"]))
def test_every_strategy_learns_the_shapes(strategy: str, fitted: Fitted, lite0: Network, tmp_path: Path) -> None:
    result = fitted(
        lite0, config(strategy, epochs=3, augment="light", **stage_names(strategy)), spec=PreprocessSpec(height=64, width=64)
    )
    history = result.history
    assert len(history.epochs) == 3
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"]
    if strategy != "scratch":
        assert max(epoch["val_accuracy"] for epoch in history.epochs) >= 0.6  # a third by chance
    assert result.calibration.logits_NK.shape == (12, 3)
    assert (result.out_of_fold is None) == (strategy == "scratch")


@pytest.mark.long
def test_it_ends_with_the_weights_that_were_best_on_validation(
    fitted: Fitted, small: Network, shapes: Prepared, tmp_path: Path
) -> None:
    history = fitted(small, config("scratch", learning_rate=0.02, patience=2, epochs=6)).history
    logits_NK = layers.compute_val_logits(context(small, shapes, config(), tmp_path))
    targets_N = torch.tensor([sample.index for sample in shapes.of("val")])
    assert nn.functional.cross_entropy(logits_NK, targets_N).item() == pytest.approx(history.best_loss, abs=1e-6)
    assert history.best_epoch < len(history.epochs)  # so the last weights are not the best


def test_a_last_batch_of_one_image_is_left_out_where_batch_norms_learn(fitted: Fitted, small: Network) -> None:
    # 36 images; over one image of 1 x 1 features a batch norm cannot be computed.
    assert len(fitted(small, config("scratch", batch_size=35, epochs=1)).history.epochs) == 1


@pytest.mark.long
def test_with_refit_the_weights_that_ship_learn_from_validation_too_for_the_selected_number_of_epochs(
    fitted: Fitted, small_template: Network, shapes: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[tuple[int, int]] = []
    original = LayerTrainer._epoch

    def recording(trainer: LayerTrainer, epoch: int) -> float:
        epochs.append((len(trainer.samples), epoch))
        return original(trainer, epoch)

    monkeypatch.setattr(LayerTrainer, "_epoch", recording)
    result = fitted(copy.deepcopy(small_template), config("full", refit=True, epochs=3))
    assert epochs == [(36, 1), (36, 2), (36, 3), *((48, epoch) for epoch in range(1, result.history.best_epoch + 1))]
    assert result.calibration.images == [sample.sha256 for sample in shapes.of("val")]


def test_a_batch_in_parts_has_the_gradient_and_the_loss_of_the_whole(small: Network, shapes: Prepared, tmp_path: Path) -> None:
    given = context(small, shapes, config("full", mixup=0.2, label_smoothing=0.1, dropout=0.0), tmp_path)
    small.head[0].p = 0.0
    trainer = LayerTrainer(given, plan("full", small, shapes, tmp_path), shapes.of("train"), tmp_path)
    unfreeze(small, trainer.plan, 99)
    batch = next(trainer._batches(1, torch.Generator()))
    targets_B = torch.tensor([sample.index for sample in batch.own])
    labels = optimization.SoftTargets(first_B=targets_B, second_B=targets_B.flip(0), share=0.7, total=12.0, images=12)
    whole, parts = [], []
    for number, seen in ((1, whole), (3, parts)):
        trainer.parts = number
        loss = trainer._accumulate(batch.pixels_SHW3.float(), labels, None)
        assert loss is not None
        seen += [loss, *(parameter.grad.clone() for parameter in small.parameters() if parameter.grad is not None)]
    assert len(whole) > 100
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


@pytest.mark.long
def test_a_batch_that_does_not_fit_is_split_and_this_is_reported(fitted: Fitted, small: Network) -> None:
    def run_out(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 4 and module.training:  # a stand-in: to fill this machine's memory would hit its other users
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    small.backbone.register_forward_pre_hook(run_out)
    result = fitted(small, config("full", epochs=1))
    assert [finding.message for finding in result.findings] == [
        "A batch of 12 images does not fit into memory; its gradients are accumulated over 4 parts of at most 3."
    ]


def test_a_gradient_is_clipped_to_the_configured_norm(fitted: Fitted, small: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    original = torch.optim.AdamW.step

    def recording(optimizer: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return original(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    fitted(small, config("full", epochs=1, clip_norm=0.01))
    assert norms[-3:] == pytest.approx([0.01] * 3, rel=1e-3)


def test_balanced_sampling_draws_each_class_equally_often(shapes: Prepared) -> None:
    rare = [sample for sample in shapes.of("train") if sample.index != 2][:14]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([layers.draw_order(rare, "balanced", generator) for _ in range(200)])
    share = sum(rare[row].index == 1 for row in drawn.tolist()) / len(drawn)
    assert sum(sample.index == 1 for sample in rare) == 2
    assert share == pytest.approx(0.5, abs=0.05)
    assert sorted(layers.draw_order(rare, "shuffle", generator).tolist()) == list(range(14))


DIVERGED = (
    r"the loss became (nan|inf) in epoch [12], in the batch of (\w+/\d+\.png, ){2}\w+/\d+\.png and 9 more; "
    r"lower train\.learning_rate"
)


def test_a_diverging_loss_stops_training_and_names_the_epoch_and_the_batch(fitted: Fitted, small: Network) -> None:
    with pytest.raises(TrainingError, match=DIVERGED) as caught:
        fitted(small, config("full", learning_rate=1e30))
    assert caught.value.code == "loss_not_finite"


def test_a_batch_that_does_not_fit_into_memory_is_reported(fitted: Fitted, small: Network) -> None:
    def run_out(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:  # a stand-in: to fill this machine's memory would hit its other users
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    small.backbone.register_forward_pre_hook(run_out)
    with pytest.raises(TrainingError, match=r"a batch of 1 images .*; choose a smaller model") as caught:
        fitted(small, config("full"))
    assert caught.value.code == "out_of_memory"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gpu_learns_in_mixed_precision(strategy: str, fitted: Fitted, lite0: Network) -> None:
    changes = {"spec": PreprocessSpec(height=64, width=64), "device": torch.device("cuda")}
    history = fitted(lite0, config(strategy, epochs=3), **changes).history
    assert all(math.isfinite(epoch["val_loss"]) for epoch in history.epochs)
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"]
