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

from edgeline.pipeline.config import TrainConfig
from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network, stages
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.training import fine_tune as fit_layers
from edgeline.pipeline.training.fine_tune import HEAD_FACTOR, PREVIOUS, RESUME, parameter_groups, release
from edgeline.pipeline.training.history import Fit
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec

CPU = torch.device("cpu")
STRATEGIES = ("full", "differential", "gradual")
EPOCHS = 4
State = dict[str, Tensor]
Fitted = Callable[..., Fit]


def config(strategy: str = "gradual", **settings: Any) -> TrainConfig:
    return TrainConfig(**{"strategy": strategy, "epochs": EPOCHS, "batch_size": 12, **settings})


@pytest.fixture(name="fitted")
def fit_on_shapes(shapes: Prepared, spec: PreprocessSpec, tmp_path: Path) -> Fitted:
    """`fitted(network, config, **changes)`: the course of training it on the shapes, in the test's folder."""

    def run(network: Network, config: TrainConfig, spec: PreprocessSpec = spec, device: torch.device = CPU) -> Fit:
        weights_K = torch.ones(len(shapes.labels))
        return fit_layers.fit(network, spec, shapes, config, weights_K, seed=1, folder=tmp_path, device=device)

    return run


def state_of(module: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(before: State, module: nn.Module) -> set[str]:
    """The names of the tensors that are not what they were, to the bit."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def learning(module: nn.Module, before: State) -> list[str]:
    """The stages of which anything moved: weights or statistics."""
    moved = changed(before, module)
    names = {id(tensor): name for name, tensor in module.state_dict(keep_vars=True).items()}
    return [
        stage.name
        for stage in stages(module)
        if any(names[id(t)] in moved for m in stage.modules for t in m.state_dict(keep_vars=True).values())
    ]


# What each strategy does to the learning rates


def test_full_gives_every_stage_the_same_rate(lite0: Network) -> None:
    groups = parameter_groups(lite0, config("full", learning_rate=0.01))
    assert {group["peak"] for group in groups} == {0.01}


@pytest.mark.parametrize("strategy", ["differential", "gradual"])
def test_other_strategies_slow_down_towards_the_input_and_hurry_the_head(strategy: str, lite0: Network) -> None:
    groups = parameter_groups(lite0, config(strategy, learning_rate=0.01, layer_decay=0.5))
    rates = [group["peak"] for group in groups]
    assert [group["name"] for group in groups] == [*(stage.name for stage in stages(lite0.backbone)), "head"]
    assert rates[-1] == 0.01 * HEAD_FACTOR
    assert rates[-2] == 0.01
    assert all(slower == pytest.approx(faster / 2) for slower, faster in zip(rates[:-2], rates[1:-1], strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_parameter_is_in_one_group(strategy: str, small: Network) -> None:
    held = [id(parameter) for group in parameter_groups(small, config(strategy)) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in small.parameters())


def test_rates_warm_up_and_come_down_to_nothing(small: Network) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(small, config("full", learning_rate=1.0)))
    rates = []
    for step in range(1001):
        fit_layers._set_rates(optimizer, step / 1000)
        rates.append(optimizer.param_groups[0]["lr"])
    highest = rates.index(max(rates))
    assert 40 <= highest <= 60
    assert 0 < rates[0] < 0.1
    assert rates[: highest + 1] == sorted(rates[: highest + 1])
    assert rates[highest:] == sorted(rates[highest:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_every_step_has_its_place_in_the_schedule(fitted: Fitted, small: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[float] = []
    true = fit_layers._set_rates

    def watched(optimizer: torch.optim.Optimizer, progress: float) -> None:
        places.append(progress)
        true(optimizer, progress)

    monkeypatch.setattr(fit_layers, "_set_rates", watched)
    fitted(small, config("full", epochs=2))
    assert places == [step / 6 for step in range(6)]  # two epochs of three batches


# What each strategy releases


@pytest.mark.parametrize("epochs", [2, 3, 5, 12, 50])
def test_gradual_starts_with_the_head_alone_and_has_released_all_by_two_thirds(epochs: int, small: Network) -> None:
    names = [stage.name for stage in stages(small.backbone)]
    released = [release(small, config(), epoch, epochs) for epoch in range(1, epochs + 1)]
    assert released[0] == []
    assert all(one == names[len(names) - len(one) :] for one in released)
    assert [len(one) for one in released] == sorted(len(one) for one in released)
    assert all(one == names for epoch, one in enumerate(released, 1) if epoch > epochs * 2 / 3)


@pytest.mark.parametrize("strategy", ["full", "differential"])
def test_the_other_strategies_release_every_stage_at_once(strategy: str, small: Network) -> None:
    assert len(release(small, config(strategy), 1, 12)) == len(stages(small.backbone))
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_a_frozen_stage_neither_learns_nor_counts(small: Network) -> None:
    names = release(small, config(), 2, EPOCHS)
    frozen = [stage for stage in stages(small.backbone) if stage.name not in names]
    assert len(frozen) == 7
    assert not any(parameter.requires_grad for stage in frozen for parameter in stage.parameters())
    assert not any(module.training for stage in frozen for top in stage.modules for module in top.modules())
    assert small.head.training


def test_the_head_alone_moves_in_the_first_epoch(fitted: Fitted, small: Network) -> None:
    before, head = state_of(small.backbone), state_of(small.head)
    fitted(small, config(epochs=1))
    assert changed(before, small.backbone) == set()
    assert changed(head, small.head) == {"1.weight", "1.bias"}


def interrupt(monkeypatch: pytest.MonkeyPatch, *, epoch: int, batch: int = 0) -> None:
    """Break off at a batch of an epoch, as Ctrl-C would."""
    true = fit_layers._batches

    def broken(*args: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for number, found in enumerate(true(*args)):
            if (args[3], number) == (epoch, batch):
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(fit_layers, "_batches", broken)


def test_the_upper_half_moves_in_the_second_and_what_is_frozen_stays_to_the_bit(
    fitted: Fitted, small: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(small.backbone)
    interrupt(monkeypatch, epoch=3)
    with pytest.raises(KeyboardInterrupt):
        fitted(small, config())
    assert learning(small.backbone, before) == [stage.name for stage in stages(small.backbone)][7:]
    assert any("running_mean" in name for name in changed(before, small.backbone))


# Training


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_learns_the_shapes(strategy: str, fitted: Fitted, lite0: Network, tmp_path: Path) -> None:
    course = fitted(lite0, config(strategy, epochs=3, augment="light"), PreprocessSpec(height=64, width=64))
    assert len(course.history) == 3
    assert course.history[-1]["train_loss"] < course.history[0]["train_loss"]
    assert max(epoch["val_accuracy"] for epoch in course.history) >= 0.6  # a third by chance
    assert course.val_logits_NK.shape == (12, 3)
    assert list(tmp_path.iterdir()) == []


def test_it_ends_with_the_weights_that_were_best_on_validation(
    fitted: Fitted, small: Network, shapes: Prepared, spec: PreprocessSpec
) -> None:
    course = fitted(small, config("full", learning_rate=0.02, patience=2, epochs=6))
    logits_NK = fit_layers._logits(small, shapes.of("val"), spec, config(), CPU)
    targets_N = torch.tensor([sample.index for sample in shapes.of("val")])
    assert nn.functional.cross_entropy(logits_NK, targets_N).item() == pytest.approx(course.best_loss, abs=1e-6)
    assert course.best_epoch < len(course.history)  # so the best were not the last


def test_a_last_batch_of_one_image_is_left_out(fitted: Fitted, small: Network) -> None:
    # 36 images; over one image of 1 x 1 features a batch norm cannot be computed.
    assert len(fitted(small, config("full", batch_size=35, epochs=1)).history) == 1


def test_a_huge_learning_rate_stops_with_the_epoch(fitted: Fitted, small: Network) -> None:
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) in epoch [12]; lower train\.learning_rate") as refusal:
        fitted(small, config("full", learning_rate=1e30))
    assert refusal.value.code == "loss_not_finite"


def test_a_batch_that_does_not_fit_is_said_so(fitted: Fitted, small: Network) -> None:
    def run_out(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # A stand-in: to fill this machine's memory would hit its other users.
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    small.backbone.register_forward_pre_hook(run_out)
    with pytest.raises(TrainingError, match=r"a batch of 12 images .*; lower train\.batch_size, to 6 say") as refusal:
        fitted(small, config("full"))
    assert refusal.value.code == "out_of_memory"


# Going on after a kill


@pytest.fixture(scope="module", name="undisturbed")
def weights_of_an_undisturbed_run(
    small_template: Network, shapes: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> tuple[State, Fit]:
    network, folder = copy.deepcopy(small_template), tmp_path_factory.mktemp("undisturbed")
    course = fit_layers.fit(
        network, PreprocessSpec(height=32, width=32), shapes, config(), torch.ones(3), seed=1, folder=folder, device=CPU
    )
    return state_of(network), course


def during_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, epoch=3, batch=1)


def before_the_first_state(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, epoch=1, batch=2)


def between_the_two_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old state has its other name, the new one is not there."""
    true = fit_layers.replace_file

    def broken(path: Path, write: Callable[[Path], None]) -> None:
        if (path.parent / PREVIOUS).exists():
            raise KeyboardInterrupt
        true(path, write)

    monkeypatch.setattr(fit_layers, "replace_file", broken)


def after_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    true = fit_layers._logits

    def broken(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) > EPOCHS:
            raise KeyboardInterrupt
        return true(*args)

    monkeypatch.setattr(fit_layers, "_logits", broken)


KILLS = {
    "before the first state": (before_the_first_state, set()),
    "during an epoch": (during_an_epoch, {RESUME, PREVIOUS}),
    "between the two states": (between_the_two_states, {PREVIOUS}),
    "after the last epoch": (after_the_last_epoch, {RESUME, PREVIOUS}),
}


@pytest.mark.parametrize(("kill", "left"), KILLS.values(), ids=KILLS)
def test_a_training_that_was_broken_off_ends_with_the_very_weights(
    kill: Callable[[pytest.MonkeyPatch], None],
    left: set[str],
    fitted: Fitted,
    small_template: Network,
    undisturbed: tuple[State, Fit],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            fitted(copy.deepcopy(small_template), config())
    assert {path.name for path in tmp_path.iterdir()} == left
    network = copy.deepcopy(small_template)
    course = fitted(network, config())
    assert changed(undisturbed[0], network) == set()
    assert (course.history, course.best_epoch) == (undisturbed[1].history, undisturbed[1].best_epoch)
    assert (course.val_logits_NK == undisturbed[1].val_logits_NK).all()
    assert caplog.messages == []


@pytest.fixture
def epochs_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs whose batches were asked for."""
    epochs: list[int] = []
    true = fit_layers._batches

    def watched(*args: Any) -> Iterator[tuple[Tensor, Tensor]]:
        epochs.append(args[3])
        yield from true(*args)

    monkeypatch.setattr(fit_layers, "_batches", watched)
    return epochs


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from edgeline.pipeline.training import fine_tune as fit_layers
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.config import TrainConfig
from edgeline.pipeline.data.samples import read_prepared
from edgeline.serve.preprocess import PreprocessSpec

true, states = fit_layers.replace_file, []

def die_after_the_second(path, write):
    true(path, write)
    states.append(path)
    if len(states) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

fit_layers.replace_file = die_after_the_second
network, _ = build("mobilenet_v3_small", "none", classes=3, dropout=0.2)
network.load_state_dict(torch.load(sys.argv[3], weights_only=True))
config = TrainConfig(strategy="gradual", epochs=4, batch_size=12)
fit_layers.fit(
    network, PreprocessSpec(height=32, width=32), read_prepared(Path(sys.argv[1])), config, torch.ones(3),
    seed=1, folder=Path(sys.argv[2]), device=torch.device("cpu"),
)
"""


def test_a_training_that_was_killed_ends_with_the_very_weights(
    make_run: Callable[..., Run],
    fitted: Fitted,
    small_template: Network,
    undisturbed: tuple[State, Fit],
    epochs_trained: list[int],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    prepared = make_run(tmp_path_factory.mktemp("killed")).step("prepare")
    torch.save(small_template.state_dict(), prepared / "network.pth")
    arguments = [str(prepared), str(tmp_path), str(prepared / "network.pth")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {RESUME, PREVIOUS}
    network = copy.deepcopy(small_template)
    fitted(network, config())
    assert epochs_trained == [3, 4]
    assert changed(undisturbed[0], network) == set()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16  # amid the tensors, where torch.load notices nothing
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
            fit_layers.fit(
                copy.deepcopy(small_template),
                PreprocessSpec(height=32, width=32),
                shapes,
                config(),
                torch.ones(3),
                seed=1,
                folder=folder,
                device=CPU,
            )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("damage", "names", "trained"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_costs_its_epoch_and_never_the_result(
    damage: Callable[[Path], None],
    names: tuple[str, ...],
    trained: list[int],
    states: dict[str, bytes],
    fitted: Fitted,
    small: Network,
    undisturbed: tuple[State, Fit],
    epochs_trained: list[int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, data in states.items():
        (tmp_path / name).write_bytes(data)
    for name in names:
        damage(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        fitted(small, config())
    assert epochs_trained == trained
    assert changed(undisturbed[0], small) == set()
    told = [
        f"{tmp_path / name} is damaged and was deleted; training goes on from the state before it, if there is one"
        for name in names
    ]
    assert caplog.messages == ([] if names == (PREVIOUS,) else told)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gpu_learns_in_mixed_precision(strategy: str, fitted: Fitted, lite0: Network) -> None:
    course = fitted(lite0, config(strategy, epochs=3), PreprocessSpec(height=64, width=64), torch.device("cuda"))
    assert all(math.isfinite(epoch["val_loss"]) for epoch in course.history)
    assert course.history[-1]["train_loss"] < course.history[0]["train_loss"]
