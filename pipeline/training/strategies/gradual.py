"""Strategy `gradual`: first the head alone, then one stage after the other from the top.

Gradual unfreezing (Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification"), with the learning
rates of `differential`.
"""

from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning.layers import train_layers
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan
from edgeline.pipeline.training.strategies import differential, head
from edgeline.pipeline.training.strategies.lp_ft import decayed_peaks

UNFREEZING = 2 / 3
"""Share of the steps after which every stage is trained."""


def fit(context: TrainingContext) -> TrainingResult:
    """Train a network in place.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    return train_layers(context, plan(context), head.fit_start(context))


def plan(context: TrainingContext) -> LayerPlan:
    """The rates of `differential`; the stages are unfrozen within the first two thirds of the steps."""
    peaks = decayed_peaks(context, differential.LEARNING_RATE, differential.LAYER_DECAY)
    return LayerPlan(peaks=peaks, unfreezing=UNFREEZING)
