"""Drift statistics of a server: every answer is recorded, and they are served next to the metrics."""

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.report import compare
from edgeline.serve.drift.snapshot import read_snapshot
from edgeline.serve.errors import ArtifactError
from edgeline.serve.inference.drift_observer import DriftObserver
from edgeline.serve.inference.job import Answer, Job


@pytest.fixture
def photos(artifact_template: Path) -> list[bytes]:
    return [(artifact_template / "golden" / f"{index}.jpg").read_bytes() for index in range(4)]


def test_every_answer_is_in_the_snapshot(artifact_template: Path, photos: list[bytes], serving: Any) -> None:
    with serving(artifact_template, drift=DriftObserver()) as site:
        for photo in photos * 3:
            site.client.post("/predict", content=photo)
        site.client.post("/predict", content=b"not an image")
        snapshot = read_snapshot(site.client.get("/drift").content)
    assert (snapshot["model"], snapshot["version"], snapshot["count"]) == ("colors", 1, 12)
    assert snapshot["predicted"]["counts"] == [3, 3, 3, 3]
    assert snapshot["statistics"]["width"]["count"] == 12


def test_the_drift_command_reads_a_snapshot(artifact_template: Path, photos: list[bytes], serving: Any, tmp_path: Path) -> None:
    with serving(artifact_template, drift=DriftObserver()) as site:
        site.client.post("/predict", content=photos[0])
        (tmp_path / "drift.json").write_bytes(site.client.get("/drift").content)
    with pytest.raises(ArtifactError, match=r"statistics\.json"):  # the snapshot was read; this artifact has no reference
        compare([tmp_path / "drift.json"], artifact_template)


def test_without_statistics_drift_is_not_found(site: Any) -> None:
    reply = site.client.get("/drift")
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    assert "--drift" in reply.json()["error"]


def psi(site: Any) -> dict[str, float]:
    lines = site.client.get("/metrics").text.splitlines()
    return {line.split('statistic="')[1].split('"')[0]: float(line.split()[-1]) for line in lines if "drift_psi{" in line}


def test_the_distances_from_the_reference_are_metrics(make_artifact: Any, seal: Any, photos: list[bytes], serving: Any) -> None:
    folder = make_artifact()
    with serving(folder, drift=DriftObserver()) as site:
        for photo in photos * 5:
            site.client.post("/predict", content=photo)
        reference = site.client.get("/drift").json()
    (folder / "statistics.json").write_text(json.dumps(reference))
    seal(folder)
    with serving(folder, drift=DriftObserver()) as site:
        assert psi(site) == {}
        for photo in photos * 5:
            site.client.post("/predict", content=photo)
        same_images = psi(site)
        for _ in range(60):
            site.client.post("/predict", content=photos[0])
        assert max(same_images.values()) < 0.01
        assert psi(site)["predicted"] > 0.25


def test_statistics_are_dropped_with_their_version(make_artifact: Any, photos: list[bytes]) -> None:
    observer, loop = DriftObserver(), asyncio.new_event_loop()
    loop.close()  # a job needs one, but this one is never delivered
    for version in range(1, 4):
        classifier = Classifier.open(make_artifact(version=version), threads=1)
        pixels_HW3 = classifier.pixels(photos[0])
        probabilities_NK, logits_NK = classifier.answer(pixels_HW3[None])
        job = Job(classifier, photos[0], loop, lambda outcome: None, 0.0, 1.0)
        answer = Answer(
            probabilities_K=probabilities_NK[0],
            logits_K=logits_NK[0],
            queue_s=0,
            decode_s=0,
            infer_s=0,
            batch=1,
            first=True,
            pixels_HW3=pixels_HW3,
        )
        observer.record(job, answer)
        assert observer.snapshot(classifier)["count"] == 1
        del job, answer
    gc.collect()
    assert len(observer) == 1


def test_an_error_in_the_statistics_does_not_cost_an_answer(
    artifact_template: Path, photos: list[bytes], serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(job: Job, answer: Answer) -> None:
        raise OSError("the disk is gone")

    with serving(artifact_template, on_answer=fail) as site:
        assert site.client.post("/predict", content=photos[0]).status_code == 200
    assert any(record.exc_info for record in caplog.records)
