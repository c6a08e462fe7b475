"""Slices: accuracy by the values of a column, numbers in quartiles, texts left out."""

import numpy as np
import pytest

from edgeline.pipeline.evaluation.slices import slice_by


def test_each_value_has_its_accuracy_and_an_empty_one_is_named() -> None:
    found = slice_by({"site": ["north", "south", "north", ""]}, np.array([True, False, True, True]))
    assert [(each.value, each.share.correct, each.share.total) for each in found] == [
        ("north", 2, 2),
        ("south", 0, 1),
        ("(empty)", 1, 1),
    ]


def test_a_column_of_many_numbers_is_divided_into_quartiles() -> None:
    found = slice_by({"hour": [str(hour) for hour in range(100)]}, np.arange(100) >= 25)
    assert [(each.value, each.share.correct, each.share.total) for each in found] == [
        ("0 to 24.75", 0, 25),
        ("24.75 to 49.5", 25, 25),
        ("49.5 to 74.25", 25, 25),
        ("74.25 to 99", 25, 25),
    ]


def test_numbers_are_sorted_as_numbers() -> None:
    assert [each.value for each in slice_by({"n": ["10", "9", "10", "9"]}, np.ones(4, bool))] == ["9", "10"]


@pytest.mark.parametrize("values", [["same"] * 60, [f"comment {number}" for number in range(60)]])
def test_a_column_of_one_value_or_of_different_texts_is_left_out(values: list[str]) -> None:
    assert slice_by({"comment": values}, np.ones(60, bool)) == []


def test_a_p_value_takes_the_number_of_slices_into_account() -> None:
    """45 of 50 right against 25 of 50: Fisher's exact p-value is 2.1e-05 for one slice."""
    values, correct_N = ["a"] * 50 + ["b"] * 50, np.arange(50) < 45
    correct_N = np.concatenate([correct_N, np.arange(50) < 25])
    found = slice_by({"one": values, "two": values}, correct_N)
    assert [each.p_value for each in found] == pytest.approx([4 * 2.12e-05] * 4, rel=0.1)
