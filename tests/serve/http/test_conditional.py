"""Headers of conditional and range requests, as RFC 9110 reads them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeline.serve.errors import InputError
from edgeline.serve.http.conditional import byte_range, names_tag

TAG = '"abc"'

WEAK_MATCHES = {
    "the tag": ['"abc"'],
    "a list": ['"x", "abc"'],
    "a list without blanks": ['"x","abc","y"'],
    "several headers": ['"x"', '"abc"'],
    "a weak tag": ['W/"abc"'],
    "star": ["*"],
    "star with blanks": [" * "],
}
NO_MATCHES = {
    "no header": [],
    "another tag": ['"abd"'],
    "no quotes": ["abc"],
    "a tag that contains it": ['"xabcx"'],
    "a comma inside a tag": ['"x,abc"'],
    "empty": [""],
    "quotes only": ['""'],
}


@pytest.mark.parametrize("values", WEAK_MATCHES.values(), ids=WEAK_MATCHES)
def test_a_weak_comparison_finds_the_tag(values: list[str]) -> None:
    assert names_tag(values, TAG, weakly=True)


@pytest.mark.parametrize("values", NO_MATCHES.values(), ids=NO_MATCHES)
def test_other_tags_do_not_match(values: list[str]) -> None:
    assert not names_tag(values, TAG, weakly=True)


def test_a_strong_comparison_does_not_match_a_weak_tag() -> None:
    assert names_tag(['"abc"'], TAG, weakly=False)
    assert not names_tag(['W/"abc"'], TAG, weakly=False)


RANGES: dict[str, tuple[int, int]] = {
    "bytes=0-": (0, 100),
    "bytes=0-0": (0, 1),
    "bytes=10-19": (10, 10),
    "bytes=10-": (10, 90),
    "bytes=99-": (99, 1),
    "bytes=10-1000": (10, 90),
    "bytes=-1": (99, 1),
    "bytes=-100": (0, 100),
    "bytes=-1000": (0, 100),
    "BYTES=0-4": (0, 5),
    "bytes= 0-4 ": (0, 5),
    "bytes=000-004": (0, 5),
    "bytes=0-" + "9" * 5000: (0, 100),
    "bytes=-" + "9" * 5000: (0, 100),
}
IGNORED = [
    "",
    "bytes",
    "bytes=",
    "bytes=-",
    "bytes=5-2",
    "bytes=a-b",
    "bytes=1-2-3",
    "bytes=--1",
    "bytes=+1-2",
    "bytes=1.0-2",
    "bytes=0x1-0x2",
    "bytes=\u0661-\u0662",
    "items=0-5",
    "bytes=0-1,3-4",
    "bytes=" + ",".join(f"{n}-{n}" for n in range(101)),
    "bytes 0-5",
    "0-5",
]
UNSATISFIABLE = ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=-000", "bytes=" + "9" * 5000 + "-"]


@pytest.mark.parametrize(("header", "expected"), RANGES.items(), ids=lambda value: str(value)[:20])
def test_one_range_is_read(header: str, expected: tuple[int, int]) -> None:
    assert byte_range([header], 100) == expected


@pytest.mark.parametrize("header", IGNORED, ids=lambda value: repr(value)[:20])
def test_anything_but_a_single_range_is_ignored(header: str) -> None:
    assert byte_range([header], 100) is None


@pytest.mark.parametrize("header", UNSATISFIABLE, ids=lambda value: value[:20])
def test_a_range_outside_the_content_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(InputError, match="100 bytes") as raised:
        byte_range([header], 100)
    assert raised.value.code == "range_not_satisfiable"


def test_a_missing_or_repeated_header_or_an_empty_file_has_no_range() -> None:
    assert byte_range([], 100) is None
    assert byte_range(["bytes=0-1", "bytes=2-3"], 100) is None
    assert byte_range(["bytes=0-"], 0) is None


@given(st.from_regex(r"bytes=[0-9]{0,4}-[0-9]{0,4}", fullmatch=True), st.integers(0, 300))
def test_a_range_is_never_outside_the_content(header: str, size: int) -> None:
    try:
        found = byte_range([header], size)
    except InputError:
        return
    if found is not None:
        first, length = found
        assert length >= 1
        assert 0 <= first < first + length <= size


@pytest.mark.parametrize("header", ["bytes=" + "0-0," * 20_000, "bytes=" + " " * 100_000 + "x", "bytes=" + "1" * 100_000])
def test_a_hostile_header_takes_no_time(header: str) -> None:
    start = time.perf_counter()
    assert byte_range([header], 100) is None
    assert not names_tag([header * 2, '"' * 50_000], TAG, weakly=True)
    assert time.perf_counter() - start < 1
