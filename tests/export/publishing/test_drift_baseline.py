"""The drift baseline of an artifact equals what a device would have recorded on the test split."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeline.pipeline.data.samples import read_prepared
from edgeline.serve.classifier import Classifier
from edgeline.serve.cli.output import answer
from edgeline.serve.drift.collector import drift_of
from edgeline.serve.drift.report import FILE_NAME, compare
from edgeline.serve.drift.snapshot import OF_A_VERSION, distance, read_snapshot
from edgeline.serve.inputs.images import read_picture


@pytest.fixture(name="reference", scope="module")
def _reference(finished: Any) -> dict[str, Any]:
    return read_snapshot((finished.artifact / FILE_NAME).read_bytes())


def test_the_baseline_covers_every_test_image(finished: Any, reference: dict[str, Any]) -> None:
    held_out = read_prepared(finished.run.step("prepare")).of("test")
    assert reference["count"] == len(held_out) > 2
    assert reference["model"] == "photos"
    assert [reference[name] for name in OF_A_VERSION] == [None] * 4
    assert reference["predicted"]["labels"] == ["bark", "leaf", "sky"]
    assert sum(reference["predicted"]["counts"]) == len(held_out)
    assert all(held["count"] == len(held_out) for held in reference["statistics"].values())


def test_a_device_with_the_same_images_has_not_drifted(finished: Any, reference: dict[str, Any], tmp_path: Path) -> None:
    classifier = Classifier.open(finished.artifact)
    drift = drift_of(classifier)
    for sample in read_prepared(finished.run.step("prepare")).of("test"):
        answer(classifier, read_picture(sample.path, 2**24), 1, drift)
    snapshot = drift.snapshot()
    for name, held in reference["statistics"].items():
        assert snapshot["statistics"][name]["mean"] == pytest.approx(held["mean"], rel=1e-4, abs=1e-4), name
    found = distance(snapshot, reference)
    for name in ("brightness", "contrast", "width", "height", "aspect", "size_bytes", "predicted"):
        assert found[name]["psi"] == 0
    (tmp_path / "drift.json").write_text(json.dumps(snapshot))
    assert compare([tmp_path / "drift.json"], finished.artifact)["drifted"] == []
