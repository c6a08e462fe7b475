"""What an evaluation shows beyond its figures.

Classes that are not measured, splits that differ, confidence that misleads, labels to check, what more images would bring.

Shapes: N images, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgeline.pipeline.evaluation.insight import Insight
from edgeline.pipeline.evaluation.learning_curve import LearningCurve, Point
from edgeline.pipeline.evaluation.metrics import TEMPERATURES, fisher_exact
from edgeline.pipeline.evaluation.report import Evaluation
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.sources.labels import summarize

SIGNIFICANCE = 0.001
"""A difference is reported if chance alone produces one as large in fewer than one of 1,000 evaluations."""
DEVIATIONS = 3.3
"""The same as standard deviations of a normal distribution."""


NEAR_BOUND = 1.02
"""A temperature within this factor of an end of its range is reported."""
MIN_DIFFERENCE = 0.02
"""Smaller differences of accuracy are not reported, though thousands of images can prove them: heads that were trained out of
fold have seen fewer images than the network that is tested."""

MIN_GAIN = 0.0005
"""Lower end of the interval of what more images of a class bring, from which it is reported: it does not round to zero."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Images outside of the test split that were classified by weights that were not trained on them."""

    correct: int
    total: int
    where: str
    """`on validation`, or `out of fold`: each training and validation image by a head trained on the others."""


def find_in_evaluation(evaluation: Evaluation, probabilities_NK: np.ndarray, held_out: HeldOut) -> Iterator[Finding]:
    """Findings of an evaluation.

    Args:
        evaluation: of the test split.
        probabilities_NK: of the test images, after temperature scaling.
        held_out: what the accuracy on the test split is compared with.
    """
    if absent := [repr(entry.label) for entry in evaluation.classes if not entry.support]:
        yield Finding(
            code="class_without_test_images",
            message=f"Not measured, for lack of test images: {summarize(absent)}; macro averages leave these classes out.",
        )
    test = evaluation.top1
    p_value = fisher_exact((test.correct, test.total - test.correct), (held_out.correct, held_out.total - held_out.correct))
    other = held_out.correct / held_out.total
    if p_value < SIGNIFICANCE and abs(test.value - other) >= MIN_DIFFERENCE:
        yield Finding(
            code="splits_differ",
            message=f"Accuracy is {test.value:.1%} on the test split and {other:.1%} {held_out.where}, more different than "
            "chance explains (Fisher's exact test, p < 0.001): they contain different kinds of images. Trust the split that is "
            "like the images in use.",
        )
    temperature, (low, high) = evaluation.calibration.temperature, TEMPERATURES
    if not low * NEAR_BOUND < temperature < high / NEAR_BOUND:
        yield Finding(
            code="temperature_at_its_bound",
            message=f"The temperature, {temperature:.2f}, is at the end of its range, {low:g} to {high:g}: the held-out images "
            "do not determine it, because the network is right on nearly all of them, or wrong on most. Do not rely on the "
            "probabilities; add images.",
        )
    confidence_N = probabilities_NK.max(1)
    deviation = float(np.sqrt((confidence_N * (1 - confidence_N)).sum()))
    if abs(test.correct - confidence_N.sum()) > DEVIATIONS * max(deviation, 1.0):
        yield Finding(
            code="confidence_misleads",
            message=f"Mean confidence on the test split is {confidence_N.mean():.1%}, accuracy {test.value:.1%}, more "
            f"different than chance explains (calibration error {evaluation.calibration.ece_after:.2f}): do not rely on the "
            "probabilities of such images.",
        )


def find_in_insight(insight: Insight) -> Iterator[Finding]:
    """Findings about the data: labels to check, slices that differ, and what more images would bring."""
    if errors := insight.label_errors:
        first = errors[0]
        yield Finding(
            code="label_errors",
            message=f"Labels to check: {len(errors):,} of {insight.labels_checked:,} are probably wrong (label_errors.csv, "
            f"pictures in report.html), {first.image} for example, labeled {first.label!r}, probably {first.suggested!r}.",
            level="note",
        )
    for entry in insight.slices:
        if entry.p_value < SIGNIFICANCE:
            yield Finding(
                code="slice_differs",
                message=f"Accuracy is {entry.share.value:.1%} on the {entry.share.total:,} test images with {entry.column} = "
                f"{entry.value}, more different from the others than chance explains (Fisher's exact test, p < 0.001 for all "
                "slices together).",
            )
    if insight.learning_curve is not None:
        yield Finding(code="learning_curve", message=describe_curve(insight.learning_curve), level="note")


def describe_curve(curve: LearningCurve) -> str:
    """The learning curve in one or two sentences."""
    half, whole = curve.points[-2:]
    text = (
        f"With {half.images:,} training images accuracy is {_with_interval(half)}, with {whole.images:,} "
        f"{_with_interval(whole)}, by a quick linear classifier on the pretrained features."
    )
    for gain in [gain for gain in curve.classes if gain.low >= MIN_GAIN][:1]:
        text += (
            f" {gain.more} more of {gain.label!r} would give about {100 * gain.gain:+.1f} points "
            f"({100 * gain.low:+.1f} to {100 * gain.high:+.1f})."
        )
    return text


def _with_interval(point: Point) -> str:
    return f"{point.accuracy:.1%} ({point.low:.1%} to {point.high:.1%})"
