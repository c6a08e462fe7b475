"""Robustness: headers, sizes, shapes and raw bytes that do not fit get a one-line error, and the server keeps running."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgeline.serve.conformance.target import Target

pytestmark = pytest.mark.usefixtures("still_alive")


def test_header_negative(target: Target) -> None:
    """A framing header of -1 is rejected."""
    _with_header(target, "-1")


def test_header_huge(target: Target) -> None:
    """A framing header of 1000000000 is rejected."""
    _with_header(target, "1000000000")


def test_header_of_5000_digits(target: Target) -> None:
    """A framing header of 5,000 digits is rejected."""
    _with_header(target, "9" * 5000)


def test_header_not_a_number(target: Target) -> None:
    """A framing header of x is rejected."""
    _with_header(target, "x")


def test_header_too_small(target: Target) -> None:
    """A framing header one byte too small is rejected."""
    head, blob = target.raw()
    text = json.dumps(head).encode()
    target.infer(text, blob, {"Inference-Header-Content-Length": str(len(text) - 1)}).rejected()


def test_header_too_large(target: Target) -> None:
    """A framing header one byte too large is rejected."""
    head, blob = target.raw()
    text = json.dumps(head).encode()
    target.infer(text, blob, {"Inference-Header-Content-Length": str(len(text) + 1)}).rejected()


def test_header_missing(target: Target) -> None:
    """Raw tensors without a framing header are rejected."""
    head, blob = target.raw()
    target.infer(json.dumps(head).encode() + blob).rejected()


def test_bytes_left_over(target: Target) -> None:
    """Bytes after the last tensor are rejected."""
    head, blob = target.raw()
    target.infer(head, blob + b"more").rejected()


def test_bytes_missing(target: Target) -> None:
    """A tensor that ends early is rejected."""
    head, blob = target.raw()
    target.infer(head, blob[:-1]).rejected()


def test_size_of_a_wrong_shape(target: Target) -> None:
    """A binary_data_size that does not match the shape is rejected."""
    head, blob = target.raw()
    head["inputs"][-1]["parameters"]["binary_data_size"] += 8
    target.infer(head, blob + bytes(8)).rejected()


def test_size_negative(target: Target) -> None:
    """A negative binary_data_size is rejected."""
    _changed(target, target.raw(), lambda described: described["parameters"].update(binary_data_size=-1))


def test_size_as_text(target: Target) -> None:
    """A binary_data_size that is a string is rejected."""
    _changed(target, target.raw(), lambda described: described["parameters"].update(binary_data_size="16"))


def test_data_and_binary_size(target: Target) -> None:
    """An input with both data and binary_data_size is rejected."""
    _changed(target, target.raw(), lambda described: described.update(data=[0]))


def test_no_data(target: Target) -> None:
    """An input with neither is rejected."""
    head, _ = target.good()
    for described in head["inputs"]:
        described.pop("parameters", None)
        described.pop("data", None)
    target.infer(head).rejected()


def test_duplicate_input(target: Target) -> None:
    """An input that is named twice is rejected."""
    head, blob = target.good()
    head["inputs"] *= 2
    target.infer(head, blob * 2).rejected()


def test_shape_negative(target: Target) -> None:
    """A negative dimension is rejected."""
    _changed(target, target.good(), lambda described: described.update(shape=[-size for size in described["shape"]]))


def test_shape_overflow(target: Target) -> None:
    """A shape whose product overflows 64 bits is rejected."""
    _changed(target, target.good(), lambda described: described.update(shape=[2**32 for _ in described["shape"]]))


def test_shape_of_text(target: Target) -> None:
    """A shape of strings is rejected."""
    _changed(target, target.good(), lambda described: described.update(shape=[str(size) for size in described["shape"]]))


def test_shape_huge_and_empty(target: Target) -> None:
    """A shape of a billion elements without data is rejected."""
    head, _ = target.raw()
    for described in head["inputs"]:
        described["shape"] = [10**9, *described["shape"][1:]]
        described["parameters"]["binary_data_size"] = 0
    target.infer(head).rejected()


def test_fp16_in_json(target: Target) -> None:
    """FP16 in JSON, which cannot represent it, is rejected."""
    head, _ = target.good()
    for described in head["inputs"]:
        described.pop("parameters", None)
        described.update(datatype="FP16", data=[0.0])
    target.infer(head).rejected()


def _with_header(target: Target, value: str) -> None:
    head, blob = target.raw()
    target.infer(head, blob, {"Inference-Header-Content-Length": value}).rejected()


def _changed(target: Target, request: tuple[dict[str, Any], bytes], change: Callable[[dict[str, Any]], object]) -> None:
    head, blob = request
    for described in head["inputs"]:
        change(described)
    target.infer(head, blob).rejected()
