"""Which version a channel names."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeline.serve.artifact.channels import FILE_NAME, MAX_BYTES, Channels, Event, check_channel, read_channels
from edgeline.serve.errors import ArtifactError, ConfigError


def moves(*entries: tuple[str, int]) -> tuple[Event, ...]:
    """The history of `stable`: action and version of each entry."""
    return tuple(
        Event(at="2026-11-30T12:00:00Z", by="anna@box", action=action, version=version, why="", channel="stable")
        for action, version in entries
    )


def test_without_channels_stable_and_latest_are_the_newest_version(tmp_path: Path) -> None:
    channels = read_channels(tmp_path)
    assert channels == Channels()
    assert [channels.version(name, [2, 10, 9]) for name in ("stable", "latest")] == [10, 10]


def test_a_channel_names_its_version_and_latest_stays_the_newest() -> None:
    channels = Channels(pointers={"stable": 2, "canary": 3}, history=moves(("promote", 2)))
    assert {name: channels.version(name, [1, 2, 3, 4]) for name in ("stable", "canary", "latest")} == {
        "stable": 2,
        "canary": 3,
        "latest": 4,
    }


@pytest.mark.parametrize(
    ("yanked", "stable", "latest"),
    [({3: "x"}, 2, 4), ({3: "x", 2: "x"}, 1, 4), ({4: "x"}, 3, 3), ({4: "x", 3: "x"}, 2, 2)],
)
def test_instead_of_a_yanked_version_the_one_before_it_is_used(yanked: dict[int, str], stable: int, latest: int) -> None:
    channels = Channels(
        pointers={"stable": 3}, yanked=yanked, history=moves(("promote", 1), ("promote", 2), ("keep", 4), ("promote", 3))
    )
    assert channels.version("stable", [1, 2, 3, 4]) == stable
    assert channels.version("latest", [1, 2, 3, 4]) == latest


def test_a_channel_of_which_every_version_was_yanked_is_an_error_with_the_reasons() -> None:
    channels = Channels(pointers={"stable": 1}, yanked={1: "wrong labels"}, history=moves(("promote", 1)))
    with pytest.raises(ArtifactError, match=r"every version of channel stable was yanked \(1 because wrong labels\)") as caught:
        channels.version("stable", [1, 2])
    assert caught.value.code == "version_yanked"


def test_an_unknown_channel_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ArtifactError, match="no channel 'beta'; the channels are canary, latest, stable") as caught:
        Channels(pointers={"stable": 1, "canary": 1}).version("beta", [1])
    assert caught.value.code == "channel_unknown"


def test_a_version_that_is_not_in_the_store_yet_is_waited_for_and_not_replaced_by_an_older_one() -> None:
    channels = Channels(pointers={"stable": 2}, history=moves(("promote", 1), ("promote", 2)))
    with pytest.raises(ArtifactError, match="at version 2, which is not in the store") as caught:
        channels.version("stable", [1])
    assert caught.value.code == "channel_version_missing"


def test_two_rollbacks_go_back_two_versions() -> None:
    history = moves(("promote", 1), ("promote", 2), ("promote", 3))
    assert Channels(pointers={"stable": 3}, history=history).earlier("stable") == [2, 1]
    history += moves(("rollback", 2))
    assert Channels(pointers={"stable": 2}, history=history).earlier("stable") == [1]
    history += moves(("promote", 5))
    assert Channels(pointers={"stable": 5}, history=history).earlier("stable") == [2, 1]


EVENTS = st.builds(
    Event,
    at=st.just("2026-11-30T12:00:00Z"),
    by=st.text(max_size=9),
    action=st.sampled_from(["promote", "rollback", "yank", "unyank", "keep"]),
    version=st.integers(1, 99),
    why=st.text(max_size=9),
    channel=st.none() | st.sampled_from(["stable", "canary"]),
    before=st.none() | st.integers(1, 99),
    decision=st.none() | st.just("decisions/x.json"),
)


@given(
    pointers=st.dictionaries(st.text(string.ascii_lowercase, min_size=1, max_size=9), st.integers(1, 99)),
    yanked=st.dictionaries(st.integers(1, 99), st.text(max_size=9)),
    history=st.lists(EVENTS, max_size=9),
)
def test_the_file_is_read_as_it_was_written(pointers: dict[str, int], yanked: dict[int, str], history: list[Event]) -> None:
    channels = Channels(pointers=pointers, yanked=yanked, history=tuple(history))
    assert Channels.from_json(json.dumps(channels.to_json()).encode()) == channels


@given(history=st.lists(EVENTS, max_size=20), published=st.lists(st.integers(1, 99), min_size=1, max_size=9, unique=True))
def test_whatever_the_history_is_a_channel_names_a_published_version_that_was_not_yanked(
    history: list[Event], published: list[int]
) -> None:
    yanked = {event.version: "" for event in history if event.action == "yank"}
    channels = Channels(pointers={"stable": published[0]}, yanked=yanked, history=tuple(history))
    for name in ("stable", "latest"):
        usable = channels.usable(name, published)
        assert set(usable) <= set(published) - set(yanked)
        assert len(usable) == len(set(usable))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        json.dumps({"schema": "edgeline.channels/2", "channels": {}, "yanked": {}, "history": []}).encode(),
        json.dumps({"schema": "edgeline.channels/1", "channels": {"stable": "1"}, "yanked": {}, "history": []}).encode(),
        json.dumps({"schema": "edgeline.channels/1", "channels": {"stable": 0}, "yanked": {}, "history": []}).encode(),
        json.dumps({"schema": "edgeline.channels/1", "channels": {"../x": 1}, "yanked": {}, "history": []}).encode(),
        json.dumps({"schema": "edgeline.channels/1", "channels": {}, "yanked": {"x": ""}, "history": []}).encode(),
        json.dumps({"schema": "edgeline.channels/1", "channels": {}, "yanked": {}, "history": [{"at": 1}]}).encode(),
        b" " * (MAX_BYTES + 1),
    ],
    ids=["empty", "list", "no schema", "no text", "deep", "newer", "text", "zero", "path", "yanked", "event", "large"],
)
def test_a_damaged_file_is_an_error_and_never_a_guess(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match="channels.json is not a valid list of channels") as caught:
        read_channels(tmp_path)
    assert caught.value.code == "channels_invalid"


@pytest.mark.parametrize("name", ["", "1", "Stable", "a b", "../x", "-x", "a" * 64, "s\n"])
def test_a_name_that_could_be_a_version_or_a_path_is_no_channel(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a channel"):
        check_channel(name)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(ArtifactError, match="channels.json cannot be read: Permission denied"):
        read_channels(tmp_path)
