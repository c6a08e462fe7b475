"""A version becomes a repository in the layout of Hugging Face, and is the same version when it comes back."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from edgeline.export.publishing.store import add_version
from edgeline.export.registries.huggingface import copy_artifact, write_repository
from edgeline.serve.artifact.reader import Artifact, open_artifact
from edgeline.serve.errors import ConfigError, DigestError, StoreError

METRICS = {"top1": {"value": 0.97493, "low": 0.95, "high": 0.99, "correct": 350, "total": 359}}


@pytest.fixture(name="artifact")
def _artifact(make_artifact: Callable[..., Path]) -> Artifact:
    return open_artifact(make_artifact(version=3, metrics=METRICS))


def pull(repository: Path, store: Path, temporary: Path) -> tuple[Path, bool]:
    temporary.mkdir()
    opened = open_artifact(copy_artifact(repository, temporary))
    return add_version(store / opened.manifest.name, opened)


def test_a_version_comes_back_byte_for_byte_under_its_number(artifact: Artifact, tmp_path: Path) -> None:
    write_repository(artifact, tmp_path / "hub")
    folder, existed = pull(tmp_path / "hub", tmp_path / "other", tmp_path / "1")
    assert (folder.name, existed) == ("3", False)
    assert open_artifact(folder).manifest_sha256 == artifact.manifest_sha256
    assert pull(tmp_path / "hub", tmp_path / "other", tmp_path / "2") == (folder, True)


def test_a_clone_with_its_git_files_is_read_too(artifact: Artifact, tmp_path: Path) -> None:
    write_repository(artifact, tmp_path / "hub")
    subprocess.run(["git", "init", "--quiet", tmp_path / "hub"], check=True)
    folder, _ = pull(tmp_path / "hub", tmp_path / "other", tmp_path / "1")
    assert not [path for path in folder.rglob("*") if ".git" in path.name]


def test_the_model_card_has_metadata_that_the_hubs_library_reads(artifact: Artifact, tmp_path: Path) -> None:
    write_repository(artifact, tmp_path / "hub")
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9749)


def test_the_next_version_replaces_all_files_of_the_one_before(
    artifact: Artifact, make_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    write_repository(artifact, tmp_path / "hub")
    (tmp_path / "hub" / "golden" / "of-an-earlier-version.bin").write_bytes(b"old")
    other = open_artifact(make_artifact(version=4))
    write_repository(other, tmp_path / "hub")
    folder, _ = pull(tmp_path / "hub", tmp_path / "other", tmp_path / "1")
    assert open_artifact(folder).manifest_sha256 == other.manifest_sha256


def test_a_folder_with_other_files_is_left_alone(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"has other files \(thesis.txt\); choose an empty folder"):
        write_repository(artifact, tmp_path / "hub")
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["thesis.txt"]


def test_a_damaged_file_is_not_published(artifact: Artifact, tmp_path: Path) -> None:
    write_repository(artifact, tmp_path / "hub")
    model = tmp_path / "hub" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(DigestError, match="model.onnx"):
        pull(tmp_path / "hub", tmp_path / "other", tmp_path / "1")
    assert not (tmp_path / "other").exists()


def test_a_number_that_has_other_content_here_is_not_replaced(
    artifact: Artifact, make_artifact: Callable[..., Path], seal: Callable[..., Path], tmp_path: Path
) -> None:
    write_repository(artifact, tmp_path / "hub")
    folder = artifact.folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    (folder / "card.md").write_text("changed")
    seal(folder)
    before = open_artifact(folder).manifest_sha256
    with pytest.raises(StoreError, match="is published here with other content"):
        pull(tmp_path / "hub", folder.parent.parent, tmp_path / "1")
    assert open_artifact(folder).manifest_sha256 == before


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no manifest.json; expected a folder that `edgeline push"):
        copy_artifact(tmp_path, tmp_path / "1")
