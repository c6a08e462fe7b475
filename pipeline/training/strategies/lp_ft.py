"""Strategy `lp-ft`: first the head on the frozen backbone, then all layers (Kumar et al. 2022).

A head that starts from zero sends large, random gradients into the backbone and spoils its features. All strategies that train
layers therefore begin with the trained head. This one lowers the learning rate from stage to stage towards the input, gently.
"""

from edgeline.pipeline.models.backbones import stages
from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning.layers import train_layers
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan
from edgeline.pipeline.training.strategies import head

LEARNING_RATE = 7e-4
"""Of the topmost stage."""
LAYER_DECAY = 0.8
HEAD_FACTOR = 3.0
"""How much faster the head learns than the topmost stage."""


def fit(context: TrainingContext) -> TrainingResult:
    """Train a network in place.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    return train_layers(context, plan(context), head.fit_start(context))


def plan(context: TrainingContext) -> LayerPlan:
    """Every stage from the start, each at a share of the learning rate of the stage above it."""
    return LayerPlan(peaks=decayed_peaks(context, LEARNING_RATE, LAYER_DECAY))


def decayed_peaks(context: TrainingContext, learning_rate: float, layer_decay: float) -> dict[str, float]:
    """Return the peak learning rate of each stage and the head. The configured rate and decay take precedence.

    Args:
        context: its network and configuration are used.
        learning_rate: of the topmost stage.
        layer_decay: a stage's learning rate as a share of that of the stage above it.
    """
    rate = context.config.learning_rate or learning_rate
    decay = context.config.layer_decay or layer_decay
    names = [stage.name for stage in stages(context.network.backbone)]
    return {name: rate * decay ** (len(names) - 1 - index) for index, name in enumerate(names)} | {"head": rate * HEAD_FACTOR}
