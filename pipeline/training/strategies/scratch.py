"""Strategy `scratch`: all layers from random weights, as the baseline that shows what the pretrained weights are worth."""

from edgeline.pipeline.models.backbones import stages
from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning.layers import train_layers
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan

EPOCHS = 40
LEARNING_RATE = 2e-3


def fit(context: TrainingContext) -> TrainingResult:
    """Train a network in place. Batch norms learn, because they have no statistics yet.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    return train_layers(context, plan(context))


def plan(context: TrainingContext) -> LayerPlan:
    """Every stage and the head at the same rate."""
    rate = context.config.learning_rate or LEARNING_RATE
    peaks = {stage.name: rate for stage in stages(context.network.backbone)} | {"head": rate}
    return LayerPlan(peaks=peaks, epochs=EPOCHS, batch_norm=True)
