"""Conditional and range requests: the headers of RFC 9110, sections 13 and 14, as plain functions.

An entity tag here is always strong, the SHA-256 of the content between quotes, so equal tags mean equal bytes and a resumed
download can never be spliced from two files.
"""

import re
from collections.abc import Sequence

from edgeline.serve.errors import InputError

ENTITY_TAG = re.compile(r'(W/)?("[!#-~\x80-\xff]*")')
ONE_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)


def names_tag(header_values: Sequence[str], tag: str, *, weakly: bool) -> bool:
    """Whether an If-Match (strong comparison) or If-None-Match (weak comparison) header contains an entity tag, or is `*`."""
    if any(value.strip() == "*" for value in header_values):
        return True
    found = ENTITY_TAG.findall(", ".join(header_values))
    return any(opaque == tag and (weakly or not weak) for weak, opaque in found)


def byte_range(header_values: Sequence[str], size: int) -> tuple[int, int] | None:
    """Read a Range header.

    Args:
        header_values: the values of all Range headers.
        size: of the whole content, in bytes.

    Returns:
        First byte and length; None if the header is ignored: absent, malformed, of another unit, or several ranges, which
        resuming a download never needs.

    Raises:
        InputError: well formed, but outside the content.
    """
    match = ONE_RANGE.fullmatch(header_values[0]) if len(header_values) == 1 else None
    if match is None or size == 0:
        return None
    first, last = match.groups()
    if first:
        start, end = _number(first), _number(last) if last else size - 1
        if last and end < start:
            return None
    elif last:
        start, end = size - min(_number(last), size), size - 1
    else:
        return None
    if start >= size:
        raise InputError(f"the range is outside the content, which has {size:,} bytes", code="range_not_satisfiable")
    return start, min(end, size - 1) - start + 1


def _number(digits: str) -> int:
    # Python does not parse thousands of digits, and no file is longer than 10**18 bytes.
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) < 19 else 10**18
