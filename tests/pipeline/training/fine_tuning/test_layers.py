import copy
import logging
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network, stages
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training import optimization
from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning import layers, resume
from edgeline.pipeline.training.fine_tuning.layers import LayerTrainer
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan, parameter_groups, unfreeze, unfrozen_stages
from edgeline.pipeline.training.fine_tuning.resume import PREVIOUS, RESUME
from edgeline.pipeline.training.history import TrainingHistory
from edgeline.pipeline.training.strategies import differential, full, gradual, lp_ft, scratch
from edgeline.pipeline.training.train import STRATEGIES as FIT
from edgeline.serve.errors import ConfigError, TrainingError
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.cases import cases

CPU = torch.device("cpu")
STRATEGIES = ("lp-ft", "full", "partial", "differential", "gradual", "scratch")
PLANS = {
    "lp-ft": lp_ft.plan,
    "full": full.plan,
    "differential": differential.plan,
    "gradual": gradual.plan,
    "scratch": scratch.plan,
}
EPOCHS = 4
State = dict[str, Tensor]
Fitted = Callable[..., TrainingResult]
SPEC = PreprocessSpec(height=32, width=32)


def config(strategy: str = "gradual", **settings: Any) -> TrainConfig:
    named = {"unfreeze": ["features.11", "features.12"]} if strategy == "partial" else {}
    return TrainConfig(
        **{"strategy": strategy, "epochs": EPOCHS, "batch_size": 12, "views": 0, "refit": False, **named, **settings}
    )


@pytest.fixture(name="fitted")
def fit_on_shapes(shapes: Prepared, tmp_path: Path) -> Fitted:
    """`fitted(network, config, **changes)`: the result of training it on the shapes, in the test's folder."""
    return lambda network, config, **changes: FIT[config.strategy](context(network, shapes, config, tmp_path, **changes))


def context(network: Network, prepared: Prepared, config: TrainConfig, folder: Path, **changes: Any) -> TrainingContext:
    given = {"spec": SPEC, "seed": 1, "cache": folder / "cache", "device": CPU}
    return TrainingContext(network=network, prepared=prepared, config=config, folder=folder, **given | changes)


