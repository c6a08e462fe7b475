"""What a strategy trains besides the head: which stages, how fast and for how long."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgeline.pipeline.models.backbones import Network, stages
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.context import TrainingContext

EPOCHS = 8
MIN_STEPS = 160
"""With few images an epoch is several passes over them, so that the default number of epochs has about so many steps."""


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """Which layers are trained, and how fast."""

    peaks: Mapping[str, float]
    """Peak learning rate by name of the stage, and of `head`. A stage that is absent stays frozen."""
    epochs: int = EPOCHS
    """Unless configured."""
    unfreezing: float = 0.0
    """Share of the steps over which the stages are unfrozen, from the top; 0 unfreezes all at the start."""
    batch_norm: bool = False
    """Whether batch norms use and learn the statistics of each batch, instead of the pretrained ones."""


def schedule_length(config: TrainConfig, plan: LayerPlan, images: int) -> tuple[int, int]:
    """Return the number of epochs, and of passes over the images in each of them."""
    if config.epochs:
        return config.epochs, 1
    steps = math.ceil(images / config.batch_size)
    return plan.epochs, max(1, math.ceil(MIN_STEPS / (plan.epochs * steps)))


def training_images(context: TrainingContext, plan: LayerPlan) -> int:
    """Return on how many images a training makes a step, counted with repetitions, if it is not stopped early."""
    train, both = (len(context.prepared.of(*splits)) for splits in (("train",), ("train", "val")))
    return sum(
        math.prod(schedule_length(context.config, plan, n)) * n for n in ([train, both] if context.config.refit else [train])
    )


def parameter_groups(network: Network, plan: LayerPlan) -> list[dict[str, Any]]:
    """Return the optimizer's groups, from the input to the head, each with its peak learning rate as `peak`."""
    parameters = {stage.name: stage.parameters() for stage in stages(network.backbone)}
    parameters["head"] = list(network.head.parameters())
    return [
        {"name": name, "params": own, "lr": plan.peaks[name], "peak": plan.peaks[name]}
        for name, own in parameters.items()
        if name in plan.peaks
    ]


def unfrozen_stages(network: Network, plan: LayerPlan, progress: float) -> int:
    """Return how many stages of the plan are trained, counted from the top, when a share of all steps is done."""
    planned = sum(stage.name in plan.peaks for stage in stages(network.backbone))
    return planned if not plan.unfreezing else min(planned, math.ceil(planned * progress / plan.unfreezing))


def unfreeze(network: Network, plan: LayerPlan, count: int) -> None:
    """Unfreeze the head and the topmost `count` stages of a plan, and freeze the others.

    Batch norms keep their statistics, unless the plan trains them.
    """
    named = stages(network.backbone)
    planned = [stage.name for stage in named if stage.name in plan.peaks]
    trained = planned[max(0, len(planned) - count) :]
    network.train()
    for stage in named:
        stage.set_trainable(stage.name in trained)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not plan.batch_norm:
            module.eval()
