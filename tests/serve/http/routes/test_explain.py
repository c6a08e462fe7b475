"""`POST /predict?explain=cam`: why, over HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.snapshot import read_snapshot
from edgeline.serve.explain import region_of
from edgeline.serve.http.service import ServingLimits
from edgeline.serve.inference.drift_observer import DriftObserver

WHY = {"explain": "cam"}


@pytest.fixture(name="photos", scope="module")
def golden_photos(explaining_template: Path) -> list[bytes]:
    return [(explaining_template / "golden" / f"{index}.jpg").read_bytes() for index in range(4)]


@pytest.fixture(name="explaining", scope="module")
def explaining_site(explaining_template: Path, serving: Any) -> Iterator[Any]:
    with serving(explaining_template, fast_path=True) as site:
        yield site


def test_the_answer_says_where_each_class_was_seen(explaining: Any, explaining_template: Path, photos: list[bytes]) -> None:
    classifier = Classifier.open(explaining_template)
    for photo in photos:
        told = explaining.client.post("/predict", params=WHY | {"top_k": 3}, content=photo).json()
        [explanation] = classifier.explain([photo], top_k=3)
        assert [each["label"] for each in told["predictions"]] == [each.label for each in explanation.predictions]
        for each, evidence_hw in zip(told["predictions"], explanation.evidence_Khw, strict=True):
            np.testing.assert_array_equal(np.float32(each["evidence"]), evidence_hw)
        region = list(region_of(photo, classifier.manifest.preprocess))
        assert told["explanation"] == {"method": "cam", "region": pytest.approx(region)}


def test_whoever_does_not_ask_is_told_what_he_was_told_before(explaining: Any, photos: list[bytes]) -> None:
    plain = explaining.client.post("/predict", content=photos[0]).json()
    asked = explaining.client.post("/predict", params=WHY, content=photos[0]).json()
    del asked["explanation"]
    for each in asked["predictions"]:
        del each["evidence"]
    assert plain == asked


def test_a_form_explains_each_file_or_says_what_is_wrong_with_it(explaining: Any, photos: list[bytes]) -> None:
    one = explaining.client.post("/predict", params=WHY, files=[("file", photos[0])]).json()
    assert one["explanation"]["method"] == "cam"
    files = [("file", photos[0]), ("file", b"no image"), ("file", photos[1])]
    first, bad, second = explaining.client.post("/predict", params=WHY, files=files).json()["results"]
    assert bad["code"] == "not_an_image"
    for told, photo in ((first, photos[0]), (second, photos[1])):
        alone = explaining.client.post("/predict", params=WHY, content=photo).json()
        assert told == {name: alone[name] for name in ("predictions", "explanation")}


@pytest.mark.parametrize("query", ["explain=", "explain=gradcam", "explain=CAM", "explain=cam&explain=cam", "explain=1"])
def test_another_way_to_ask_is_refused(explaining: Any, photos: list[bytes], query: str) -> None:
    reply = explaining.client.post(f"/predict?{query}", content=photos[0])
    assert (reply.status_code, reply.json()["code"]) == (400, "explain_invalid")
    assert "cam" in reply.json()["error"]


def test_of_more_than_twenty_classes_it_is_not_asked(explaining: Any, photos: list[bytes]) -> None:
    assert explaining.client.post("/predict", params=WHY | {"top_k": 20}, content=photos[0]).status_code == 200
    reply = explaining.client.post("/predict", params=WHY | {"top_k": 21}, content=photos[0])
    assert (reply.status_code, reply.json()["code"]) == (400, "explain_invalid")
    assert "20" in reply.json()["error"]


def test_an_artifact_that_cannot_say_why_says_so(site: Any, photos: list[bytes]) -> None:
    reply = site.client.post("/predict", params=WHY, content=photos[0])
    assert (reply.status_code, reply.json()["code"]) == (400, "explain_not_available")
    assert "export.explain" in reply.json()["error"]


def test_a_bad_image_is_refused_as_ever(explaining: Any) -> None:
    reply = explaining.client.post("/predict", params=WHY, content=b"no image")
    assert (reply.status_code, reply.json()["code"]) == (422, "not_an_image")


def test_the_document_knows_how_to_ask_and_what_comes(explaining: Any) -> None:
    document = explaining.client.get("/openapi.json").json()
    [told] = [each for each in document["paths"]["/predict"]["post"]["parameters"] if each["name"] == "explain"]
    assert told["schema"] == {"const": "cam"}
    assert "evidence" in document["components"]["schemas"]["Class"]["properties"]


def test_the_challenger_is_not_asked_why(explaining_template: Path, artifact_template: Path, serving: Any) -> None:
    photo = (explaining_template / "golden" / "0.jpg").read_bytes()
    with serving(explaining_template, challenger=artifact_template, serving_limits=ServingLimits(challenger_share=1.0)) as site:
        for _ in range(3):
            assert "explanation" in site.client.post("/predict", params=WHY, content=photo).json()


def test_drift_has_the_distance_of_the_features(explaining_template: Path, photos: list[bytes], serving: Any) -> None:
    with serving(explaining_template, drift=DriftObserver()) as site:
        for photo in photos * 2:
            site.client.post("/predict", content=photo)
        snapshot = read_snapshot(site.client.get("/drift").content)
    assert snapshot["statistics"]["embedding"]["count"] == 8
    assert 0.5 < snapshot["statistics"]["embedding"]["mean"] < 1.1