def state_of(module: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(before: State, module: nn.Module) -> set[str]:
    """The names of the tensors that have changed in any bit."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def trained_stages(module: nn.Module, before: State) -> list[str]:
    """The names of the stages in which a weight or a statistic has changed."""
    moved = changed(before, module)
    names = {id(tensor): name for name, tensor in module.state_dict(keep_vars=True).items()}
    return [
        stage.name
        for stage in stages(module)
        if any(names[id(t)] in moved for m in stage.modules for t in m.state_dict(keep_vars=True).values())
    ]


# Learning rates


def plan(strategy: str, network: Network, prepared: Prepared, folder: Path, **settings: Any) -> LayerPlan:
    return PLANS[strategy](context(network, prepared, config(strategy, **settings), folder))


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


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "sgd", "momentum": 0.9, "learning_rate": 3e-4}, {"optimizer": "adam"}, {"schedule": "plateau"}],
)
def test_other_optimizers_and_schedules_learn_too(settings: dict[str, Any], fitted: Fitted, small: Network) -> None:
    history = fitted(small, config("full", **{"learning_rate": 0.003} | settings)).history
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"]


# Freezing


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


def interrupt(monkeypatch: pytest.MonkeyPatch, *, epoch: int, batch: int = 0) -> None:
    """Interrupt training at a batch of an epoch, as Ctrl-C would."""
    original = LayerTrainer._batches

    def broken(trainer: LayerTrainer, number: int, generator: torch.Generator) -> Iterator[Any]:
        for position, found in enumerate(original(trainer, number, generator)):
            if (number, position) == (epoch, batch):
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(LayerTrainer, "_batches", broken)


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


# Training


def stage_names(strategy: str) -> dict[str, Any]:
    return {"unfreeze": ["blocks.5", "blocks.6"]} if strategy == "partial" else {}


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


# Resuming after a kill


@pytest.fixture(scope="module", name="uninterrupted")
def weights_of_an_uninterrupted_run(
    small_template: Network, shapes: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> tuple[State, TrainingResult]:
    network, folder = copy.deepcopy(small_template), tmp_path_factory.mktemp("uninterrupted")
    result = gradual.fit(context(network, shapes, config(), folder))
    return state_of(network), result


def during_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, epoch=3, batch=1)


def before_the_first_state(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, epoch=1, batch=2)


def between_the_two_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old state has its other name, the new one is not there."""
    original = resume.replace_file

    def broken(path: Path, write: Callable[[Path], None]) -> None:
        if path.name == RESUME and (path.parent / PREVIOUS).exists():
            raise KeyboardInterrupt
        original(path, write)

    monkeypatch.setattr(resume, "replace_file", broken)


def after_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = layers.compute_val_logits

    def broken(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) > EPOCHS:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(layers, "compute_val_logits", broken)


KILLS = {
    "before the first state": (before_the_first_state, set()),
    "during an epoch": (during_an_epoch, {RESUME, PREVIOUS}),
    "between the two states": (between_the_two_states, {PREVIOUS}),
    "after the last epoch": (after_the_last_epoch, {RESUME, PREVIOUS}),
}


@pytest.mark.parametrize(("kill", "left"), cases(KILLS, quick=["during an epoch"]))
def test_an_interrupted_training_ends_with_the_same_weights_as_an_uninterrupted_one(
    kill: Callable[[pytest.MonkeyPatch], None],
    left: set[str],
    fitted: Fitted,
    small_template: Network,
    uninterrupted: tuple[State, TrainingResult],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            fitted(copy.deepcopy(small_template), config())
    assert {path.name for path in (tmp_path / "selection").iterdir()} == left
    network = copy.deepcopy(small_template)
    result = fitted(network, config())
    assert changed(uninterrupted[0], network) == set()
    assert result.history == uninterrupted[1].history
    assert (result.calibration.logits_NK == uninterrupted[1].calibration.logits_NK).all()
    assert caplog.messages == []


@pytest.fixture
def epochs_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs whose batches were read."""
    epochs: list[int] = []
    original = LayerTrainer._batches

    def recording(trainer: LayerTrainer, epoch: int, generator: torch.Generator) -> Iterator[Any]:
        epochs.append(epoch)
        return original(trainer, epoch, generator)

    monkeypatch.setattr(LayerTrainer, "_batches", recording)
    return epochs


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from edgeline.pipeline.training import resume
from edgeline.pipeline.training.strategies import gradual
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.data.samples import read_prepared
from edgeline.serve.preprocess import PreprocessSpec

original, states = resume.replace_file, []

def die_after_the_second(path, write):
    original(path, write)
    states.append(path.name)
    if states.count("resume.pt") == 2:
        os.kill(os.getpid(), signal.SIGKILL)

resume.replace_file = die_after_the_second
network, _ = build("mobilenet_v3_small", "none", classes=3, dropout=0.2)
network.load_state_dict(torch.load(sys.argv[3], weights_only=True))
config = TrainConfig(strategy="gradual", epochs=4, batch_size=12, views=0, refit=False)
folder = Path(sys.argv[2])
gradual.fit(TrainingContext(
    network=network, spec=PreprocessSpec(height=32, width=32), prepared=read_prepared(Path(sys.argv[1])), config=config,
    seed=1, folder=folder, cache=folder / "cache", device=torch.device("cpu"),
))
"""


@pytest.mark.long
def test_a_killed_training_ends_with_the_same_weights_as_an_uninterrupted_one(
    make_run: Callable[..., Run],
    fitted: Fitted,
    small_template: Network,
    uninterrupted: tuple[State, TrainingResult],
    epochs_trained: list[int],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    prepared = make_run(tmp_path_factory.mktemp("killed")).step("prepare")
    torch.save(small_template.state_dict(), prepared / "network.pth")
    arguments = [str(prepared), str(tmp_path), str(prepared / "network.pth")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert {path.name for path in (tmp_path / "selection").iterdir()} == {RESUME, PREVIOUS}
    network = copy.deepcopy(small_template)
    fitted(network, config())
    assert epochs_trained == [3, 4]
    assert changed(uninterrupted[0], network) == set()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16  # within the tensors, where torch.load detects nothing
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], list[int]]] = {
    "the newest is cut": (truncate, (RESUME,), [2, 3, 4]),
    "the newest has another bit": (flip_a_bit, (RESUME,), [2, 3, 4]),
    "the newest is empty": (empty, (RESUME,), [2, 3, 4]),
    "both are cut": (truncate, (RESUME, PREVIOUS), [1, 2, 3, 4]),
    "the one before is cut": (truncate, (PREVIOUS,), [3, 4]),
}


@pytest.fixture(scope="module", name="states")
def two_states(small_template: Network, shapes: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that a training leaves behind when it ends in its third epoch."""
    folder = tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(monkeypatch, epoch=3)
        with pytest.raises(KeyboardInterrupt):
            gradual.fit(context(copy.deepcopy(small_template), shapes, config(), folder))
    return {path.name: path.read_bytes() for path in (folder / "selection").iterdir()}


@pytest.mark.parametrize(("damage", "names", "trained"), cases(DAMAGES, quick=["the newest is cut"]))
def test_a_damaged_state_costs_an_epoch_and_does_not_change_the_result(
    damage: Callable[[Path], None],
    names: tuple[str, ...],
    trained: list[int],
    states: dict[str, bytes],
    fitted: Fitted,
    small: Network,
    uninterrupted: tuple[State, TrainingResult],
    epochs_trained: list[int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "selection"
    folder.mkdir()
    for name, data in states.items():
        (folder / name).write_bytes(data)
    for name in names:
        damage(folder / name)
    with caplog.at_level(logging.WARNING):
        fitted(small, config())
    assert epochs_trained == trained
    assert changed(uninterrupted[0], small) == set()
    expected = [
        f"{folder / name} is damaged and was deleted; training resumes from the state before it, if there is one"
        for name in names
    ]
    assert caplog.messages == ([] if names == (PREVIOUS,) else expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gpu_learns_in_mixed_precision(strategy: str, fitted: Fitted, lite0: Network) -> None:
    changes = {"spec": PreprocessSpec(height=64, width=64), "device": torch.device("cuda")}
    history = fitted(lite0, config(strategy, epochs=3), **changes).history
    assert all(math.isfinite(epoch["val_loss"]) for epoch in history.epochs)
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"]
