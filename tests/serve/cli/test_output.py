"""A line about an image has the figures that `Classifier.predict` returns."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeline.serve.classifier import Classifier, Outputs
from edgeline.serve.cli.output import answer
from edgeline.serve.drift.collector import drift_of
from edgeline.serve.errors import ArtifactError, InputError
from edgeline.serve.inputs.images import Picture
from edgeline.serve.preprocess import decode_image

IDENTITY = {"model": "colors", "version": 1, "variant": "onnx-fp32"}


@pytest.fixture(name="classifier", scope="module")
def opened(artifact_template: Path) -> Classifier:
    return Classifier.open(artifact_template)


@pytest.fixture(name="photo", scope="module")
def golden_photo(artifact_template: Path) -> bytes:
    return (artifact_template / "golden" / "1.jpg").read_bytes()


def test_a_file_has_the_numbers_of_the_classifier(classifier: Classifier, photo: bytes) -> None:
    line = answer(classifier, Picture({"path": "x.jpg"}, photo), top_k=3)
    times = line.pop("times")
    [expected] = classifier.predict([photo], top_k=3)
    assert line == {"path": "x.jpg", **IDENTITY, "predictions": [asdict(prediction) for prediction in expected]}
    assert times.keys() == {"decode_ms", "infer_ms"}
    assert min(times.values()) > 0


def test_a_frame_has_the_numbers_of_a_file_with_the_same_pixels(classifier: Classifier, photo: bytes) -> None:
    from_file = answer(classifier, Picture({"frame": 1}, photo), top_k=2)
    from_camera = answer(classifier, Picture({"frame": 1}, decode_image(photo)), top_k=2)
    assert from_file["predictions"] == from_camera["predictions"]


BAD = {
    "one that could not be read": (InputError("cannot be read", code="image_unreadable"), "image_unreadable"),
    "no image": (b"hello", "not_an_image"),
    "an empty file": (b"", "image_empty"),
}


@pytest.mark.parametrize(("content", "code"), BAD.values(), ids=BAD)
def test_a_bad_image_has_the_error_instead_of_numbers(classifier: Classifier, content: bytes, code: str) -> None:
    line = answer(classifier, Picture({"frame": 7}, content), top_k=2)
    assert line.pop("error")
    assert line == {"frame": 7, **IDENTITY, "code": code}


def test_a_number_that_is_not_finite_affects_one_line(artifact_template: Path, photo: bytes) -> None:
    class Broken(Classifier):
        def run(self, pixels_NHW3: np.ndarray, *, explain: bool = False) -> Outputs:
            raise ArtifactError("the model returned a probability that is not finite", code="model_output_not_finite")

    broken = Broken.open(artifact_template, verify=False)
    line = answer(broken, Picture({"frame": 1}, photo), top_k=1)
    assert line["code"] == "model_output_not_finite"


def test_the_documented_lines_are_the_actual_ones(classifier: Classifier, photo: bytes) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "predict.md").read_text(encoding="utf-8")
    good, bad = map(json.loads, page.partition("```json\n")[2].partition("```")[0].splitlines())
    answered = answer(classifier, Picture({"path": "x.jpg"}, photo), top_k=1)
    rejected = answer(classifier, Picture({"frame": 1}, b""), top_k=1)
    assert (list(good), list(bad)) == (list(answered), list(rejected))
    assert list(good["predictions"][0]) == list(answered["predictions"][0])
    assert good["times"].keys() == answered["times"].keys()


def test_drift_records_only_classified_images(classifier: Classifier, photo: bytes) -> None:
    drift = drift_of(classifier)
    for content in (photo, b"hello", Image.new("RGB", (100, 50), (200, 40, 30))):
        answer(classifier, Picture({"frame": 1}, content), 1, drift)
    snapshot = drift.snapshot()
    assert snapshot["count"] == 2
    assert snapshot["predicted"]["counts"] == [1, 1, 0, 0]
    means = {name: (held["count"], held["mean"]) for name, held in snapshot["statistics"].items()}
    assert means["size_bytes"] == (1, len(photo))
    assert means["width"] == (2, (40 + 100) / 2)
    assert means["height"] == (2, (30 + 50) / 2)
