"""Strategy `differential`: all layers, with learning rates that fall steeply towards the input.

Discriminative fine-tuning (Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification").
"""

from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning.layers import train_layers
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan
from edgeline.pipeline.training.strategies import head
from edgeline.pipeline.training.strategies.lp_ft import decayed_peaks

LEARNING_RATE = 5e-4
LAYER_DECAY = 0.7


def fit(context: TrainingContext) -> TrainingResult:
    """Train a network in place.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    return train_layers(context, plan(context), head.fit_start(context))


def plan(context: TrainingContext) -> LayerPlan:
    """Every stage from the start."""
    return LayerPlan(peaks=decayed_peaks(context, LEARNING_RATE, LAYER_DECAY))
