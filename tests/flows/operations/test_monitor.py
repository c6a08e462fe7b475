"""`edgeline monitor`: what devices have seen, tested against the version in use."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeline.flows.operations.monitor import monitor, monitoring_lines, to_dict
from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.collector import Drift, drift_of
from edgeline.serve.drift.report import FILE_NAME
from edgeline.serve.drift.snapshot import OF_A_VERSION
from edgeline.serve.errors import ArtifactError, ConfigError
from tests.serve.drift.test_report import LABELS, observe
from tests.support.processes import HTTP, started, wait_until_ready

EDGELINE = str(Path(sys.executable).with_name("edgeline"))


@pytest.fixture(name="artifacts")
def with_reference(make_artifact: Any, seal: Any, tmp_path: Path) -> Path:
    folder: Path = make_artifact(store=tmp_path / "artifacts" / "store")
    reference = observe(Drift(LABELS, 12, 16, model="colors", version=1, manifest_sha256=None), 200, seed=0)
    (folder / FILE_NAME).write_text(json.dumps(reference.snapshot() | dict.fromkeys(OF_A_VERSION)))
    seal(folder)
    return tmp_path / "artifacts"


@pytest.fixture(name="field")
def snapshots_of(artifacts: Path, tmp_path: Path) -> Callable[..., Path]:
    """`field(seed, level)`: a snapshot file of a device with 150 images of that brightness."""
    classifier = Classifier.open(artifacts / "store" / "colors")
    (tmp_path / "devices").mkdir()

    def write(seed: int, level: int = 100) -> Path:
        path = tmp_path / "devices" / f"{seed}-{level}.json"
        path.write_text(json.dumps(observe(drift_of(classifier), 150, seed, level).snapshot()))
        return path

    return write


def test_what_looks_like_the_held_out_images_raises_no_alarm(artifacts: Path, field: Callable[..., Path]) -> None:
    field(1), field(2)
    found = monitor(artifacts, "colors", [str(artifacts.parent / "devices")])
    assert (found.snapshots, found.others, found.unreadable) == (2, 0, ())
    assert found.monitored is not None
    assert (found.monitored.window, found.monitored.count, found.monitored.alarm) == (1, 300, ())
    assert monitoring_lines(found)[-1] in (
        "no change beyond chance",
        "no alarm: this window alone could be chance among so many",
    )


def test_brighter_photos_raise_an_alarm_that_names_what_has_changed(artifacts: Path, field: Callable[..., Path]) -> None:
    found = monitor(artifacts, "colors", [str(field(1, 160))])
    assert found.monitored is not None
    assert found.monitored.alarm[0] == "brightness"
    lines = monitoring_lines(found)
    assert any(line.startswith("  brightness has changed: p = ") for line in lines)
    assert lines[-1].startswith("alarm: brightness")
    assert to_dict(found)["alarm"] == list(found.monitored.alarm)
    [series] = (artifacts / "monitoring").glob("colors-1-*.json")
    assert json.loads(series.read_text())["windows"] == 1


def test_snapshots_of_another_version_are_left_out_and_counted(artifacts: Path, field: Callable[..., Path]) -> None:
    old = field(1, 200)
    old.write_text(json.dumps(json.loads(old.read_text()) | {"manifest_sha256": "0" * 64}))
    found = monitor(artifacts, "colors", [str(old)])
    assert (found.snapshots, found.others, found.monitored) == (0, 1, None)
    assert monitoring_lines(found)[-1] == "colors 1: no new images"
    assert not (artifacts / "monitoring").exists()


def test_a_source_that_cannot_be_read_is_named_and_the_others_count(artifacts: Path, field: Callable[..., Path]) -> None:
    damaged = field(2)
    damaged.write_text("{")
    other = field(3)
    held = json.loads(other.read_text())
    del held["statistics"]["top"]
    other.write_text(json.dumps(held))
    huge = field(4)
    held = json.loads(huge.read_text())
    held["predicted"]["counts"][0] += 10**12
    huge.write_text(json.dumps(held | {"count": held["count"] + 10**12}))
    addresses = ["http://127.0.0.1:9/drift", "http://host:abc/drift", "http://[x"]
    sources = [str(field(1)), *map(str, (damaged, other, huge, damaged.with_name("absent.json"))), *addresses]
    found = monitor(artifacts, "colors", sources)
    assert found.snapshots == 1
    assert [each.split(": ")[0] for each in found.unreadable] == sources[1:]
    with pytest.raises(ConfigError, match="no drift snapshot could be read") as caught:
        monitor(artifacts, "colors", sources[1:])
    assert caught.value.code == "no_snapshots"


def test_a_server_is_asked_for_what_it_has_seen(artifacts: Path) -> None:
    folder = artifacts / "store" / "colors"
    picture = (folder / "1" / "golden" / "0.jpg").read_bytes()
    with started(folder, "--drift") as (_, url):
        wait_until_ready(url)
        for _ in range(3):
            assert HTTP.post(f"{url}/predict", content=picture).status_code == 200
        found = monitor(artifacts, "colors", [f"{url}/drift", f"{url}/drift?model=absent"])
    assert found.monitored is not None
    assert found.monitored.count == 3
    assert "HTTP 404" in found.unreadable[0]


def test_the_exit_code_tells_an_alarm_from_an_error(artifacts: Path, field: Callable[..., Path]) -> None:
    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [EDGELINE, "monitor", *map(str, arguments), "--artifacts", str(artifacts)], capture_output=True, text=True
        )

    bright = run("colors", field(1, 160), "--json")
    assert (bright.returncode, json.loads(bright.stdout)["drifted"][0]) == (3, "brightness")
    assert run("colors", field(3)).returncode == 0
    wrong = run("absent", field(3))
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (1, 1)


def test_a_version_without_a_reference_is_an_error(make_artifact: Any, field: Callable[..., Path], tmp_path: Path) -> None:
    path = field(1)
    folder = make_artifact(store=tmp_path / "bare" / "store", version=2)
    assert folder.is_dir()
    with pytest.raises(ArtifactError, match="has no"):
        monitor(tmp_path / "bare", "colors", [str(path)])
