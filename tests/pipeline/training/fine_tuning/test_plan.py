from pathlib import Path
from typing import Any

import pytest
from torch import nn

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network, stages
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training import optimization
from edgeline.pipeline.training.fine_tuning import layers
from edgeline.pipeline.training.fine_tuning.layers import LayerTrainer
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan, parameter_groups, unfreeze, unfrozen_stages
from edgeline.pipeline.training.history import TrainingHistory
from edgeline.pipeline.training.strategies import lp_ft
from edgeline.serve.errors import ConfigError
from tests.support.layer_training import PLANS, Fitted, changed, config, context, interrupt, plan, state_of, trained_stages

# Learning rates


def test_full_gives_every_stage_the_same_rate(small: Network, shapes: Prepared, tmp_path: Path) -> None:
    peaks = plan("full", small, shapes, tmp_path, learning_rate=0.01).peaks
    assert peaks == dict.fromkeys([*(stage.name for stage in stages(small.backbone)), "head"], 0.01)


@pytest.mark.parametrize("strategy", ["lp-ft", "differential", "gradual"])
def test_other_strategies_lower_the_rate_towards_the_input_and_raise_it_for_the_head(
    strategy: str, small: Network, shapes: Prepared, tmp_path: Path
) -> None:
    peaks = plan(strategy, small, shapes, tmp_path, learning_rate=0.01, layer_decay=0.5).peaks
    rates = list(peaks.values())
    assert list(peaks) == [*(stage.name for stage in stages(small.backbone)), "head"]
    assert rates[-1] == 0.01 * lp_ft.HEAD_FACTOR
    assert rates[-2] == 0.01
    assert all(slower == pytest.approx(faster / 2) for slower, faster in zip(rates[:-2], rates[1:-1], strict=True))


@pytest.mark.parametrize("strategy", PLANS)
def test_every_parameter_is_in_one_group(strategy: str, small: Network, shapes: Prepared, tmp_path: Path) -> None:
    groups = parameter_groups(small, plan(strategy, small, shapes, tmp_path))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in small.parameters())


def test_rates_warm_up_and_then_fall_to_zero() -> None:
    factors = [optimization.learning_rate_factor(config(), step / 1000, TrainingHistory()) for step in range(1001)]
    highest = factors.index(max(factors))
    assert 40 <= highest <= 60
    assert 0 < factors[0] < 0.1
    assert factors[: highest + 1] == sorted(factors[: highest + 1])
    assert factors[highest:] == sorted(factors[highest:], reverse=True)
    assert factors[-1] == pytest.approx(0, abs=1e-9)


def test_with_plateau_the_rate_falls_whenever_the_validation_loss_has_stopped_falling() -> None:
    losses, factors = [3.0, 2.0, 2.1, 2.2, 1.5, 1.6, 1.6, 1.6, 1.6], []
    for count in range(len(losses) + 1):
        history = TrainingHistory([{"val_loss": loss} for loss in losses[:count]])
        factors.append(optimization.learning_rate_factor(config("full", schedule="plateau"), 0.5, history))
    lower = optimization.PLATEAU_FACTOR
    assert factors == pytest.approx([1, 1, 1, 1, lower, lower, lower, lower**2, lower**2, lower**3])


@pytest.mark.long
def test_every_step_advances_the_schedule(fitted: Fitted, small: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    positions: list[float] = []
    original = layers.learning_rate_factor

    def recording(config: TrainConfig, progress: float, history: TrainingHistory) -> float:
        positions.append(progress)
        return original(config, progress, history)

    monkeypatch.setattr(layers, "learning_rate_factor", recording)
    fitted(small, config("full", epochs=2))
    assert positions == [step / 6 for step in range(6)]  # two epochs of three batches


def test_by_default_an_epoch_has_several_passes_over_few_images(small: Network, shapes: Prepared, tmp_path: Path) -> None:
    given = context(small, shapes, config("full", epochs=0), tmp_path)
    trainer = LayerTrainer(given, LayerPlan(peaks={"head": 0.1}), shapes.of("train"), tmp_path)
    assert (trainer.epochs, trainer.passes, trainer.total_steps) == (8, 7, 8 * 7 * 3)


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "sgd", "momentum": 0.9, "learning_rate": 3e-4}, {"optimizer": "adam"}, {"schedule": "plateau"}],
)
def test_other_optimizers_and_schedules_learn_too(settings: dict[str, Any], fitted: Fitted, small: Network) -> None:
    history = fitted(small, config("full", **{"learning_rate": 0.003} | settings)).history
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"]


