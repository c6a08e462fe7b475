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
from edgeline.pipeline.training import fine_tune, resume
from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tune import HEAD_FACTOR, parameter_groups, unfreeze
from edgeline.pipeline.training.resume import PREVIOUS, RESUME
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.cases import cases

CPU = torch.device("cpu")
STRATEGIES = ("full", "differential", "gradual")
EPOCHS = 4
State = dict[str, Tensor]
Fitted = Callable[..., TrainingResult]
SPEC = PreprocessSpec(height=32, width=32)


def config(strategy: str = "gradual", **settings: Any) -> TrainConfig:
    return TrainConfig(**{"strategy": strategy, "epochs": EPOCHS, "batch_size": 12, **settings})


@pytest.fixture(name="fitted")
def fit_on_shapes(shapes: Prepared, tmp_path: Path) -> Fitted:
    """`fitted(network, config, **changes)`: the result of training it on the shapes, in the test's folder."""
    return lambda network, config, **changes: fine_tune.fit(context(network, shapes, config, tmp_path, **changes))


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


# What each strategy does to the learning rates


def test_full_gives_every_stage_the_same_rate(lite0: Network) -> None:
    groups = parameter_groups(lite0, config("full", learning_rate=0.01))
    assert {group["peak"] for group in groups} == {0.01}


