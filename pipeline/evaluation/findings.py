"""What an evaluation shows beyond its figures: classes that are not measured, splits that differ, confidence that misleads.

Shapes: N images, K classes.
"""

from collections.abc import Iterator

import numpy as np
from scipy.stats import fisher_exact

from edgeline.pipeline.evaluation.report import Evaluation
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.sources.labels import summarize

SIGNIFICANCE = 0.001
"""A difference is reported if chance alone produces one as large in fewer than one of 1,000 evaluations."""
DEVIATIONS = 3.3
"""The same as standard deviations of a normal distribution."""


def find_in_evaluation(
    evaluation: Evaluation, probabilities_NK: np.ndarray, validation_correct: int, validation_total: int
) -> Iterator[Finding]:
    """Findings of an evaluation.

    Args:
        evaluation: of the test split.
        probabilities_NK: of the test images, after temperature scaling.
        validation_correct: validation images that are classified correctly by a network that was not trained on them.
        validation_total: number of validation images.
    """
    if absent := [repr(entry.label) for entry in evaluation.classes if not entry.support]:
        yield Finding(
            code="class_without_test_images",
            message=f"Not measured, for lack of test images: {summarize(absent)}; macro averages leave these classes out.",
        )
    test = evaluation.top1
    table = [[test.correct, test.total - test.correct], [validation_correct, validation_total - validation_correct]]
    if fisher_exact(table).pvalue < SIGNIFICANCE:
        yield Finding(
            code="splits_differ",
            message=f"Accuracy is {test.value:.1%} on the test split and {validation_correct / validation_total:.1%} on "
            "validation, more different than chance explains (Fisher's exact test, p < 0.001): they contain different kinds of "
            "images. Trust the split that is like the images in use.",
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
