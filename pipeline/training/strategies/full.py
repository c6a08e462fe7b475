"""Strategy `full`: all layers with one learning rate, starting with the trained head."""

from edgeline.pipeline.models.backbones import stages
from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning.layers import train_layers
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan
from edgeline.pipeline.training.strategies import head

LEARNING_RATE = 1e-4
"""A higher one destroys the pretrained features of the first layers."""


def fit(context: TrainingContext) -> TrainingResult:
    """Train a network in place.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    return train_layers(context, plan(context), head.fit_start(context))


def plan(context: TrainingContext) -> LayerPlan:
    """Every stage and the head at the same rate."""
    rate = context.config.learning_rate or LEARNING_RATE
    return LayerPlan(peaks={stage.name: rate for stage in stages(context.network.backbone)} | {"head": rate})
