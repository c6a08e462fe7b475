"""The states of a served name, one transition at a time."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.inference.slot import Failure, Loading, RolledBack, Serving, Slot, Unavailable

Open = Callable[[int], Classifier]
BAD = Failure("digest_mismatch", "model.onnx differs", 3)


@pytest.fixture(name="opened")
def open_version(make_artifact: Callable[..., Path]) -> Open:
    return lambda version: Classifier.open(make_artifact(version=version), threads=1, verify=False)


def test_a_new_slot_is_loading_and_has_the_name_of_its_folder() -> None:
    for path in (Path("store/colors"), Path("store/colors/7")):
        slot = Slot(path)
        assert slot.state == Loading()
        assert (slot.name, slot.current, slot.classifiers()) == ("colors", None, [])


def test_a_failure_before_the_first_version_makes_it_unavailable_until_one_is_accepted(opened: Open) -> None:
    slot = Slot(Path("store/colors"))
    slot.reject(BAD)
    assert (slot.state, slot.failure, slot.rejections) == (Unavailable(BAD), BAD, 1)
    first = opened(1)
    slot.accept(first)
    assert (slot.state, slot.failure, slot.reloads) == (Serving(first), None, 0)


def test_a_newer_version_replaces_the_current_one_which_stays_loaded(opened: Open) -> None:
    first, second = opened(1), opened(2)
    slot = Slot(Path("store/colors"), Serving(first))
    slot.accept(second)
    assert (slot.state, slot.reloads) == (Serving(second, first), 1)
    assert slot.classifiers() == [first, second]


def test_a_rejected_version_is_remembered_until_it_is_removed_or_a_newer_one_is_accepted(opened: Open) -> None:
    first, second = opened(1), opened(2)
    slot = Slot(Path("store/colors"), Serving(first))
    slot.reject(BAD)
    assert (slot.current, slot.rejected_version) == (first, BAD)
    slot.forget_rejected()
    assert slot.state == Serving(first)
    slot.reject(BAD)
    slot.accept(second)
    assert slot.state == Serving(second, first)


def test_a_rollback_returns_to_the_previous_version_once(opened: Open) -> None:
    first, second = opened(1), opened(2)
    slot = Slot(Path("store/colors"), Serving(second, first, BAD))
    expected = RolledBack(first, second, 2, BAD)
    assert slot.roll_back() == expected
    assert slot.roll_back() is None
    assert (slot.state, slot.reloads, slot.rolled_back_from) == (expected, 1, 2)


def test_without_a_previous_version_there_is_nothing_to_roll_back_to(opened: Open) -> None:
    for state in (Loading(), Unavailable(BAD), Serving(opened(1))):
        slot = Slot(Path("store/colors"), state)
        assert slot.roll_back() is None
        assert (slot.state, slot.reloads) == (state, 0)


def test_a_rollback_ends_with_a_newer_version_or_when_it_is_resumed(opened: Open) -> None:
    first, second, third = opened(1), opened(2), opened(3)
    rolled_back = RolledBack(first, second, 2)
    slot = Slot(Path("store/colors"), rolled_back)
    slot.accept(third)
    assert slot.state == Serving(third, first)
    slot = Slot(Path("store/colors"), rolled_back)
    slot.resume()
    assert (slot.state, slot.rolled_back_from) == (Serving(first, second), None)