@pytest.mark.parametrize("strategy", ["differential", "gradual"])
def test_other_strategies_lower_the_rate_towards_the_input_and_raise_it_for_the_head(strategy: str, lite0: Network) -> None:
    groups = parameter_groups(lite0, config(strategy, learning_rate=0.01, layer_decay=0.5))
    rates = [group["peak"] for group in groups]
    assert [group["name"] for group in groups] == [*(stage.name for stage in stages(lite0.backbone)), "head"]
    assert rates[-1] == 0.01 * HEAD_FACTOR
    assert rates[-2] == 0.01
    assert all(slower == pytest.approx(faster / 2) for slower, faster in zip(rates[:-2], rates[1:-1], strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_parameter_is_in_one_group(strategy: str, small: Network) -> None:
    grouped = [id(parameter) for group in parameter_groups(small, config(strategy)) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in small.parameters())


def test_rates_warm_up_and_then_fall_to_zero(small: Network) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(small, config("full", learning_rate=1.0)))
    rates = []
    for step in range(1001):
        fine_tune.set_learning_rates(optimizer, step / 1000)
        rates.append(optimizer.param_groups[0]["lr"])
    highest = rates.index(max(rates))
    assert 40 <= highest <= 60
    assert 0 < rates[0] < 0.1
    assert rates[: highest + 1] == sorted(rates[: highest + 1])
    assert rates[highest:] == sorted(rates[highest:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_every_step_advances_the_schedule(fitted: Fitted, small: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    positions: list[float] = []
    original = fine_tune.set_learning_rates

    def recording(optimizer: torch.optim.Optimizer, progress: float) -> None:
        positions.append(progress)
        original(optimizer, progress)

    monkeypatch.setattr(fine_tune, "set_learning_rates", recording)
    fitted(small, config("full", epochs=2))
    assert positions == [step / 6 for step in range(6)]  # two epochs of three batches


# What each strategy unfreezes


@pytest.mark.parametrize("epochs", [2, 3, 5, 12, 50])
def test_gradual_unfreezes_from_the_head_to_the_input_within_two_thirds_of_the_epochs(epochs: int, small: Network) -> None:
    names = [stage.name for stage in stages(small.backbone)]
    unfrozen = [unfreeze(small, config(), epoch, epochs) for epoch in range(1, epochs + 1)]
    assert unfrozen[0] == []
    assert all(one == names[len(names) - len(one) :] for one in unfrozen)
    assert [len(one) for one in unfrozen] == sorted(len(one) for one in unfrozen)
    assert all(one == names for epoch, one in enumerate(unfrozen, 1) if epoch > epochs * 2 / 3)


@pytest.mark.parametrize("strategy", ["full", "differential"])
def test_the_other_strategies_unfreeze_every_stage_at_once(strategy: str, small: Network) -> None:
    assert len(unfreeze(small, config(strategy), 1, 12)) == len(stages(small.backbone))
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_a_frozen_stage_updates_neither_weights_nor_statistics(small: Network) -> None:
    names = unfreeze(small, config(), 2, EPOCHS)
    frozen = [stage for stage in stages(small.backbone) if stage.name not in names]
    assert len(frozen) == 7
    assert not any(parameter.requires_grad for stage in frozen for parameter in stage.parameters())
    assert not any(module.training for stage in frozen for top in stage.modules for module in top.modules())
    assert small.head.training


def test_gradual_changes_only_the_head_in_the_first_epoch(fitted: Fitted, small: Network) -> None:
    before, head = state_of(small.backbone), state_of(small.head)
    fitted(small, config(epochs=1))
    assert changed(before, small.backbone) == set()
    assert changed(head, small.head) == {"1.weight", "1.bias"}


def interrupt(monkeypatch: pytest.MonkeyPatch, *, epoch: int, batch: int = 0) -> None:
    """Interrupt training at a batch of an epoch, as Ctrl-C would."""
    original = fine_tune.training_batches

    def broken(*args: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for number, found in enumerate(original(*args)):
            if (args[2], number) == (epoch, batch):
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(fine_tune, "training_batches", broken)


def test_gradual_changes_the_upper_half_in_the_second_epoch_and_nothing_that_is_frozen(
    fitted: Fitted, small: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(small.backbone)
    interrupt(monkeypatch, epoch=3)
    with pytest.raises(KeyboardInterrupt):
        fitted(small, config())
    assert trained_stages(small.backbone, before) == [stage.name for stage in stages(small.backbone)][7:]
    assert any("running_mean" in name for name in changed(before, small.backbone))


# Training


@pytest.mark.parametrize("strategy", cases({name: name for name in STRATEGIES}, quick=["gradual"]))
def test_every_strategy_learns_the_shapes(strategy: str, fitted: Fitted, lite0: Network, tmp_path: Path) -> None:
    result = fitted(lite0, config(strategy, epochs=3, augment="light"), spec=PreprocessSpec(height=64, width=64))
    history = result.history
    assert len(history.epochs) == 3
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"]
    assert max(epoch["val_accuracy"] for epoch in history.epochs) >= 0.6  # a third by chance
    assert result.val_logits_NK.shape == (12, 3)
    assert list(tmp_path.iterdir()) == []


def test_it_ends_with_the_weights_that_were_best_on_validation(
    fitted: Fitted, small: Network, shapes: Prepared, tmp_path: Path
) -> None:
    history = fitted(small, config("full", learning_rate=0.02, patience=2, epochs=6)).history
    logits_NK = fine_tune.compute_val_logits(context(small, shapes, config(), tmp_path))
    targets_N = torch.tensor([sample.index for sample in shapes.of("val")])
    assert nn.functional.cross_entropy(logits_NK, targets_N).item() == pytest.approx(history.best_loss, abs=1e-6)
    assert history.best_epoch < len(history.epochs)  # so the last weights are not the best


def test_a_last_batch_of_one_image_is_left_out(fitted: Fitted, small: Network) -> None:
    # 36 images; over one image of 1 x 1 features a batch norm cannot be computed.
    assert len(fitted(small, config("full", batch_size=35, epochs=1)).history.epochs) == 1


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
        # A stand-in: to fill this machine's memory would hit its other users.
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    small.backbone.register_forward_pre_hook(run_out)
    with pytest.raises(TrainingError, match=r"a batch of 12 images .*; lower train\.batch_size, for example to 6") as caught:
        fitted(small, config("full"))
    assert caught.value.code == "out_of_memory"


# Resuming after a kill


@pytest.fixture(scope="module", name="uninterrupted")
def weights_of_an_uninterrupted_run(
    small_template: Network, shapes: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> tuple[State, TrainingResult]:
    network, folder = copy.deepcopy(small_template), tmp_path_factory.mktemp("uninterrupted")
    result = fine_tune.fit(context(network, shapes, config(), folder))
    return state_of(network), result


def during_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, epoch=3, batch=1)


def before_the_first_state(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, epoch=1, batch=2)


def between_the_two_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old state has its other name, the new one is not there."""
    original = resume.replace_file

    def broken(path: Path, write: Callable[[Path], None]) -> None:
        if (path.parent / PREVIOUS).exists():
            raise KeyboardInterrupt
        original(path, write)

    monkeypatch.setattr(resume, "replace_file", broken)


def after_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = fine_tune.compute_val_logits

    def broken(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) > EPOCHS:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(fine_tune, "compute_val_logits", broken)


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
    assert {path.name for path in tmp_path.iterdir()} == left
    network = copy.deepcopy(small_template)
    result = fitted(network, config())
    assert changed(uninterrupted[0], network) == set()
    assert result.history == uninterrupted[1].history
    assert (result.val_logits_NK == uninterrupted[1].val_logits_NK).all()
    assert caplog.messages == []


@pytest.fixture
def epochs_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs whose batches were read."""
    epochs: list[int] = []
    original = fine_tune.training_batches

    def recording(*args: Any) -> Iterator[tuple[Tensor, Tensor]]:
        epochs.append(args[2])
        yield from original(*args)

    monkeypatch.setattr(fine_tune, "training_batches", recording)
    return epochs


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from edgeline.pipeline.training import fine_tune, resume
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.config import TrainConfig
from edgeline.pipeline.data.samples import read_prepared
from edgeline.serve.preprocess import PreprocessSpec

original, states = resume.replace_file, []

def die_after_the_second(path, write):
    original(path, write)
    states.append(path)
    if len(states) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

resume.replace_file = die_after_the_second
network, _ = build("mobilenet_v3_small", "none", classes=3, dropout=0.2)
network.load_state_dict(torch.load(sys.argv[3], weights_only=True))
config = TrainConfig(strategy="gradual", epochs=4, batch_size=12)
folder = Path(sys.argv[2])
fine_tune.fit(TrainingContext(
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
    assert {path.name for path in tmp_path.iterdir()} == {RESUME, PREVIOUS}
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
            fine_tune.fit(context(copy.deepcopy(small_template), shapes, config(), folder))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    for name, data in states.items():
        (tmp_path / name).write_bytes(data)
    for name in names:
        damage(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        fitted(small, config())
    assert epochs_trained == trained
    assert changed(uninterrupted[0], small) == set()
    expected = [
        f"{tmp_path / name} is damaged and was deleted; training resumes from the state before it, if there is one"
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
