"""Read tensors of the Open Inference Protocol V2: from JSON numbers and strings, or from raw little-endian bytes.

Numbers become arrays; BYTES become a list of elements in row-major order. Raw tensors are views of the received bytes, never
copies. A number that is not finite, and data whose size does not match its shape, raise an `InputError`.
"""

import math
import struct
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from edgeline.serve.errors import InputError
from edgeline.serve.http.open_inference.strict_json import quoted

NUMBERS = {
    "BOOL": np.dtype("bool"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""The numpy types of the protocol's datatypes, all but BYTES."""

Tensor = np.ndarray | list[bytes | memoryview]
"""Numbers with their shape, or the elements of BYTES in row-major order."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One input or output of a model; -1 in the shape stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    is_text: bool = True
    """Whether BYTES may be sent as JSON strings. Image files may not: JSON text is UTF-8."""


def from_json(data: Any, spec: Spec, shape: tuple[int, ...]) -> Tensor:
    """Read one tensor from its `data`.

    Args:
        data: flat in row-major order, or nested like the shape.
        spec: the model's input.
        shape: of this tensor; the caller has checked that its product is in bounds.

    Raises:
        InputError: the size does not match the shape, or an element does not have the datatype.
    """
    if spec.datatype == "FP16":
        raise bad(f"input {spec.name}: FP16 cannot be sent as JSON; send it as binary data")
    flat = _flatten(data, spec, shape)
    if spec.datatype == "BYTES":
        if not spec.is_text:
            raise bad(
                f"input {spec.name} takes image files, which cannot be sent as JSON strings; send them as binary data "
                "(binary_data_size, each preceded by its length in 4 bytes)"
            )
        if not all(type(element) is str for element in flat):
            raise bad(f"the data of input {spec.name} must be strings")
        try:
            return [element.encode() for element in flat]
        except UnicodeEncodeError as error:
            raise bad(f"a string of input {spec.name} is not valid Unicode") from error
    dtype = NUMBERS[spec.datatype]
    by_kind: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}
    if not set(map(type, flat)) <= by_kind.get(dtype.kind, {int}):
        wanted = {"b": "true or false", "f": "numbers"}.get(dtype.kind, "integers")
        raise bad(f"the data of input {spec.name} must be {wanted} for {spec.datatype}")
    try:
        numbers = np.array(flat, np.float64 if dtype.kind == "f" else dtype)
        with np.errstate(over="ignore"):
            return _finite(numbers.astype(dtype, copy=False).reshape(shape), spec)
    except OverflowError as error:
        raise bad(f"the data of input {spec.name} contains a number outside the range of {spec.datatype}") from error


def _flatten(data: Any, spec: Spec, shape: tuple[int, ...]) -> list[Any]:
    """Return the row-major elements of data that is flat, or nested exactly like its shape."""
    if not isinstance(data, list):
        raise bad(f"the data of input {spec.name} must be a list, got {quoted(data)}")
    if data and isinstance(data[0], list):
        rows: list[Any] = [data]
        for size in shape:
            if any(type(row) is not list or len(row) != size for row in rows):
                raise bad(f"the data of input {spec.name} is not nested like its shape {list(shape)}")
            rows = list(chain.from_iterable(rows))
        return rows
    if len(data) != math.prod(shape):
        raise bad(f"input {spec.name} of shape {list(shape)} has {math.prod(shape):,} elements, its data has {len(data):,}")
    return data


def from_binary(data: memoryview, spec: Spec, shape: tuple[int, ...]) -> Tensor:
    """Read one tensor of the binary extension, as a view of `data`.

    Raises:
        InputError: the size does not match the shape, or a float is not finite.
    """
    if spec.datatype == "BYTES":
        return _elements(data, spec, math.prod(shape))
    dtype = NUMBERS[spec.datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise bad(f"input {spec.name} of shape {list(shape)} needs {expected:,} bytes of {spec.datatype}, got {len(data):,}")
    return _finite(np.frombuffer(data, dtype).reshape(shape), spec)


def _elements(data: memoryview, spec: Spec, count: int) -> list[bytes | memoryview]:
    found: list[bytes | memoryview] = []
    at = 0
    while at < len(data) and len(found) < count:
        end = at + 4
        if end <= len(data):
            end += struct.unpack_from("<I", data, at)[0]
        if end > len(data):
            raise bad(f"element {len(found)} of input {spec.name} ends {end - len(data):,} bytes after the end of the data")
        found.append(data[at + 4 : end])
        at = end
    if len(found) < count or at < len(data):
        more = f", {len(data) - at:,} bytes left over" if at < len(data) else ""
        raise bad(f"input {spec.name} must have {count} elements by its shape, its data has {len(found)}{more}")
    return found


def _finite(numbers: np.ndarray, spec: Spec) -> np.ndarray:
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        raise bad(f"input {spec.name} contains NaN or infinity; numbers must be finite {spec.datatype}", "number_not_finite")
    return numbers


def bad(message: str, code: str = "tensor_invalid") -> InputError:
    """Return the error for a tensor or parameter that does not fit; the caller raises it."""
    return InputError(message, code=code)
