"""Parse untrusted JSON strictly, with bounded time and memory.

    head = parse(b'{"inputs": []}', what="the request")

Python's own parser accepts what JSON does not allow (NaN, duplicate keys), turns 1e999 into infinity, and hits its recursion
limit on deep nesting. Here these raise an `InputError`, with one line that quotes no more than a few characters of the input.
"""

import json
import re
from collections import Counter
from typing import Any, NoReturn

import numpy as np

from edgeline.serve.errors import InputError

MAX_DEPTH = 100
MAX_DIGITS = 200
LARGE_EXPONENT = re.compile(rb"[eE]\+?\d{3}")
NINES = bytes.maketrans(b"012345678", b"999999999")
MAX_QUOTED_CHARS = 60


def quoted(value: object) -> str:
    """Return a caller's value for an error message: ASCII, on one line, and short."""
    text = ascii(value)
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}..."


def parse(text: bytes, *, what: str) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        text: UTF-8, without a byte order mark.
        what: its name in error messages.

    Raises:
        InputError: `json_invalid`, or `number_not_finite` for NaN, Infinity and numbers beyond the range of a double.
    """
    if depth_of(text) > MAX_DEPTH:
        raise InputError(f"{what} is nested more than {MAX_DEPTH} levels deep", code="json_invalid")
    # Numbers beyond the range of a double are long or have a large exponent; only if there are any is each number checked.
    is_suspicious = b"9" * MAX_DIGITS in text.translate(NINES) or LARGE_EXPONENT.search(text) is not None
    try:
        found = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_reject_constant,
            parse_float=_finite if is_suspicious else None,
            parse_int=_short if is_suspicious else None,
        )
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 at byte {error.start}", code="json_invalid") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{what} is not valid JSON: {error.msg} at character {error.pos}", code="json_invalid") from error
    if not isinstance(found, dict):
        raise InputError(f"{what} must be a JSON object, got {quoted(type(found).__name__)}", code="json_invalid")
    return found


def depth_of(text: bytes) -> int:
    """Return how deep the brackets of a JSON text nest outside strings; never less than the depth that a parser would reach."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return 0  # the text cannot be nested deeper than that
    plain = text
    if b"\\" in text:  # now every remaining quote starts or ends a string
        plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    codes = np.frombuffer(plain, np.uint8)
    outside = ~np.logical_xor.accumulate(codes == ord('"'))
    steps = np.zeros(len(codes), np.int8)
    bracket = codes | 0x20  # [ and { differ in this bit only, as do ] and }
    steps[outside & (bracket == ord("{"))] = 1
    steps[outside & (bracket == ord("}"))] = -1
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InputError(f"the JSON has the key {quoted(twice)} twice in one object", code="json_invalid")
    return found


def _reject_constant(name: str) -> NoReturn:
    raise InputError(f"the JSON contains {name}; numbers must be finite", code="number_not_finite")


def _finite(text: str) -> float:
    number = float(text)
    if not np.isfinite(number):
        raise InputError(f"the JSON contains {text[:20]}, which is beyond the range of a double", code="number_not_finite")
    return number


def _short(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise InputError(f"the JSON contains an integer of {len(text):,} digits", code="json_invalid")
    return int(text)
