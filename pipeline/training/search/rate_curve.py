"""What the learning-rate finder reads from the losses of its steps: `learning_rate.json`."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edgeline.serve.errors import TrainingError

SMOOTHING = 0.9
"""Weight of the past in the moving average of the loss."""
DIVERGED = 4.0
"""The test ends when the smoothed loss is so many times the lowest one."""
CLEAR = 4.0
"""A change of the smoothed loss is clear if it is so many times the standard deviation of its noise."""
BELOW_RISE = 3.0
"""Without a clear fall, the rate at which the loss begins to rise is divided by this."""
MIN_STEPS = 5
"""Fewer losses show nothing."""


class RateCurve(BaseModel):
    """The content of `learning_rate.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: str
    rates: list[float] = Field(description="Of the topmost stage, one for each step.")
    losses: list[float] = Field(description="Of each step's batch.")
    smoothed: list[float] = Field(description="Moving average of the losses, without its bias towards zero at the start.")
    falls: bool = Field(description="Whether the smoothed loss falls by more than noise; from a trained head it may not.")
    suggested: float = Field(
        description="Half-way down the longest stretch on which the smoothed loss falls, or a third of `rises` without a fall."
    )
    rises: float = Field(description="Highest rate at which the smoothed loss is not clearly above its lowest value.")
    lowest: float = Field(description="Rate at the lowest smoothed loss.")
    diverged: float | None = Field(description="Rate at which the loss diverged; null if it did not.")


def describe_losses(strategy: str, rates: Sequence[float], losses: Sequence[float]) -> RateCurve:
    """Smooth the losses and read the suggestion from them.

    Args:
        strategy: that was tested.
        rates: of all steps.
        losses: of the steps until the loss diverged.

    Raises:
        TrainingError: there are too few steps to read anything from.
    """
    finite = [float(loss) for loss in losses if np.isfinite(loss)]
    if len(finite) < MIN_STEPS:
        raise TrainingError(
            f"the loss is not finite after {len(finite)} steps with learning rates from {rates[0]:g}; look for damaged weights "
            "or images of constant color",
            code="loss_not_finite",
        )
    smoothed = smooth(finite)
    start, end = longest_fall(smoothed)
    lowest = int(np.argmin(smoothed))
    # The median of the deviations does not depend on the few steps at which the loss diverges.
    deviation = 1.4826 * float(np.median(np.abs(np.array(finite) - smoothed)))
    clear = CLEAR * deviation * math.sqrt((1 - SMOOTHING) / (1 + SMOOTHING))  # of the average
    falls = smoothed[start] - smoothed[end] > clear
    rises = max(step for step, loss in enumerate(smoothed) if loss <= smoothed[lowest] + clear)
    return RateCurve(
        strategy=strategy,
        rates=[float(rate) for rate in rates[: len(finite)]],
        losses=finite,
        smoothed=smoothed,
        falls=falls,
        suggested=float(rates[(start + end) // 2]) if falls else rates[rises] / BELOW_RISE,
        rises=float(rates[rises]),
        lowest=float(rates[lowest]),
        diverged=float(rates[len(finite) - 1]) if len(finite) < len(losses) or has_diverged(finite) else None,
    )


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the exponential moving average, corrected for its start at zero."""
    average, smoothed = 0.0, []
    for count, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING**count))
    return smoothed


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the smoothed loss has risen to a multiple of its lowest value."""
    smoothed = smooth(losses)
    return smoothed[-1] > DIVERGED * min(smoothed)


def longest_fall(smoothed: Sequence[float]) -> tuple[int, int]:
    """Return the first and last position of the longest falling subsequence, the "valley" of fastai."""
    length, before = [1] * len(smoothed), list(range(len(smoothed)))
    for here in range(len(smoothed)):
        for earlier in range(here):
            if smoothed[here] < smoothed[earlier] and length[here] <= length[earlier]:
                length[here], before[here] = length[earlier] + 1, earlier
    end = start = int(np.argmax(length))
    while before[start] != start:
        start = before[start]
    return start, end
