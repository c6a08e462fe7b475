"""The learning-rate finder: the loss of each training step while the learning rate rises exponentially.

The learning-rate range test of Smith 2017 ("Cyclical Learning Rates for Training Neural Networks"), as fastai's `lr_find` made
it known: about a hundred steps, a smoothed loss, an end when the loss diverges, and a suggestion where the loss falls steadily.
The rate is that of the topmost stage; the other stages and the head keep their proportion to it.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.training.fine_tuning.layers import LayerTrainer
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan
from edgeline.pipeline.training.search.rate_curve import RateCurve, describe_losses, has_diverged
from edgeline.pipeline.training.strategies import differential, full, gradual, head, lp_ft, partial, scratch
from edgeline.serve.errors import ConfigError

PLANS: Mapping[str, Callable[[TrainingContext], LayerPlan]] = {
    "lp-ft": lp_ft.plan,
    "full": full.plan,
    "partial": partial.plan,
    "differential": differential.plan,
    "gradual": gradual.plan,
    "scratch": scratch.plan,
}
"""By strategy."""
FROM, TO = 1e-6, 1.0
STEPS = 100


def strategy_to_test(strategy: str) -> str:
    """The strategy whose rate is found: the configured one, or for `auto` the one that trains layers.

    Raises:
        ConfigError: it trains no layers.
    """
    if strategy == "auto":
        return "lp-ft"
    if strategy not in PLANS:
        raise ConfigError(
            f"strategy={strategy} has no learning rate that is found this way; choose one of {', '.join(PLANS)} with "
            "--strategy, or compare settings of the head with train.sweep=true"
        )
    return strategy


def find_rate(context: TrainingContext, steps: int = STEPS) -> RateCurve:
    """Train a network with a rising learning rate, and restore its weights.

    Args:
        context: its strategy is one of `PLANS`. Nothing is written into its folder; the cache gets the features and pictures
            that the training needs anyway.
        steps: number of training steps, if the loss does not diverge before.

    Raises:
        ConfigError: the network has no stage of that name.
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite from the start, or a batch does not fit into memory.
    """
    network, initial = context.network, copy.deepcopy(context.network.state_dict())
    trainable = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    strategy = context.config.strategy
    unit = replace(context, config=context.config.model_copy(update={"learning_rate": 1.0}))
    plan = PLANS[strategy](unit)  # its peaks are relative to the rate
    try:
        if strategy != "scratch":
            head.fit_start(context)
        network.to(context.device)
        trainer = LayerTrainer(unit, plan, context.prepared.of("train"), context.folder)
        rates = np.geomspace(FROM, TO, steps).tolist()
        losses: list[float] = []
        for loss in trainer.steps(rates):
            losses.append(loss)
            if not np.isfinite(loss) or has_diverged(losses):
                break
    finally:
        network.load_state_dict(initial)
        network.to("cpu").eval()
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trainable[name])
    return describe_losses(strategy, rates, losses)
