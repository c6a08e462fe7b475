"""Strict JSON: what Python's parser tolerates is an error of the client."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeline.serve.errors import InputError
from edgeline.serve.http.open_inference.strict_json import MAX_DEPTH, MAX_QUOTED_CHARS, depth_of, parse, quoted

INVALID = {
    "nothing": (b"", "json_invalid"),
    "text": (b"hello", "json_invalid"),
    "a list": (b"[]", "json_invalid"),
    "a string": (b'"x"', "json_invalid"),
    "null": (b"null", "json_invalid"),
    "text after it": (b"{} {}", "json_invalid"),
    "cut off": (b'{"a": [1, 2', "json_invalid"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "json_invalid"),
    "UTF-16": ("{}".encode("utf-16"), "json_invalid"),
    "bad UTF-8": (b'{"a": "\xff"}', "json_invalid"),
    "a control character": (b'{"a": "\x00"}', "json_invalid"),
    "a duplicate key": (b'{"a": 1, "a": 1}', "json_invalid"),
    "a duplicate key, deeper": (b'{"b": [{"a": 1, "\\u0061": 2}]}', "json_invalid"),
    "101 deep": (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "json_invalid"),
    "100,000 deep": (b"[" * 100_000 + b"]" * 100_000, "json_invalid"),
    "100,000 deep, never closed": (b'{"a":' * 100_000, "json_invalid"),
    "a 5,000-digit number": (b'{"a": ' + b"9" * 5000 + b"}", "json_invalid"),
    "a 201-digit number": (b'{"a": ' + b"9" * 201 + b"}", "json_invalid"),
    "NaN": (b'{"a": NaN}', "number_not_finite"),
    "Infinity": (b'{"a": [Infinity]}', "number_not_finite"),
    "-Infinity": (b'{"a": -Infinity}', "number_not_finite"),
    "1e999": (b'{"a": 1e999}', "number_not_finite"),
    "-1E+999": (b'{"a": -1E+999}', "number_not_finite"),
    "400 digits and a point": (b'{"a": ' + b"9" * 400 + b".0}", "number_not_finite"),
    "210 digits e99": (b'{"a": ' + b"9" * 210 + b"e99}", "number_not_finite"),
}


@pytest.mark.parametrize(("text", "code"), INVALID.values(), ids=INVALID)
def test_invalid_json_is_rejected_with_its_code_and_one_short_line(text: bytes, code: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, what="the request")
    assert caught.value.code == code
    assert len(str(caught.value)) < 150
    assert str(caught.value).isascii()
    assert "\n" not in str(caught.value)


VALID = {
    "100 deep": b'{"a":' + b"[" * 99 + b"]" * 99 + b"}",
    "brackets within a string": b'{"a": "' + b"[" * 1000 + b'"}',
    "brackets behind an escaped quote": b'{"a": "\\"' + b"[" * 1000 + b'"}',
    "brackets behind escaped backslashes and a quote": b'{"a": "\\\\\\"' + b"[" * 1000 + b'"}',
    "many small lists": b'{"a": [' + b",".join([b"[1]"] * 1000) + b"]}",
    "the largest double": b'{"a": 1.7976931348623157e308}',
    "a tiny number": b'{"a": 1e-999}',
    "a 200-digit number": b'{"a": ' + b"9" * 200 + b"}",
    "blanks around it": b" \r\n\t{} ",
}


@pytest.mark.parametrize("text", VALID.values(), ids=VALID)
def test_unusual_but_valid_json_is_accepted(text: bytes) -> None:
    assert isinstance(parse(text, what="the request"), dict)


@given(
    st.recursive(st.text() | st.integers(0, 9), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner))
)
def test_the_depth_of_a_text_is_the_depth_of_its_value(value: object) -> None:

    def depth(found: object) -> int:
        inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    padding = [[]] * (MAX_DEPTH + 1)  # enough brackets for a closer look
    assert depth_of(json.dumps([value, padding], ensure_ascii=False).encode()) == max(depth(value) + 1, 3)


def test_measuring_the_depth_of_a_large_text_needs_memory_proportional_to_its_size() -> None:
    text = b'"\\\\\\"' * 200_000 + b"[" * 200
    tracemalloc.start()
    depth_of(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(text)


def test_a_quoted_value_is_short_and_ascii() -> None:
    assert quoted("é\n") == r"'\xe9\n'"
    assert len(quoted("x" * 1000)) == MAX_QUOTED_CHARS + 3
