"""`edgeline retrain`: a version replaces the one in use only by a decision, and no test image is ever trained on."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeline.flows.cli.operations.update import to_dict
from edgeline.flows.operations import retrain as retraining
from edgeline.flows.operations.retrain import retrain, retrained_lines, waiting_for_labels
from edgeline.pipeline.config import PipelineConfig, load_config
from edgeline.pipeline.data.image_record import read_record
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared
from edgeline.pipeline.runs.run import with_splits_of
from edgeline.serve.artifact.channels import read_channels
from edgeline.serve.artifact.reader import open_artifact, resolve, versions
from edgeline.serve.errors import ConfigError, DataError

EDGELINE = str(Path(sys.executable).with_name("edgeline"))


@pytest.fixture(name="config")
def _config(finished_folder: Path, tmp_path: Path) -> PipelineConfig:
    """The configuration of a published run, whose folder was copied."""
    shutil.copytree(finished_folder, tmp_path, dirs_exist_ok=True)
    [file] = (tmp_path / "artifacts" / "runs").glob("*/config.json")
    return load_config(file, data=str(tmp_path / "tints"), artifacts=str(tmp_path / "artifacts"))


def add(config: PipelineConfig, label: str, count: int, red: int, blue: int) -> None:
    """Add photos of about one color, with noise that no two share."""
    for number in range(count):
        noise = np.random.default_rng((number, red)).integers(-60, 61, (32, 40, 3))
        pixels = np.clip(noise + (red, 40 + 9 * number % 50, blue), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(Path(config.data, label, f"new-{number}.png"))


@pytest.mark.slow
def test_the_line_from_new_photos_to_a_decision(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    store = config.store / config.artifact_name
    first = read_record(store / "1" / "images.npz")
    tested = {pixels for pixels, known in first.items() if known.tested}
    assert tested
    assert {known.split for known in first.values()} == {"train", "val", "test"}
    add(config, "warm", 6, 200, 60)
    add(config, "cold", 6, 40, 220)

    def killed(*_: Any) -> None:
        assert resolve(store) == store / "1"  # published, and not in use before the decision
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(retraining, "compare_and_decide", killed)
        with pytest.raises(KeyboardInterrupt):
            retrain(config)
    assert versions(store) == [1, 2]

    done = retrain(config)
    assert (done.version, done.trained) == (2, False)
    assert done.decision is not None
    assert done.decision.verdict == "too few images"
    assert [each.variant for each in done.decision.variants][0] == "onnx-fp32"
    assert (done.stable, resolve(store)) == (1, store / "1")
    history = read_channels(store).history
    assert [(event.action, event.version) for event in history] == [("promote", 1), ("keep", 2)]
    assert history[0].why == "in use before the first comparison"
    assert history[1].why == done.decision.reason
    assert "not promoted: stable stays at version 1" in "\n".join(retrained_lines(done, store))
    assert to_dict(done)["promoted"] is False

    second = read_record(store / "2" / "images.npz")
    assert all(second[pixels].split == "test" for pixels in tested)
    assert all(second[pixels].split == known.split for pixels, known in first.items())

    again = retrain(config)
    assert (again.version, again.trained, again.decision) == (2, False, None)
    assert versions(store) == [1, 2]
    assert retrained_lines(again, store)[0].startswith("nothing has changed since version 2, which is not in use (too few")


def test_photos_that_wait_for_a_label_are_counted(tmp_path: Path) -> None:
    assert waiting_for_labels(tmp_path, 2) == (
        f"no photos with a new label since version 2; {tmp_path} has no photo that waits for one"
    )
    for name in ("a.jpg", "b.jpg", "c.png", "d.webp", "a.json", "inbox.json"):
        (tmp_path / name).touch()
    (tmp_path / "labels.csv").write_text("path,label\na.jpg,warm\n")
    (tmp_path / "labels.none.csv").write_text("path\nb.jpg\n")
    assert waiting_for_labels(tmp_path, 2).endswith(f"; 2 photos in {tmp_path} wait for one")
    (tmp_path / "labels.csv").write_text("file,label\na.jpg,warm\n")
    for wrong in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ConfigError, match=f"the inbox {wrong} cannot be read"):
            waiting_for_labels(wrong, 2)


@pytest.mark.long
def test_labels_of_an_inbox_reach_the_next_version_and_the_users_folders_stay_as_they_are(
    config: PipelineConfig, tmp_path: Path
) -> None:
    from edgeline.serve.inbox.decisions import Decisions

    before = sorted(path for path in Path(config.data).rglob("*"))
    add(config, "warm", 4, 200, 60)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for photo in Path(config.data, "warm").glob("new-*"):
        photo.rename(inbox / photo.name)
        Decisions(inbox / "labels.csv").label(photo.name, "warm")
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    command = [EDGELINE, "retrain", "--config", str(file), "--labels", str(inbox / "labels.csv"), "--json"]
    done, again = (json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(2))
    assert (done["version"], done["trained"]) == (2, True)
    assert (again["version"], again["trained"]) == (2, False)
    first, second = (read_record(config.store / config.artifact_name / version / "images.npz") for version in "12")
    assert len(second) == len(first) + 4
    assert sorted(path for path in Path(config.data).rglob("*")) == before
    stated = json.loads((config.store / config.artifact_name / "2" / "manifest.json").read_text())["provenance"]["config"]
    assert "labels" not in stated["prepare"]  # a path of this machine


@pytest.mark.long
def test_the_first_version_becomes_stable(config: PipelineConfig) -> None:
    shutil.rmtree(config.store)
    done = retrain(config)
    assert (done.version, done.stable, done.decision) == (1, 1, None)
    assert resolve(config.store / config.artifact_name).name == "1"
    assert "the first version: it is stable now" in retrained_lines(done, config.store)[0]


def test_images_keep_the_splits_that_a_version_gave_them(config: PipelineConfig) -> None:
    record = read_record(config.store / config.artifact_name / "1" / "images.npz")
    for label, red, blue in (("warm", 210, 30), ("cold", 20, 240)):
        add(config, label, 40, red, blue)
    kept, free = (read_prepared(prepare(with_splits_of(config, version))[0].step("prepare")).samples for version in (1, None))
    of_kept, of_free = ({sample.pixels: sample.split for sample in samples} for samples in (kept, free))
    assert all(of_kept[pixels] == known.split for pixels, known in record.items())
    assert any(of_free[pixels] != known.split for pixels, known in record.items())
    new = [split for pixels, split in of_kept.items() if pixels not in record]
    assert {"train", "test"} <= set(new)


def test_a_version_that_does_not_record_its_images_is_reported(config: PipelineConfig) -> None:
    (config.store / config.artifact_name / "1" / "images.npz").unlink()
    with pytest.raises(DataError, match="does not record its images") as caught:
        prepare(with_splits_of(config, 1))
    assert caught.value.code == "record_missing"


def test_wrong_photos_stop_the_command_before_training_with_one_line(config: PipelineConfig, tmp_path: Path) -> None:
    add(config, "warm", 6, 20, 240)  # the colors of the other class
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    done = subprocess.run([EDGELINE, "retrain", "--config", str(file)], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("edgeline: 6 of 6 new photos labeled 'warm' are taken for 'cold', by the version in use, ")
    assert last.endswith("[labels_suspicious]")
    assert versions(config.store / config.artifact_name) == [1]


@pytest.mark.long
def test_a_retraining_that_is_killed_again_and_again_publishes_one_version_and_decides_once(
    config: PipelineConfig, tmp_path: Path
) -> None:
    add(config, "warm", 6, 200, 60)
    add(config, "cold", 6, 40, 220)
    file, store = tmp_path / "settings.json", config.store / config.artifact_name
    file.write_text(json.dumps(config.model_dump(mode="json")))
    command = [EDGELINE, "retrain", "--config", str(file), "--json"]
    rng, kills = random.Random(0), 0
    while kills < 10:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(2, 12))
            break  # it has finished
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            assert resolve(store) == store / "1"
    done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (done["version"], done["stable"]) == (2, 1)
    assert kills > 0
    assert versions(store) == [1, 2]
    events = read_channels(store).history
    assert [(event.action, event.version) for event in events] == [("promote", 1), ("keep", 2)]
    assert not [path.name for path in store.iterdir() if path.name.startswith((".staging", ".channels"))]
    for version in (1, 2):
        assert open_artifact(store / str(version)).manifest.version == version
