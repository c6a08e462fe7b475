"""Strategy `partial`: the stages named in `train.unfreeze`, starting with the trained head; all others stay frozen."""

from edgeline.pipeline.models.backbones import stages
from edgeline.pipeline.models.inspection import check_stages
from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning.layers import train_layers
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan
from edgeline.pipeline.training.strategies import head

LEARNING_RATE = 3e-4


def fit(context: TrainingContext) -> TrainingResult:
    """Train a network in place.

    Raises:
        ConfigError: the network has no such stage.
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    chosen = plan(context)  # before the head is trained, because a name may be wrong
    return train_layers(context, chosen, head.fit_start(context))


def plan(context: TrainingContext) -> LayerPlan:
    """The named stages at the learning rate, and the head.

    Raises:
        ConfigError: the network has no such stage.
    """
    rate = context.config.learning_rate or LEARNING_RATE
    names = [*(stage.name for stage in stages(context.network.backbone)), "head"]
    check_stages("the model", names, context.config.unfreeze)
    return LayerPlan(peaks={name: rate for name in names if name in (*context.config.unfreeze, "head")})
