"""The tables of faults list every fault once, and name tests that exist."""

import re
from functools import cache

import pytest

from tests.support.faults.catalogue import MARKS, PAGES, ROOT, ROWS, Row, read_rows

FOUND = read_rows()
SITUATIONS = read_rows(("docs/situations.md",))
IDS = {
    *(f"F{number}" for number in range(1, 20)),
    *("F3b", "F3c", "F3d"),
    *(f"G{number}" for number in range(1, 6)),
    *(f"S{number}" for number in range(1, 11)),
}


def test_the_pages_list_every_fault_once_and_in_order() -> None:
    expected = [f"{letter}{number:02}" for letter, count in ROWS.items() for number in range(1, count + 1)]
    assert sorted(row.number for row in FOUND) == sorted(expected)
    for letter in ROWS:
        numbers = [row.number for row in FOUND if row.number[0] == letter]
        assert numbers == sorted(numbers)


def test_no_row_is_overlooked_because_of_its_form() -> None:
    lines = [line for page in PAGES for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    assert len([line for line in lines if re.match(r"\|\s*[A-Z]\d\d\s*\|", line)]) == len(FOUND)
    marked = [mark for row in FOUND for mark in re.findall(r"\*\*([^*]+)\*\*", row.happens)]
    assert set(marked) <= set(MARKS)
    assert len(marked) == sum(row.status != "met" for row in FOUND), "a mark is at the beginning of its cell"


def test_the_page_of_situations_lists_each_once() -> None:
    assert sorted(row.number for row in SITUATIONS) == sorted(IDS)
    assert all(row.status == "met" for row in SITUATIONS)


@cache
def source_of(file: str) -> str:
    [path] = (ROOT / "tests").rglob(file)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("row", [*FOUND, *SITUATIONS], ids=[row.number for row in (*FOUND, *SITUATIONS)])
def test_every_test_that_a_row_names_exists(row: Row) -> None:
    assert bool(row.tests) != row.untested, f"{row.number} must name tests, or none"
    assert row.tests or row.status != "met", f"{row.number} is marked as met, but names no test"
    for file, test in row.tests:
        assert f"\ndef {test}(" in source_of(file), f"{row.number}: {file}::{test}"
