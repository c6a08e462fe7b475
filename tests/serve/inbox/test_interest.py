"""How unusual a photo's prediction is, as a share of the held-out images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.collector import drift_of
from edgeline.serve.inbox.interest import InterestIn, share_below


def test_the_share_below_a_value_is_interpolated_within_a_bin() -> None:
    histogram = {"edges": [1.0, 2.0, 4.0], "counts": [1, 2, 4, 1]}
    shares = [share_below(histogram, value) for value in (0.5, 1.0, 1.5, 3.0, 4.0, 99.0)]
    assert shares == [0, 1 / 8, 2 / 8, 5 / 8, 7 / 8, 7 / 8]
    assert share_below({"edges": [1.0], "counts": [0, 0]}, 2.0) == 0


def test_a_photo_is_compared_with_the_held_out_images(explaining_template: Path, make_artifact: Any, seal: Any) -> None:
    from tests.support.explaining import explain_itself

    folder = explain_itself(make_artifact(), seal)
    classifier = Classifier.open(folder, threads=1)
    held_out = drift_of(classifier)
    for step in range(100):  # margins of 0.5 to 0.995, distances around 1
        sure = 0.75 + step / 400
        embedding_C = classifier.features.mean_C + np.sqrt(classifier.features.variance_C) * (0.5 + step / 100)
        probabilities_K = np.array([sure, 1 - sure, 0, 0], np.float32)
        held_out.observe(np.zeros((12, 16, 3), np.uint8), probabilities_K, embedding_C=embedding_C.astype(np.float32))
    (folder / "statistics.json").write_text(json.dumps(held_out.snapshot()))
    seal(folder)
    interest = InterestIn(Classifier.open(folder, threads=1))
    usual_C = classifier.features.mean_C.astype(np.float32)
    far_C = (classifier.features.mean_C + 10 * np.sqrt(classifier.features.variance_C)).astype(np.float32)
    sure_K, unsure_K, between_K = (np.array([p, 1 - p, 0, 0], np.float32) for p in (1.0, 0.52, 0.875))
    assert interest.of(sure_K, usual_C).share < 0.1
    assert interest.of(unsure_K, usual_C).share == 1
    assert interest.of(sure_K, far_C).share == 1
    assert interest.of(between_K, usual_C).share == pytest.approx(0.5, abs=0.06)
    assert interest.of(unsure_K).uncertainty == pytest.approx(0.96, abs=1e-5)
    assert interest.of(unsure_K).distance is None
    assert interest.of(unsure_K, far_C).distance == pytest.approx(10, rel=0.2)


def test_without_statistics_the_uncertainty_counts(artifact_template: Path) -> None:
    interest = InterestIn(Classifier.open(artifact_template, threads=1))
    found = interest.of(np.array([0.3, 0.7, 0, 0], np.float32))
    assert found.share == found.uncertainty == pytest.approx(0.6)
