"""`POST /predict?explain=cam`: explanations over HTTP."""

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


def test_an_explanation_has_a_map_for_each_class(explaining: Any, explaining_template: Path, photos: list[bytes]) -> None:
    classifier = Classifier.open(explaining_template)
    for photo in photos:
        response = explaining.client.post("/predict", params=WHY | {"top_k": 3}, content=photo).json()
        [explanation] = classifier.explain([photo], top_k=3)
        assert [each["label"] for each in response["predictions"]] == [each.label for each in explanation.predictions]
        for each, evidence_hw in zip(response["predictions"], explanation.evidence_Khw, strict=True):
            np.testing.assert_array_equal(np.float32(each["evidence"]), evidence_hw)
        region = list(region_of(photo, classifier.manifest.preprocess))
        assert response["explanation"] == {"method": "cam", "region": pytest.approx(region)}


def test_without_explain_the_response_is_unchanged(explaining: Any, photos: list[bytes]) -> None:
    plain = explaining.client.post("/predict", content=photos[0]).json()
    asked = explaining.client.post("/predict", params=WHY, content=photos[0]).json()
    del asked["explanation"]
    for each in asked["predictions"]:
        del each["evidence"]
    assert plain == asked


def test_a_form_gets_an_explanation_or_an_error_for_each_file(explaining: Any, photos: list[bytes]) -> None:
    one = explaining.client.post("/predict", params=WHY, files=[("file", photos[0])]).json()
    assert one["explanation"]["method"] == "cam"
    files = [("file", photos[0]), ("file", b"no image"), ("file", photos[1])]
    first, bad, second = explaining.client.post("/predict", params=WHY, files=files).json()["results"]
    assert bad["code"] == "not_an_image"
    for response, photo in ((first, photos[0]), (second, photos[1])):
        alone = explaining.client.post("/predict", params=WHY, content=photo).json()
        assert response == {name: alone[name] for name in ("predictions", "explanation")}


@pytest.mark.parametrize("query", ["explain=", "explain=gradcam", "explain=CAM", "explain=cam&explain=cam", "explain=1"])
def test_an_unknown_explain_value_is_rejected(explaining: Any, photos: list[bytes], query: str) -> None:
    reply = explaining.client.post(f"/predict?{query}", content=photos[0])
    assert (reply.status_code, reply.json()["code"]) == (400, "explain_invalid")
    assert "cam" in reply.json()["error"]


def test_explain_allows_at_most_twenty_classes(explaining: Any, photos: list[bytes]) -> None:
    assert explaining.client.post("/predict", params=WHY | {"top_k": 20}, content=photos[0]).status_code == 200
    reply = explaining.client.post("/predict", params=WHY | {"top_k": 21}, content=photos[0])
    assert (reply.status_code, reply.json()["code"]) == (400, "explain_invalid")
    assert "20" in reply.json()["error"]


def test_an_artifact_without_maps_rejects_explain(site: Any, photos: list[bytes]) -> None:
    reply = site.client.post("/predict", params=WHY, content=photos[0])
    assert (reply.status_code, reply.json()["code"]) == (400, "explain_not_available")
    assert "export.explain" in reply.json()["error"]


def test_a_bad_image_gets_the_usual_error_with_explain(explaining: Any) -> None:
    reply = explaining.client.post("/predict", params=WHY, content=b"no image")
    assert (reply.status_code, reply.json()["code"]) == (422, "not_an_image")


def test_openapi_describes_the_parameter_and_the_maps(explaining: Any) -> None:
    document = explaining.client.get("/openapi.json").json()
    [parameter] = [each for each in document["paths"]["/predict"]["post"]["parameters"] if each["name"] == "explain"]
    assert parameter["schema"] == {"const": "cam"}
    assert "evidence" in document["components"]["schemas"]["Class"]["properties"]


def test_explain_is_not_sent_to_the_challenger(explaining_template: Path, artifact_template: Path, serving: Any) -> None:
    photo = (explaining_template / "golden" / "0.jpg").read_bytes()
    with serving(explaining_template, challenger=artifact_template, serving_limits=ServingLimits(challenger_share=1.0)) as site:
        for _ in range(3):
            assert "explanation" in site.client.post("/predict", params=WHY, content=photo).json()


def test_drift_includes_the_distance_of_the_features(explaining_template: Path, photos: list[bytes], serving: Any) -> None:
    with serving(explaining_template, drift=DriftObserver()) as site:
        for photo in photos * 2:
            site.client.post("/predict", content=photo)
        snapshot = read_snapshot(site.client.get("/drift").content)
    assert snapshot["statistics"]["embedding"]["count"] == 8
    assert 0.5 < snapshot["statistics"]["embedding"]["mean"] < 1.1