# Freezing


@pytest.mark.long
def test_gradual_unfreezes_from_the_head_to_the_input_within_two_thirds_of_the_steps(
    small: Network, shapes: Prepared, tmp_path: Path
) -> None:
    gradually = plan("gradual", small, shapes, tmp_path)
    counts = [unfrozen_stages(small, gradually, step / 300) for step in range(300)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert set(counts) == set(range(len(stages(small.backbone)) + 1))
    assert counts[200] == len(stages(small.backbone))


@pytest.mark.parametrize("strategy", ["lp-ft", "full", "differential", "scratch"])
def test_the_other_strategies_unfreeze_every_stage_at_once(
    strategy: str, small: Network, shapes: Prepared, tmp_path: Path
) -> None:
    assert unfrozen_stages(small, plan(strategy, small, shapes, tmp_path), 0.0) == len(stages(small.backbone))


def batch_norms(network: Network) -> list[bool]:
    return [module.training for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def test_batch_norms_keep_their_statistics_except_from_scratch(small: Network, shapes: Prepared, tmp_path: Path) -> None:
    for strategy in PLANS:
        chosen = plan(strategy, small, shapes, tmp_path)
        unfreeze(small, chosen, unfrozen_stages(small, chosen, 1.0))
        assert set(batch_norms(small)) == {strategy == "scratch"}
        assert all(parameter.requires_grad for parameter in small.parameters())
        assert small.head.training


def test_a_frozen_stage_updates_neither_weights_nor_statistics(small: Network, shapes: Prepared, tmp_path: Path) -> None:
    unfreeze(small, plan("gradual", small, shapes, tmp_path), 5)
    frozen = stages(small.backbone)[:-5]
    assert not any(parameter.requires_grad for stage in frozen for parameter in stage.parameters())
    assert not any(module.training for stage in frozen for top in stage.modules for module in top.modules())
    assert all(parameter.requires_grad for stage in stages(small.backbone)[-5:] for parameter in stage.parameters())


def test_partial_changes_only_the_named_stages_and_the_head(fitted: Fitted, small: Network) -> None:
    before, head = state_of(small.backbone), state_of(small.head)
    fitted(small, config("partial", epochs=1))
    assert trained_stages(small.backbone, before) == ["features.11", "features.12"]
    assert changed(head, small.head) == {"1.weight", "1.bias"}


def test_an_unknown_stage_is_an_error_with_the_nearest_name_before_anything_is_computed(
    fitted: Fitted, small: Network, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no stage 'feature.12'; did you mean features.12\?"):
        fitted(small, config("partial", unfreeze=["feature.12"]))
    assert list(tmp_path.iterdir()) == []


def test_gradual_trains_the_upper_half_in_the_first_third_of_the_steps_and_nothing_that_is_frozen(
    fitted: Fitted, small: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(small.backbone)
    interrupt(monkeypatch, epoch=2)
    with pytest.raises(KeyboardInterrupt):
        fitted(small, config(epochs=3))
    moved, names = trained_stages(small.backbone, before), [stage.name for stage in stages(small.backbone)]
    assert moved == names[-len(moved) :]
    assert 0 < len(moved) <= len(names) // 2
    assert not any("running" in name for name in changed(before, small.backbone))


def test_more_stages_than_there_are_are_all_of_them(small: Network, shapes: Prepared, tmp_path: Path) -> None:
    all_stages = len(stages(small.backbone))
    unfreeze(small, plan("full", small, shapes, tmp_path), all_stages + 1)
    assert all(parameter.requires_grad for parameter in small.parameters())
