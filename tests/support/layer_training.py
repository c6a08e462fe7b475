"""Settings, networks and interruptions for the tests of trainings of layers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network, stages
from edgeline.pipeline.models.checkpoint import Checkpoint, save_checkpoint
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning.layers import LayerTrainer
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan
from edgeline.pipeline.training.strategies import differential, full, gradual, lp_ft, scratch
from edgeline.serve.preprocess import PreprocessSpec

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


def interrupt(monkeypatch: pytest.MonkeyPatch, *, epoch: int, batch: int = 0) -> None:
    """Interrupt training at a batch of an epoch, as Ctrl-C would."""
    original = LayerTrainer._batches

    def broken(trainer: LayerTrainer, number: int, generator: torch.Generator) -> Iterator[Any]:
        for position, found in enumerate(original(trainer, number, generator)):
            if (number, position) == (epoch, batch):
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(LayerTrainer, "_batches", broken)


def plan(strategy: str, network: Network, prepared: Prepared, folder: Path, **settings: Any) -> LayerPlan:
    return PLANS[strategy](context(network, prepared, config(strategy, **settings), folder))


def save_teacher(network: Network, labels: tuple[str, ...], folder: Path) -> Path:
    """Write a network as the folder of a trained run."""
    checkpoint = Checkpoint(
        model="mobilenet_v3_small",
        weights="none",
        labels=labels,
        preprocess=replace(SPEC, height=48, width=48),
        dropout=0.2,
        strategy="head",
        seed=0,
        device="CPU",
        history=(),
        best_epoch=0,
        versions={},
    )
    (folder / "train").mkdir(parents=True)
    save_checkpoint(folder / "train", network, checkpoint)
    return folder
