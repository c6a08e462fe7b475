"""Read a server's replies strictly: deviations that a lenient client would overlook are reported.

`Deviation` carries the one-line message of a failed check.
"""

import http.client
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeline.serve.http.open_inference.tensors import NUMBERS

MAX_SEEN_CHARS = 160


class Deviation(AssertionError):
    """A reply differs from what the check expects."""


def expect(seen: object, expected: object, what: str) -> None:
    """Fail unless two values are equal."""
    require(type(seen) is type(expected) and seen == expected, f"{what} should be {expected!r}", seen)


def require(condition: bool, what: str, seen: object) -> None:
    """Fail unless a condition holds."""
    if not condition:
        text = " ".join(repr(seen).split())
        raise Deviation(f"{what}; seen: {text[:MAX_SEEN_CHARS]}{'...' * (len(text) > MAX_SEEN_CHARS)}")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One output of a reply."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: np.ndarray | list[bytes]

    def same(self, other: "Tensor") -> bool:
        """Whether both are equal to the bit."""
        if isinstance(self.values, list) or isinstance(other.values, list):
            equal = self.values == other.values
        else:
            equal = self.values.tobytes() == other.values.tobytes()
        return equal and (self.name, self.datatype, self.shape) == (other.name, other.datatype, other.shape)


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Fail unless two replies have the same tensors to the bit."""
    expect([tensor.name for tensor in found], [tensor.name for tensor in expected], "the outputs")
    for one, other in zip(found, expected, strict=True):
        require(one.same(other), f"{one.name} should be the same to the bit as {other.values!r}", one.values)


@dataclass(frozen=True)
class Reply:
    """One reply of the server."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    http_version: int

    def json(self) -> Any:
        """Return the body as JSON; of a reply with raw tensors, the JSON before them."""
        length = self.headers.get("Inference-Header-Content-Length")
        text = self.body if length is None else self.body[: int(length)]
        try:
            return json.loads(text)
        except ValueError:
            raise Deviation(f"the body should be JSON; seen: {text[:MAX_SEEN_CHARS]!r}") from None

    def ok(self) -> Any:
        """Return the JSON of a success, which must have status 200."""
        require(self.status == 200, "the status should be 200", f"{self.status} {self.body[:MAX_SEEN_CHARS]!r}")
        return self.json()

    def rejected(self) -> str:
        """Return the `error` message for an invalid request or an unsupported feature, which must have status 4xx or 501."""
        require(400 <= self.status < 500 or self.status == 501, "the status should be 4xx", self.status)
        expect(self.headers.get("Content-Type"), "application/json", "an error's Content-Type")
        found = self.json()
        require(
            isinstance(found, dict) and isinstance(found.get("error"), str), "an error needs a string member `error`", found
        )
        return str(found["error"])

    def outputs(self) -> list[Tensor]:
        """Return the tensors of an inference reply."""
        head = self.ok()
        require(isinstance(head.get("outputs"), list), "a reply needs a list `outputs`", head)
        length = self.headers.get("Inference-Header-Content-Length")
        tail = memoryview(self.body)[int(length) :] if length is not None else memoryview(b"")
        found = []
        for output in head["outputs"]:
            parameters = output.get("parameters", {})
            size = parameters.get("binary_data_size")
            shape = tuple(output["shape"])
            if size is None:
                found.append(Tensor(output["name"], output["datatype"], shape, _of_json(output, shape)))
            else:
                require("data" not in output, "a binary output should not have data", list(output))
                require(len(tail) >= size, f"{output['name']} has {size} bytes, which should follow the JSON", len(tail))
                found.append(Tensor(output["name"], output["datatype"], shape, _of_bytes(output, tail[:size], shape)))
                tail = tail[size:]
        require(not tail, "nothing should follow the last output", f"{len(tail)} bytes")
        return found


def _of_json(output: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray | list[bytes]:
    data = output.get("data")
    require(isinstance(data, list), "an output in JSON needs data", output.get("data"))
    flat = np.array(data, dtype=object).ravel().tolist()
    expect(len(flat), math.prod(shape), f"the elements of {output['name']}")
    if output["datatype"] == "BYTES":
        return [element.encode() for element in flat]
    return np.array(flat).astype(NUMBERS[output["datatype"]]).reshape(shape)


def _of_bytes(output: dict[str, Any], data: memoryview, shape: tuple[int, ...]) -> np.ndarray | list[bytes]:
    if output["datatype"] != "BYTES":
        dtype = NUMBERS[output["datatype"]]
        expect(len(data), math.prod(shape) * dtype.itemsize, f"the bytes of {output['name']}")
        return np.frombuffer(data, dtype).reshape(shape)
    elements = []
    while data:
        [size] = struct.unpack_from("<I", data)
        elements.append(bytes(data[4 : 4 + size]))
        data = data[4 + size :]
    expect(len(elements), math.prod(shape), f"the elements of {output['name']}")
    return elements
