"""Read JSON that may be hostile: strictly, and with bounded time and memory.

    head = parse(b'{"inputs": []}', what="the request")

Python's own parser takes what JSON does not have (NaN, the same key twice), turns 1e999 into infinity, and meets its recursion
limit on deep nesting. All of it is a caller's fault here, in one line that never repeats more than a few characters of theirs.
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
LONGEST_SHOWN = 60


def quoted(value: object) -> str:
    """A caller's value, fit for an error message: ASCII, on one line, and short."""
    text = ascii(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def parse(text: bytes, *, what: str) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        text: UTF-8, without a byte order mark.
        what: names it in messages.

    Raises:
        InputError: `json_invalid`, or `number_not_finite` for NaN, Infinity and numbers over a double's range.
    """
    if depth_of(text) > MAX_DEPTH:
        raise InputError(f"{what} is nested over {MAX_DEPTH} levels deep", code="json_invalid")
    # Numbers that may leave a double's range are long or have a large exponent. Only where there is one is each looked at.
    is_suspicious = b"9" * MAX_DIGITS in text.translate(NINES) or LARGE_EXPONENT.search(text) is not None
    try:
        found = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite if is_suspicious else None,
            parse_int=_short if is_suspicious else None,
        )
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 at byte {error.start}", code="json_invalid") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{what} is no JSON: {error.msg} at character {error.pos}", code="json_invalid") from error
    if not isinstance(found, dict):
        raise InputError(f"{what} must be a JSON object, got {quoted(type(found).__name__)}", code="json_invalid")
    return found


def depth_of(text: bytes) -> int:
    """How deep the brackets of a JSON text nest, strings not counted; at least as deep as a parser would get."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return 0  # it cannot be deeper, and needs no closer look
    plain = text
    if b"\\" in text:  # what is left after this are quotes that begin or end a string
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
        raise InputError(f"the JSON names {quoted(twice)} twice in one object", code="json_invalid")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise InputError(f"the JSON holds {name}; numbers must be finite", code="number_not_finite")


def _finite(text: str) -> float:
    number = float(text)
    if not np.isfinite(number):
        raise InputError(f"the JSON holds {text[:20]}, which is over a double's range", code="number_not_finite")
    return number


def _short(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise InputError(f"the JSON holds a whole number of {len(text):,} digits", code="json_invalid")
    return int(text)
