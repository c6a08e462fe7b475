"""Findings of an evaluation: classes without images, splits that differ, confidence that misleads."""

from collections.abc import Sequence

import numpy as np
import pytest

from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.evaluation.evaluate import evaluate
from edgeline.pipeline.evaluation.findings import HeldOut, find_in_evaluation, find_in_insight
from edgeline.pipeline.evaluation.insight import Insight, LabelError
from edgeline.pipeline.evaluation.learning_curve import ClassGain, LearningCurve, Point
from edgeline.pipeline.evaluation.metrics import softmax
from edgeline.pipeline.evaluation.report import Share
from edgeline.pipeline.evaluation.slices import Slice

LABELS = ("a", "b", "c")


def sample(index: int) -> Sample:
    return Sample(
        path="/x", label=LABELS[index], index=index, split="test", group="", sha256="", pixels="", width=8, height=8, name="x"
    )


def findings(
    targets: Sequence[int],
    wrong: int,
    *,
    logit: float = 3.0,
    validation: tuple[int, int] = (95, 100),
    temperature: float = 1.0,
) -> dict[str, str]:
    """The findings if the first images are classified wrongly, all with the same confidence, by code."""
    targets_N = np.array(targets)
    predicted_N = np.where(np.arange(len(targets)) < wrong, (targets_N + 1) % 3, targets_N)
    logits_NK = np.zeros((len(targets), 3), np.float32)
    logits_NK[np.arange(len(targets)), predicted_N] = logit
    evaluation = evaluate(logits_NK, [sample(index) for index in targets], LABELS, temperature=temperature, bins=15)
    held_out = HeldOut(*validation, "on validation")
    return {found.code: found.message for found in find_in_evaluation(evaluation, softmax(logits_NK), held_out)}


def test_an_evaluation_as_expected_has_no_findings() -> None:
    assert findings([0, 1, 2] * 33, wrong=9) == {}


def test_a_class_without_test_images_is_reported_and_left_out_of_the_averages() -> None:
    """F5: it counted as an F1 of 0."""
    assert "for lack of test images: 'b', 'c'" in findings([0] * 100, wrong=9)["class_without_test_images"]
    logits_NK = np.array([[3.0, 0.0, 0.0]] * 4, np.float32)
    evaluation = evaluate(logits_NK, [sample(0)] * 4, LABELS, temperature=1.0, bins=15)
    assert (evaluation.macro.f1, evaluation.macro.recall) == (1.0, 1.0)


def test_a_test_split_of_another_kind_than_validation_is_reported() -> None:
    """F3c: 42 % on test, 87 % on validation."""
    message = findings([0, 1, 2] * 100, wrong=174, validation=(87, 100))["splits_differ"]
    assert message.startswith(
        "Accuracy is 42.0% on the test split and 87.0% on validation, more different than chance explains"
    )


@pytest.mark.parametrize(("wrong", "validation"), [(6, (28, 30)), (3, (30, 30)), (0, (26, 30))])
def test_a_difference_that_chance_explains_is_not_reported(wrong: int, validation: tuple[int, int]) -> None:
    assert "splits_differ" not in findings([0, 1, 2] * 10, wrong=wrong, validation=validation)


@pytest.mark.parametrize(("temperature", "reported"), [(0.5, True), (0.55, False), (1.0, False), (19.0, False), (19.9, True)])
def test_a_temperature_at_the_end_of_its_range_is_reported(temperature: float, reported: bool) -> None:
    found = findings([0, 1, 2] * 33, wrong=9, temperature=temperature)
    assert ("temperature_at_its_bound" in found) == reported


def test_confidence_far_from_the_accuracy_is_reported() -> None:
    """F3c: a calibration error of 0.40."""
    message = findings([0, 1, 2] * 50, wrong=75, validation=(50, 100))["confidence_misleads"]
    assert message.startswith("Mean confidence on the test split is 90.9%, accuracy 50.0%")


def test_certain_and_almost_always_right_is_not_reported() -> None:
    assert findings([0, 1, 2] * 50, wrong=1, logit=30.0, validation=(99, 100)) == {}


def test_a_difference_of_one_point_is_not_reported_even_if_thousands_of_images_prove_it() -> None:
    assert "splits_differ" not in findings([0, 1, 2] * 3000, wrong=180, validation=(89_000, 90_000))
    assert "splits_differ" in findings([0, 1, 2] * 3000, wrong=360, validation=(89_000, 90_000))


def insight(**fields: object) -> Insight:
    given = {"labels_checked": 0, "label_errors": [], "learning_curve": None, "slices": [], "mistakes": []}
    return Insight.model_validate(given | fields)


def curve(low: float) -> LearningCurve:
    points = [Point(images=n, accuracy=a, low=a - 0.02, high=a + 0.01) for n, a in ((544, 0.931), (1088, 0.966))]
    gain = ClassGain(label="crocus", more=50, gain=0.008, low=low, high=0.015)
    return LearningCurve(points=points, classes=[gain])


def test_the_findings_about_the_data_are_sentences_with_their_figures() -> None:
    error = LabelError(
        image="b/1.jpg", split="train", label="b", suggested="c", label_probability=0.01, suggested_probability=0.9
    )
    site = Slice(column="site", value="north", share=Share(value=0.5, low=0.4, high=0.6, correct=20, total=40), p_value=1e-5)
    found = {
        each.code: each.message
        for each in find_in_insight(
            insight(labels_checked=1088, label_errors=[error], slices=[site], learning_curve=curve(0.001))
        )
    }
    assert found["label_errors"].startswith("Labels to check: 1 of 1,088 are probably wrong")
    assert found["label_errors"].endswith("b/1.jpg for example, labeled 'b', probably 'c'.")
    assert found["slice_differs"].startswith("Accuracy is 50.0% on the 40 test images with site = north")
    assert found["learning_curve"] == (
        "With 544 training images accuracy is 93.1% (91.1% to 94.1%), with 1,088 96.6% (94.6% to 97.6%), by a quick linear "
        "classifier on the pretrained features. 50 more of 'crocus' would give about +0.8 points (+0.1 to +1.5)."
    )


def test_a_gain_that_may_be_none_and_a_slice_like_the_others_are_not_reported() -> None:
    site = Slice(column="site", value="north", share=Share(value=0.5, low=0.4, high=0.6, correct=20, total=40), p_value=0.01)
    [found] = find_in_insight(insight(slices=[site], learning_curve=curve(-0.001)))
    assert found.code == "learning_curve"
    assert "crocus" not in found.message
