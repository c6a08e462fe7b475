"""Strategy `auto`: compares the strategies that fit the budget on held-out images, and keeps the best.

With a frozen backbone these are `head` and `few-shot`, on the same cached features. Training all layers (`lp-ft`) is tried if
its estimated time is within `train.budget`. The choice is deterministic: the estimate follows from counts, not from a clock.

Shapes: N images, K classes.
"""

import copy
import math

import numpy as np

from edgeline.pipeline.models.inspection import multiply_adds
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.training.context import HeldOutLogits, TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning.distributed import fit_once
from edgeline.pipeline.training.fine_tuning.plan import training_images
from edgeline.pipeline.training.strategies import few_shot, head, lp_ft
from edgeline.serve.runtime.cpu import usable_cores

CPU_RATE, GPU_RATE = 8e9, 4e12
"""Multiply-adds in a second of training, on a core of a small CPU and on a GPU: rough, for the estimated time."""
MAX_FEW = 2000
"""Number of images up to which `few-shot` is tried. More train a head better, and its covariance needs them all in memory."""
PASSES_OF_A_STEP = 3
"""A training step computes as much as three forward passes."""


def fit(context: TrainingContext) -> TrainingResult:
    """Train a network in place.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    network = context.network
    few = fit_once(few_shot.fit, context) if len(context.prepared.of("train", "val")) <= MAX_FEW else None
    few_weights = copy.deepcopy(network.head.state_dict())
    best, name = fit_once(head.fit, context), "head"
    reasons = [f"{_percent(best.calibration)} of held-out images are correct with `head`"]
    if few is not None:
        reasons.append(f"{_percent(few.calibration)} with `few-shot`")
        if clearly_better(few.calibration, best.calibration):
            network.head.load_state_dict(few_weights)
            best, name = few, "few-shot"
        elif _correct(few.calibration).mean() > _correct(best.calibration).mean():
            reasons[-1] += ", which may be chance"
    minutes = estimated_minutes(context)
    budget = context.config.budget if context.config.budget != "auto" else (0 if context.device.type == "cpu" else math.inf)
    if minutes > budget:
        reasons.append(f"training all layers (`lp-ft`) would take about {_minutes(minutes)} here and needs train.budget")
    else:
        frozen = copy.deepcopy(network.state_dict())
        tuned = lp_ft.fit(context)
        before = of_images(best.calibration, tuned.calibration.images)
        reasons.append(
            f"of the validation images {_percent(before)} with `{name}` and {_percent(tuned.calibration)} with `lp-ft`"
        )
        if _correct(tuned.calibration).sum() < _correct(before).sum():
            network.load_state_dict(frozen)
        else:
            best, name = tuned, "lp-ft"
    message = f"Strategy `{name}` was chosen: {'; '.join(reasons)}."
    finding = Finding(code="strategy_chosen", message=message, level="note")
    return TrainingResult(
        history=best.history,
        calibration=best.calibration,
        out_of_fold=best.out_of_fold,
        findings=[*best.findings, finding],
        strategy=name,
    )


def clearly_better(one: HeldOutLogits, other: HeldOutLogits) -> bool:
    """Whether the first logits classify more of the same images correctly than the second, by more than a standard error."""
    first_N, second_N = _correct(one), _correct(other)
    gained, lost = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
    return gained - lost > math.sqrt(gained + lost)


def of_images(held_out: HeldOutLogits, images: list[str]) -> HeldOutLogits:
    """The logits of some of the images, in their order; those that were never held out are left out."""
    row = {image: number for number, image in enumerate(held_out.images)}
    rows = [row[image] for image in images if image in row]
    return HeldOutLogits(
        logits_NK=held_out.logits_NK[rows], targets_N=held_out.targets_N[rows], images=[held_out.images[i] for i in rows]
    )


def estimated_minutes(context: TrainingContext) -> float:
    """Estimate how long `lp-ft` takes, from the number of images that it trains on and the network's multiply-adds."""
    images = training_images(context, lp_ft.plan(context))
    rate = GPU_RATE if context.device.type == "cuda" else CPU_RATE * usable_cores()
    macs = multiply_adds(context.network.backbone, context.spec.height, context.spec.width)
    return images * macs * PASSES_OF_A_STEP / rate / 60


def _correct(held_out: HeldOutLogits) -> np.ndarray:
    return np.asarray(held_out.logits_NK.argmax(1) == held_out.targets_N)


def _percent(held_out: HeldOutLogits) -> str:
    return f"{100 * _correct(held_out).mean():.1f} %"


def _minutes(minutes: float) -> str:
    return f"{math.ceil(minutes)} minutes" if minutes > 1 else "a minute"
