from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.evaluation.plots import write_rates_png
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.training.fine_tuning.layers import LayerTrainer
from edgeline.pipeline.training.search.rate_curve import describe_losses, has_diverged, longest_fall, smooth
from edgeline.pipeline.training.search.rate_finder import find_rate, strategy_to_test
from edgeline.pipeline.training.strategies import lp_ft
from edgeline.serve.errors import ConfigError, TrainingError
from edgeline.serve.preprocess import PreprocessSpec

RATES = np.geomspace(1e-6, 1, 100)


def context(network: Network, prepared: Prepared, spec: PreprocessSpec, folder: Path, **settings: Any) -> TrainingContext:
    config = TrainConfig(**{"views": 0, "batch_size": 12} | settings)
    given = {"spec": spec, "seed": 0, "folder": folder, "cache": folder / "cache", "device": torch.device("cpu")}
    return TrainingContext(network=network, prepared=prepared, config=config, **given)


def basin(rates: np.ndarray, *, best: float = 1e-3) -> list[float]:
    """The loss as the range test usually finds it: flat, falling around a rate, then rising steeply."""
    steps = np.log10(rates / best)
    return list(1 - 0.6 / (1 + np.exp(-4 * (steps + 0.5))) + 2.0 ** (6 * (steps - 1)))


def test_the_suggested_rate_is_where_the_loss_falls_below_that_of_the_lowest_loss() -> None:
    curve = describe_losses("full", RATES.tolist(), basin(RATES))
    assert 1e-5 < curve.suggested < curve.lowest < 1e-2
    assert curve.falls
    assert curve.smoothed[list(RATES).index(curve.suggested)] < curve.smoothed[0]
    assert curve.diverged is not None
    assert curve.diverged > curve.lowest


def test_noise_of_single_batches_does_not_move_the_suggestion_by_more_than_an_order_of_magnitude() -> None:
    quiet = describe_losses("full", RATES.tolist(), basin(RATES)).suggested
    for seed in range(5):
        noise = 0.1 * np.random.default_rng(seed).normal(size=100)
        noisy = describe_losses("full", RATES.tolist(), list(np.array(basin(RATES)) + noise)).suggested
        assert 0.1 < noisy / quiet < 10


@pytest.mark.parametrize("seed", range(3))
def test_without_a_clear_fall_the_suggestion_is_a_third_of_where_the_loss_begins_to_rise(seed: int) -> None:
    noise = 0.15 * np.random.default_rng(seed).exponential(size=100)  # of a trained head's batches: mostly low
    curve = describe_losses("lp-ft", RATES.tolist(), list(0.05 + noise + (RATES / 1e-3) ** 2))
    assert not curve.falls
    assert 1e-4 < curve.rises < 3e-3
    assert curve.suggested == pytest.approx(curve.rises / 3)


def test_the_longest_fall_may_be_interrupted() -> None:
    assert longest_fall([5.0, 4.0, 4.5, 3.0, 2.0, 9.0, 1.0, 8.0]) == (0, 6)
    assert longest_fall([1.0, 2.0, 3.0]) == (0, 0)


def test_smoothing_keeps_a_constant_and_divergence_is_a_multiple_of_the_lowest() -> None:
    assert smooth([2.0] * 30) == pytest.approx([2.0] * 30)
    assert not has_diverged([1.0] * 20)
    assert has_diverged([1.0] * 20 + [100.0] * 3)


def test_a_loss_that_is_no_number_ends_the_curve_and_one_from_the_start_is_an_error() -> None:
    curve = describe_losses("full", RATES.tolist(), [*basin(RATES)[:60], float("nan")])
    assert len(curve.losses) == len(curve.rates) == 60
    assert curve.diverged == pytest.approx(RATES[59])
    with pytest.raises(TrainingError, match="the loss is not finite after 3 steps"):
        describe_losses("full", RATES.tolist(), [1.0, 1.0, 1.0, float("nan")])


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["lp-ft", "scratch"])
def test_the_network_is_as_before_and_the_loss_of_each_step_is_drawn(
    strategy: str, small: Network, shapes: Prepared, spec: PreprocessSpec, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    found = context(small, shapes, spec, tmp_path / "run", strategy=strategy)
    curve = find_rate(found, 12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert all(parameter.requires_grad for parameter in small.parameters())
    assert not small.training
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["cache"]
    assert 5 < len(curve.losses) <= 12
    assert len(set(curve.losses)) > 5
    assert find_rate(found, 12) == curve
    write_rates_png(tmp_path / "rates.png", curve)
    assert (tmp_path / "rates.png").stat().st_size > 5000


def test_each_step_uses_its_factor_of_the_planned_rates_and_changes_every_planned_stage(
    small: Network, shapes: Prepared, spec: PreprocessSpec, tmp_path: Path
) -> None:
    own = context(small, shapes, spec, tmp_path, strategy="lp-ft", learning_rate=1.0)
    torch.nn.init.normal_(small.classifier.weight, std=0.1)
    before = {name: parameter.detach().clone() for name, parameter in small.named_parameters()}
    trainer = LayerTrainer(own, lp_ft.plan(own), shapes.of("train"), tmp_path / "trainer")
    rates = []
    for _ in trainer.steps([1e-4, 2e-4, 4e-4]):
        rates.append([group["lr"] / group["peak"] for group in trainer.state.optimizer.param_groups])
    assert rates == [pytest.approx([factor] * len(rates[0])) for factor in (1e-4, 2e-4, 4e-4)]
    assert not any(torch.equal(parameter, before[name]) for name, parameter in small.named_parameters())


def test_auto_is_tested_as_lp_ft_and_a_strategy_without_layers_is_an_error_that_names_the_others() -> None:
    assert strategy_to_test("auto") == "lp-ft"
    assert strategy_to_test("gradual") == "gradual"
    for strategy in ("head", "few-shot"):
        with pytest.raises(ConfigError, match=f"strategy={strategy} has no learning rate .* lp-ft, full, .* train.sweep=true"):
            strategy_to_test(strategy)
