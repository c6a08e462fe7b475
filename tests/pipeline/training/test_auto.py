from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.context import HeldOutLogits, TrainingContext, TrainingResult
from edgeline.pipeline.training.history import TrainingHistory
from edgeline.pipeline.training.search.report import read_sweep
from edgeline.pipeline.training.strategies import auto
from edgeline.serve.preprocess import PreprocessSpec


@pytest.fixture(name="make_context")
def context_on_shapes(shapes: Prepared, spec: PreprocessSpec, tmp_path: Path) -> Callable[..., TrainingContext]:
    def make(network: Network, **settings: Any) -> TrainingContext:
        config = TrainConfig(**{"strategy": "auto", "views": 0} | settings)
        given = {"spec": spec, "prepared": shapes, "seed": 0, "folder": tmp_path, "cache": tmp_path / "cache"}
        return TrainingContext(network=network, config=config, device=torch.device("cpu"), **given)

    return make


def held_out(correct: str) -> HeldOutLogits:
    """Two classes; `1` stands for an image that is classified correctly."""
    logits_NK = np.array([[0.0, 1.0] if one == "1" else [1.0, 0.0] for one in correct], np.float32)
    images = [f"{number:064}" for number in range(len(correct))]
    return HeldOutLogits(logits_NK=logits_NK, targets_N=np.ones(len(correct), int), images=images)


def result(network: Network, weight: float, correct: str) -> Callable[[TrainingContext], TrainingResult]:
    """A strategy that sets all weights to a number and has these held-out answers."""

    def fit(context: TrainingContext) -> TrainingResult:
        torch.nn.init.constant_(network.classifier.weight, weight)
        return TrainingResult(history=TrainingHistory(), calibration=held_out(correct), out_of_fold=held_out(correct))

    return fit


CHOICES = {
    "head, if few-shot is better by chance": ("1110", "1111", "1111", 0.0, "head", 1.0),
    "few-shot, if it is clearly better": ("000011", "111111", "111111", 0.0, "few-shot", 2.0),
    "lp-ft, if it is within the budget and not worse": ("1110", "1110", "1110", 1e6, "lp-ft", 3.0),
    "head, if lp-ft is worse": ("1110", "1110", "1100", 1e6, "head", 1.0),
}


@pytest.mark.parametrize(("head", "few", "tuned", "budget", "name", "weight"), CHOICES.values(), ids=CHOICES)
def test_the_strategy_with_the_best_held_out_answers_is_kept_with_its_weights(
    head: str,
    few: str,
    tuned: str,
    budget: float,
    name: str,
    weight: float,
    small: Network,
    make_context: Callable[..., TrainingContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module, answer, number in ((auto.head, head, 1.0), (auto.few_shot, few, 2.0), (auto.lp_ft, tuned, 3.0)):
        monkeypatch.setattr(module, "fit", result(small, number, answer))
    chosen = auto.fit(make_context(small, budget=budget))
    assert chosen.strategy == name
    assert (small.classifier.weight == weight).all()
    assert chosen.findings[-1].message.startswith(f"Strategy `{name}` was chosen: ")


def test_few_shot_is_not_tried_on_many_images(
    small: Network, make_context: Callable[..., TrainingContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "MAX_FEW", 47)  # there are 48
    monkeypatch.setattr(auto.head, "fit", result(small, 1.0, "0000"))
    monkeypatch.setattr(auto.few_shot, "fit", result(small, 2.0, "1111"))
    chosen = auto.fit(make_context(small))
    assert chosen.strategy == "head"
    assert "few-shot" not in chosen.findings[-1].message


@pytest.mark.parametrize("refit", [True, False])
def test_real_shapes_get_a_frozen_backbone_on_a_cpu_with_the_reason_and_the_estimated_time(
    refit: bool, lite0: Network, make_context: Callable[..., TrainingContext]
) -> None:
    before = {name: tensor.clone() for name, tensor in lite0.backbone.state_dict().items()}
    chosen = auto.fit(make_context(lite0, refit=refit))
    assert chosen.strategy in ("head", "few-shot")
    assert all(torch.equal(tensor, before[name]) for name, tensor in lite0.backbone.state_dict().items())
    assert "training all layers (`lp-ft`) would take about a minute here and needs train.budget" in chosen.findings[-1].message


def test_a_sweep_is_one_of_the_head(lite0: Network, make_context: Callable[..., TrainingContext], tmp_path: Path) -> None:
    chosen = auto.fit(make_context(lite0, sweep=True, epochs=2))
    sweep = read_sweep(tmp_path)
    assert sweep is not None
    if chosen.strategy == "head":
        shipped = sweep.trained[sweep.chosen].accuracy
        assert (chosen.calibration.logits_NK.argmax(1) == chosen.calibration.targets_N).mean() == pytest.approx(shipped)


def test_the_estimate_grows_with_the_epochs(small: Network, make_context: Callable[..., TrainingContext]) -> None:
    once, twice = (auto.estimated_minutes(make_context(small, epochs=epochs)) for epochs in (1, 2))
    assert twice == pytest.approx(2 * once)
