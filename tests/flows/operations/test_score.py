"""Batch inference: a folder of photos becomes Parquet files, which are reused, continued and never mixed."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from edgeline.export.promotion.channels import Change, promote
from edgeline.flows.operations.score import Scored, ScoreOptions, score, scored_line
from edgeline.pipeline.scoring.images import MOST, Entry, divide_by_name
from edgeline.serve.artifact.channels import Followed
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, ConfigError, DataError

COLORS = {"red": (200, 40, 30), "green": (30, 190, 50), "blue": (40, 30, 210)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """300 different photos in folders at two depths, three files that are not usable, and two that are not images."""
    folder, chance = tmp_path / "photos", random.Random(0)
    for label, color in COLORS.items():
        for index in range(100):
            path = folder / label / ("old" if index % 2 else "new") / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 16), tuple(level + chance.randint(-30, 30) for level in color)).save(path)
    (folder / "red" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (folder / "red" / "empty.png").write_bytes(b"")
    (folder / "red" / "gone.png").symlink_to("nowhere.png")
    (folder / "notes.txt").write_text("not an image")
    (folder / "Thumbs.db").write_bytes(bytes(64))
    return folder


def run(artifact: Path, photos: Path, output: Path | str, **options: Any) -> Scored:
    return score(Followed(artifact), photos, str(output), ScoreOptions(**options))


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows = ds.dataset(folder, format="parquet").to_table().to_pylist()
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows)
    return by_path


def files_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def test_every_image_is_a_row_with_what_predict_answers(make_artifact: Any, photos: Path, tmp_path: Path) -> None:
    artifact = make_artifact()
    scored = run(artifact, photos, tmp_path / "scores", top_k=2, probabilities=True)
    rows = rows_of(tmp_path / "scores")
    assert len(rows) == 303
    classifier = Classifier.open(artifact)
    for path in sorted(rows)[::50]:
        if rows[path]["error"]:
            continue
        data = (photos / path).read_bytes()
        [expected] = classifier.predict([data], top_k=2)
        assert rows[path]["sha256"] == hashlib.sha256(data).hexdigest()
        assert rows[path]["label"] == expected[0].label == path.partition("/")[0]
        assert rows[path]["confidence"] == pytest.approx(expected[0].probability, abs=1e-6)
        assert rows[path]["top_labels"] == [each.label for each in expected]
        assert sum(rows[path]["probabilities"]) == pytest.approx(1, abs=1e-5)
    errors = {path: row["code"] for path, row in rows.items() if row["error"]}
    assert errors == {"red/cut.jpg": "not_an_image", "red/empty.png": "image_empty", "red/gone.png": "unreadable"}
    assert all(rows[path]["label"] is None for path in errors)
    summary = json.loads((tmp_path / "scores" / "_summary.json").read_text())
    assert summary["labels"] == {"blue": 100, "green": 100, "red": 100}
    assert (summary["images"], sum(summary["errors"].values()), summary["ignored"]) == (303, 3, 1)
    assert scored_line(scored).startswith(
        "303 images scored by colors 1, 3 of them without a prediction, 1 other files ignored"
    )


def test_the_files_name_the_artifact_that_made_them(make_artifact: Any, photos: Path, tmp_path: Path) -> None:
    artifact = make_artifact()
    run(artifact, photos, tmp_path / "scores")
    digest = hashlib.sha256((artifact / "manifest.json").read_bytes()).hexdigest()
    for path in (tmp_path / "scores").glob("*.parquet"):
        metadata = pq.read_schema(path).metadata
        assert metadata[b"edgeline.artifact"] == b"colors"
        assert metadata[b"edgeline.version"] == b"1"
        assert metadata[b"edgeline.manifest_sha256"].decode() == digest
        assert json.loads(metadata[b"edgeline.labels"]) == ["red", "green", "blue", "dark"]


def test_a_repeated_call_makes_only_the_parts_of_images_that_changed(make_artifact: Any, photos: Path, tmp_path: Path) -> None:
    artifact, output = make_artifact(), tmp_path / "scores"
    first = run(artifact, photos, output)
    before = files_of(output)
    again = run(artifact, photos, output)
    assert (again.reused, again.parts) == (first.parts, first.parts)
    assert files_of(output) == before
    Image.new("RGB", (20, 16), COLORS["blue"]).save(photos / "green" / "new" / "000.png")
    (photos / "red" / "new" / "000.png").unlink()
    changed = run(artifact, photos, output)
    assert changed.parts - changed.reused <= 2
    assert set(files_of(output)) == set(changed.summary["parts"])
    rows = rows_of(output)
    assert rows["green/new/000.png"]["label"] == "blue"
    assert "red/new/000.png" not in rows


def test_a_damaged_part_is_made_again_with_the_same_bytes(make_artifact: Any, photos: Path, tmp_path: Path) -> None:
    artifact, output = make_artifact(), tmp_path / "scores"
    run(artifact, photos, output)
    [victim, *_] = sorted(output.glob("*.parquet"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:200])
    assert run(artifact, photos, output).reused == len(files_of(output)) - 1
    assert victim.read_bytes() == whole


@pytest.mark.long
def test_a_killed_call_continues_and_the_result_is_the_same(make_artifact: Any, photos: Path, tmp_path: Path) -> None:
    artifact, output = make_artifact(), tmp_path / "scores"
    run(artifact, photos, tmp_path / "whole")
    program = (
        "import os, sys; from edgeline.flows.cli import main as cli; from edgeline.pipeline.scoring import parts\n"
        "whole = parts._write\n"
        "def once(path, *others, **named):\n"
        "    whole(path, *others, **named)\n"
        "    path.with_name(f'.{path.name}.0.tmp').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), 9)\n"
        "parts._write = once\n"
        f"sys.argv = ['edgeline', 'score', {str(artifact)!r}, {str(photos)!r}, '--output', {str(output)!r}]; cli.main()"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == -9
    assert not (output / "_summary.json").exists()
    finished = len(files_of(output))
    assert finished >= 1
    assert run(artifact, photos, output).reused == finished
    assert {path.name: path.read_bytes() for path in output.glob("*.parquet")} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.parquet")
    }
    assert not list(output.glob(".*.tmp"))


def test_a_csv_file_lists_the_images_and_one_that_is_missing_is_a_row(make_artifact: Any, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("id;Image Path;path\n1;x;photos/red/new/000.png\n2;x;photos/absent.png\n")
    run(make_artifact(), table, tmp_path / "scores")
    rows = rows_of(tmp_path / "scores")
    assert rows["photos/red/new/000.png"]["label"] == "red"
    assert rows["photos/absent.png"]["code"] == "unreadable"


def test_the_version_is_that_of_the_channel_and_names_the_folder(make_artifact: Any, photos: Path, tmp_path: Path) -> None:
    store = make_artifact().parent
    make_artifact(version=2)
    promote(store, 1, Change("stable", why="test"))
    assert run(store, photos, tmp_path / "{name}-{version}").folder == tmp_path / "colors-1"
    options = ScoreOptions()
    assert score(Followed(store, "latest"), photos, str(tmp_path / "{version}"), options).summary["version"] == 2


def test_a_folder_with_the_results_of_something_else_is_left_alone(make_artifact: Any, photos: Path, tmp_path: Path) -> None:
    first, output = make_artifact(), tmp_path / "scores"
    run(first, photos, output)
    before = files_of(output)
    with pytest.raises(ConfigError, match=r"has results of another scoring: version 1, not 2; choose another folder"):
        run(make_artifact(version=2), photos, output)
    with pytest.raises(ConfigError, match=r"top_k 4, not 1"):
        run(first, photos, output, top_k=1)
    with pytest.raises(ConfigError, match="source"):
        run(first, photos / "red", output)
    assert files_of(output) == before
    with pytest.raises(ConfigError, match="has other files"):
        run(first, photos, photos / "red")
    with pytest.raises(ConfigError, match="is not a folder"):
        run(first, photos, first / "manifest.json")


def test_a_source_without_an_image_is_one_error(make_artifact: Any, tmp_path: Path) -> None:
    artifact, empty = make_artifact(), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="has no image"):
        run(artifact, empty, tmp_path / "scores")
    (empty / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="has 1 files, but no image"):
        run(artifact, empty, tmp_path / "scores")
    with pytest.raises(DataError, match="does not exist"):
        run(artifact, tmp_path / "gone", tmp_path / "scores")
    (tmp_path / "list.csv").write_text("name\nx\n")
    with pytest.raises(DataError, match="has no column path"):
        run(artifact, tmp_path / "list.csv", tmp_path / "scores")
    with pytest.raises(ArtifactError):
        run(tmp_path / "no-artifact", empty, tmp_path / "scores")


@pytest.mark.long
def test_a_full_disk_is_one_line_and_loses_nothing(make_artifact: Any, photos: Path, tmp_path: Path) -> None:
    """A limit of a file's size stands in for the disk: both end a write in its middle."""
    artifact, output = make_artifact(), tmp_path / "scores"
    program = (
        "import resource, sys; from edgeline.flows.cli import main as cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        f"sys.argv = ['edgeline', 'score', {str(artifact)!r}, {str(photos)!r}, '--output', {str(output)!r}]; cli.main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "ulimit -f" in ended.stderr
    assert not files_of(output)
    assert run(artifact, photos, output).summary["images"] == 303


@pytest.mark.long
def test_scoring_imports_no_torch(make_artifact: Any, photos: Path, tmp_path: Path) -> None:
    program = (
        "import json, sys; from edgeline.flows.operations.score import score; from edgeline.serve.artifact.channels import "
        f"Followed; from pathlib import Path; score(Followed(Path({str(make_artifact())!r})), Path({str(photos)!r}), "
        f"{str(tmp_path / 'scores')!r}); print(json.dumps(sorted(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(ended.stdout.splitlines()[-1])}
    assert not loaded & {"torch", "torchvision", "prefect", "sklearn", "scipy", "onnx", "distributed"}


def test_a_new_file_changes_its_own_shard_only() -> None:
    entries = [Entry(f"{index:05}.jpg") for index in range(3000)]
    before = set(divide_by_name(entries))
    after = set(divide_by_name(sorted([*entries, Entry("01000a.jpg")])))
    assert max(map(len, before)) <= MOST
    assert len(after - before) <= 2
    assert sorted(entry for shard in before for entry in shard) == entries
