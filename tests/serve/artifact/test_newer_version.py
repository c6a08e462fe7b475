"""Finding the version to load next."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.serve.artifact.channels import Channels
from edgeline.serve.artifact.newer_version import find_current, find_next
from edgeline.serve.errors import ArtifactError

MakeArtifact = Callable[..., Path]


def test_the_newest_version_is_found_by_number(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(version=9).parent
    make_artifact(version=10)
    assert (find_current(folder).folder, find_current(folder).version) == (folder / "10", 10)


def test_an_artifact_is_its_own_newest_version_and_nothing_is_newer(make_artifact: MakeArtifact) -> None:
    artifact = make_artifact()
    assert (find_current(artifact).folder, find_current(artifact).version) == (artifact, None)
    assert find_next(artifact, served=1) is None


def test_only_a_version_above_the_given_one_is_newer(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(version=2).parent
    assert find_next(folder, served=2) is None
    assert find_next(folder, served=1) == find_current(folder)


def test_a_candidate_differs_once_a_file_below_it_changes(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(version=2)
    before = find_current(folder.parent)
    assert find_current(folder.parent) == before
    (folder / "golden" / "more").write_text("x")
    assert find_current(folder.parent) != before


def test_a_store_that_disappears_has_no_newest_and_no_newer_version(make_artifact: MakeArtifact) -> None:
    folder = make_artifact().parent
    shutil.rmtree(folder)
    assert find_next(folder, served=1) is None
    with pytest.raises(ArtifactError, match="no artifact at"):
        find_current(folder)


def set_channels(folder: Path, pointers: dict[str, int], *yanked: int) -> None:
    channels = Channels(pointers=pointers, yanked=dict.fromkeys(yanked, "bad"))
    (folder / "channels.json").write_text(json.dumps(channels.to_json()))


def test_a_channel_is_followed_up_and_down(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(version=1).parent
    make_artifact(version=2)
    make_artifact(version=3)
    set_channels(folder, {"stable": 2})
    assert find_current(folder).version == 2
    assert find_next(folder, served=2) is None
    for served in (1, 3):
        found = find_next(folder, served=served)
        assert found is not None
        assert found.version == 2
    assert find_current(folder, "latest").version == 3


def test_a_version_that_was_rolled_back_from_is_declined_until_the_channel_moves(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(version=1).parent
    make_artifact(version=2)
    make_artifact(version=3)
    set_channels(folder, {"stable": 2})
    assert find_next(folder, served=1, declined=2) is None
    set_channels(folder, {"stable": 3})
    found = find_next(folder, served=1, declined=2)
    assert found is not None
    assert found.version == 3


def test_the_newest_version_is_not_followed_downwards_unless_the_served_one_was_yanked(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(version=1).parent
    make_artifact(version=2)
    shutil.rmtree(folder / "2")
    assert find_next(folder, served=2) is None
    make_artifact(version=2)
    set_channels(folder, {}, 2)
    found = find_next(folder, served=2)
    assert found is not None
    assert found.version == 1
