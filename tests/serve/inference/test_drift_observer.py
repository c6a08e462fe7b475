"""Drift statistics of a server: every answer is in them, and they are given to whoever may see the metrics."""

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
from edgeline.serve.inference.scheduler import Answer, Job


@pytest.fixture
def photos(artifact_template: Path) -> list[bytes]:
    return [(artifact_template / "golden" / f"{index}.jpg").read_bytes() for index in range(4)]


def test_every_answer_is_in_the_snapshot_that_is_given(artifact_template: Path, photos: list[bytes], serving: Any) -> None:
    with serving(artifact_template, drift=DriftObserver()) as site:
        for photo in photos * 3:
            site.client.post("/predict", content=photo)
        site.client.post("/predict", content=b"no image")
        snapshot = read_snapshot(site.client.get("/drift").content)
    assert (snapshot["model"], snapshot["version"], snapshot["count"]) == ("colors", 1, 12)
    assert snapshot["predicted"]["counts"] == [3, 3, 3, 3]
    assert snapshot["statistics"]["width"]["count"] == 12


def test_a_snapshot_is_what_the_command_reads(
    artifact_template: Path, photos: list[bytes], serving: Any, tmp_path: Path
) -> None:
    with serving(artifact_template, drift=DriftObserver()) as site:
        site.client.post("/predict", content=photos[0])
        (tmp_path / "drift.json").write_bytes(site.client.get("/drift").content)
    with pytest.raises(ArtifactError, match=r"statistics\.json"):  # this artifact carries no reference, and it got that far
        compare([tmp_path / "drift.json"], artifact_template)


def test_without_statistics_there_is_nothing_to_give(site: Any) -> None:
    reply = site.client.get("/drift")
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    assert "--drift" in reply.json()["error"]


def psi(site: Any) -> dict[str, float]:
    lines = site.client.get("/metrics").text.splitlines()
    return {line.split('statistic="')[1].split('"')[0]: float(line.split()[-1]) for line in lines if "drift_psi{" in line}


def test_the_distances_from_a_reference_are_metrics(make_artifact: Any, seal: Any, photos: list[bytes], serving: Any) -> None:
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
        alike = psi(site)
        for _ in range(60):
            site.client.post("/predict", content=photos[0])
        assert max(alike.values()) < 0.01
        assert psi(site)["predicted"] > 0.25


def test_statistics_of_versions_that_are_gone_go_with_them(make_artifact: Any, photos: list[bytes]) -> None:
    observed, loop = DriftObserver(), asyncio.new_event_loop()
    loop.close()  # a job names one; this one is never handed over
    for version in range(1, 4):
        classifier = Classifier.open(make_artifact(version=version), threads=1)
        pixels_HW3 = classifier.pixels(photos[0])
        probabilities_NK, logits_NK = classifier.answer(pixels_HW3[None])
        job = Job(classifier, photos[0], loop, lambda outcome: None, 0.0, 1.0)
        observed.take(job, Answer(probabilities_NK[0], logits_NK[0], 0, 0, 0, 1, True, pixels_HW3))
        assert observed.snapshot(classifier)["count"] == 1
        del job
    gc.collect()
    assert len(observed._kept) == 1


def test_statistics_that_fail_cost_no_answer(
    artifact_template: Path, photos: list[bytes], serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(job: Job, answer: Answer) -> None:
        raise OSError("the disk is gone")

    with serving(artifact_template, on_answer=fail) as site:
        assert site.client.post("/predict", content=photos[0]).status_code == 200
    assert any(record.exc_info for record in caplog.records)
