"""Snapshots of devices compared with an artifact's baseline, as a command and as a function."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.collector import Drift, Origin, drift_of
from edgeline.serve.drift.report import FILE_NAME, compare
from edgeline.serve.drift.snapshot import OF_A_VERSION
from edgeline.serve.errors import ArtifactError, InputError

Run = Callable[..., tuple[int, str, str]]
LABELS = ("red", "green", "blue", "dark")


def observe(drift: Drift, count: int, seed: int, level: int = 100) -> Drift:
    chance = np.random.default_rng(seed)
    for _ in range(count):
        pixels = np.clip(chance.normal(level, 30, (12, 16, 3)) + chance.normal(0, 15), 0, 255).astype(np.uint8)
        drift.observe(pixels, chance.dirichlet([3.0] * 4).astype(np.float32), Origin(640, 480, 30_000))
    return drift


@pytest.fixture(name="artifact")
def with_reference(make_artifact: Any, seal: Any) -> Path:
    folder: Path = make_artifact()
    reference = observe(Drift(LABELS, 12, 16, model="colors", version=1, manifest_sha256=None), 200, seed=0)
    (folder / FILE_NAME).write_text(json.dumps(reference.snapshot() | dict.fromkeys(OF_A_VERSION)))
    return Path(seal(folder))


@pytest.fixture(name="field")
def snapshots_of(artifact: Path, tmp_path: Path) -> Callable[..., Path]:
    """`field(seed, level)`: a snapshot file of a device with 150 images of that brightness."""
    classifier = Classifier.open(artifact)

    def write(seed: int, level: int = 100) -> Path:
        path = tmp_path / f"{seed}-{level}.json"
        path.write_text(json.dumps(observe(drift_of(classifier), 150, seed, level).snapshot()))
        return path

    return write


def test_images_of_the_same_distribution_have_not_drifted(artifact: Path, field: Callable[..., Path]) -> None:
    report = compare([field(1), field(2)], artifact.parent)
    assert (report["model"], report["version"], report["count"], report["reference_count"]) == ("colors", 1, 300, 200)
    assert report["drifted"] == []
    assert report["statistics"].keys() >= {"brightness", "contrast", "top", "margin", "entropy", "predicted"}


def test_brighter_images_have_drifted_in_brightness(artifact: Path, field: Callable[..., Path]) -> None:
    report = compare([field(1, 160)], artifact)
    assert report["drifted"] == ["brightness"]
    found = report["statistics"]["brightness"]
    assert found["psi"] > 1 > found["psi_by_chance"]
    assert found["mean"] > 150 > 110 > found["reference_mean"]


def test_the_limit_is_at_least_chance(artifact: Path, field: Callable[..., Path]) -> None:
    report = compare([field(1)], artifact, limit=0)
    assert all(found["psi"] > 0 for found in report["statistics"].values() if found["count"] and found["js"])
    assert report["drifted"] == []


def test_snapshots_of_another_manifest_are_rejected(artifact: Path, field: Callable[..., Path], make_artifact: Any) -> None:
    path = field(1)
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"manifest_sha256": "0" * 64}))
    with pytest.raises(InputError, match="another manifest") as rejection:
        compare([path], artifact)
    assert rejection.value.code == "snapshots_differ"


def test_an_artifact_without_a_reference_is_an_error(artifact_template: Path, field: Callable[..., Path]) -> None:
    with pytest.raises(ArtifactError, match="has no statistics.json") as rejection:
        compare([field(1)], artifact_template)
    assert rejection.value.code == "no_reference"


def test_an_invalid_file_is_named(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="own reference is not a snapshot of a device"):
        compare([artifact / FILE_NAME], artifact)
    for name, message in {"x.json": "must be an object with the schema", "absent.json": "cannot be read: No such file"}.items():
        with pytest.raises(InputError, match=f"{name}.*{message}"):
            compare([tmp_path / name], artifact)


def test_the_command_prints_a_table_and_fails_only_with_the_option(
    run: Run, artifact: Path, field: Callable[..., Path]
) -> None:
    bright = field(1, 160)
    code, out, err = run("drift", bright, "--artifact", artifact)
    assert (code, err) == (0, "")
    head, columns, *rows = out.splitlines()
    assert head.startswith("colors 1: 150 images of 1 snapshot, ")
    assert columns.split() == ["PSI", "by", "chance", "JS", "mean", "held-out"]
    assert [row.split()[0] for row in rows if row.endswith("drifted")] == ["brightness"]
    assert run("drift", bright, "--artifact", artifact, "--fail-over", 0.25)[0] == 1
    assert run("drift", bright, "--artifact", artifact, "--fail-over", 99)[0] == 0
    assert run("drift", field(2), "--artifact", artifact, "--fail-over", 0.25)[0] == 0


def test_the_command_prints_the_report_as_json(run: Run, artifact: Path, field: Callable[..., Path]) -> None:
    code, out, _ = run("drift", field(1, 160), field(2, 160), "--artifact", artifact, "--json", "--fail-over", 0.25)
    report = json.loads(out)
    assert (code, report["count"], report["limit"]) == (1, 300, 0.25)
    assert report == compare([field(1, 160), field(2, 160)], artifact) | {n: report[n] for n in ("since", "until")}
