"""Robustness: headers, sizes, shapes and raw bytes that do not fit are refused in one sentence, and the server goes on."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgeline.serve.conformance.target import Target

pytestmark = pytest.mark.usefixtures("still_alive")


def test_header_negative(target: Target) -> None:
    """A framing header of -1 is refused."""
    _with_header(target, "-1")


def test_header_huge(target: Target) -> None:
    """A framing header of 1000000000 is refused."""
    _with_header(target, "1000000000")


def test_header_of_5000_digits(target: Target) -> None:
    """A framing header of 5,000 digits is refused."""
    _with_header(target, "9" * 5000)


def test_header_no_number(target: Target) -> None:
    """A framing header of x is refused."""
    _with_header(target, "x")


def test_header_too_small(target: Target) -> None:
    """A framing header one byte too small is refused."""
    head, blob = target.raw()
    text = json.dumps(head).encode()
    target.infer(text, blob, {"Inference-Header-Content-Length": str(len(text) - 1)}).refused()


def test_header_too_large(target: Target) -> None:
    """A framing header one byte too large is refused."""
    head, blob = target.raw()
    text = json.dumps(head).encode()
    target.infer(text, blob, {"Inference-Header-Content-Length": str(len(text) + 1)}).refused()


def test_header_missing(target: Target) -> None:
    """Raw tensors without a framing header are refused."""
    head, blob = target.raw()
    target.infer(json.dumps(head).encode() + blob).refused()


def test_bytes_left_over(target: Target) -> None:
    """Bytes behind the last tensor are refused."""
    head, blob = target.raw()
    target.infer(head, blob + b"more").refused()


def test_bytes_missing(target: Target) -> None:
    """A tensor that ends early is refused."""
    head, blob = target.raw()
    target.infer(head, blob[:-1]).refused()


def test_size_of_another_shape(target: Target) -> None:
    """A binary_data_size that is not the shape's is refused."""
    head, blob = target.raw()
    head["inputs"][-1]["parameters"]["binary_data_size"] += 8
    target.infer(head, blob + bytes(8)).refused()


def test_size_negative(target: Target) -> None:
    """A negative binary_data_size is refused."""
    _changed(target, target.raw(), lambda described: described["parameters"].update(binary_data_size=-1))


def test_size_as_text(target: Target) -> None:
    """A binary_data_size that is a string is refused."""
    _changed(target, target.raw(), lambda described: described["parameters"].update(binary_data_size="16"))


def test_data_twice(target: Target) -> None:
    """An input with data and binary_data_size is refused."""
    _changed(target, target.raw(), lambda described: described.update(data=[0]))


def test_data_missing(target: Target) -> None:
    """An input with neither is refused."""
    head, _ = target.good()
    for described in head["inputs"]:
        described.pop("parameters", None)
        described.pop("data", None)
    target.infer(head).refused()


def test_input_twice(target: Target) -> None:
    """An input that is named twice is refused."""
    head, blob = target.good()
    head["inputs"] *= 2
    target.infer(head, blob * 2).refused()


def test_shape_negative(target: Target) -> None:
    """A negative dimension is refused."""
    _changed(target, target.good(), lambda described: described.update(shape=[-size for size in described["shape"]]))


def test_shape_overflow(target: Target) -> None:
    """A shape whose product overflows 64 bits is refused."""
    _changed(target, target.good(), lambda described: described.update(shape=[2**32 for _ in described["shape"]]))


def test_shape_of_text(target: Target) -> None:
    """A shape of strings is refused."""
    _changed(target, target.good(), lambda described: described.update(shape=[str(size) for size in described["shape"]]))


def test_shape_huge_and_empty(target: Target) -> None:
    """A shape of a billion elements without data is refused."""
    head, _ = target.raw()
    for described in head["inputs"]:
        described["shape"] = [10**9, *described["shape"][1:]]
        described["parameters"]["binary_data_size"] = 0
    target.infer(head).refused()


def test_fp16_in_json(target: Target) -> None:
    """FP16 in JSON, which has no such form, is refused."""
    head, _ = target.good()
    for described in head["inputs"]:
        described.pop("parameters", None)
        described.update(datatype="FP16", data=[0.0])
    target.infer(head).refused()


def _with_header(target: Target, value: str) -> None:
    head, blob = target.raw()
    target.infer(head, blob, {"Inference-Header-Content-Length": value}).refused()


def _changed(target: Target, request: tuple[dict[str, Any], bytes], change: Callable[[dict[str, Any]], object]) -> None:
    head, blob = request
    for described in head["inputs"]:
        change(described)
    target.infer(head, blob).refused()
