"""Decode requests of the Open Inference Protocol V2 into tensors that fit the model. Pure functions, no HTTP.

    request = decode(body, header_length="135", model=signature)       # or None: all of it is JSON
    request.inputs["image"]                                            # an array, or a list of bytes

A tensor is sent as JSON numbers, or as raw little-endian bytes after the JSON (the binary extension). Binary tensors are views
of the body, never copies. Every size is checked before memory is allocated for it, and a request that does not fit raises an
`InputError` with what was expected. `serve.http.open_inference.encode` writes the replies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeline.serve.errors import InputError
from edgeline.serve.http.open_inference.strict_json import parse, quoted
from edgeline.serve.http.open_inference.tensors import NUMBERS, Spec, Tensor, bad, from_binary, from_json

MAX_JSON_BYTES = 4 * 2**20
"""Python's parser blocks every other thread, and its objects take many times the text's size."""
MAX_TENSOR_BYTES = 64 * 2**20
MAX_ID = 1024
"""Longest request id, in characters."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a model."""

    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    max_batch: int


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output that a request selects."""

    name: str
    binary: bool
    classes: int = 0
    """If over 0: the number of likeliest classes to return instead of the values."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that fits its model."""

    inputs: dict[str, Tensor]
    outputs: tuple[RequestedOutput, ...]
    id: str = ""
    timeout_us: int = 0
    """0 for none."""


def decode(body: bytes, header_length: str | None, model: Signature, *, json_reply: bool = False) -> Request:
    """Decode a request.

    Args:
        body: the decompressed body.
        header_length: the header Inference-Header-Content-Length as received. "0" is the raw form: the body is the only input.
        model: what the request must fit.
        json_reply: the client accepts JSON as the reply to the raw form.

    Raises:
        InputError: the request does not fit; the message has what was seen and what was expected.
    """
    length = len(body) if header_length is None else _header_length(header_length, len(body))
    if length == 0 and header_length is not None:
        outputs = tuple(RequestedOutput(spec.name, binary=not json_reply) for spec in model.outputs)
        return Request({model.inputs[0].name: _raw(body, model)}, outputs)
    if length > MAX_JSON_BYTES:
        raise InputError(
            f"the JSON has {length:,} bytes, the limit is {MAX_JSON_BYTES:,}; send large tensors as binary data",
            code="body_too_large",
        )
    whole = memoryview(body)
    head = parse(bytes(whole[:length]), what="the request")
    parameters = _parameters(head, "the request")
    return Request(
        inputs=_inputs(head, whole[length:], model, has_header=header_length is not None),
        outputs=_outputs(head, model, _flag(parameters, "binary_data_output", False)),
        id=_id(head),
        timeout_us=_whole(parameters, "timeout"),
    )


def _header_length(text: str, body_bytes: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= body_bytes):
        raise bad(f"Inference-Header-Content-Length must be the length of the JSON, at most {body_bytes:,}, got {quoted(text)}")
    return int(text)


def _id(head: dict[str, Any]) -> str:
    found = head.get("id", "")
    if not isinstance(found, str) or len(found) > MAX_ID:
        raise bad(f"id must be a string of at most {MAX_ID} characters, got {quoted(found)}")
    return found


def _parameters(holder: dict[str, Any], what: str) -> dict[str, Any]:
    """The parameters of a request, an input or an output.

    Raises:
        InputError: a parameter has another type, is reserved, or belongs to an unsupported extension.
    """
    found = holder.get("parameters", {})
    if not isinstance(found, dict):
        raise bad(f"the parameters of {what} must be an object, got {quoted(found)}")
    for name, value in found.items():
        if not isinstance(value, str | int | float):
            raise bad(f"parameter {quoted(name)} of {what} must be a string, a number or a boolean, got {quoted(value)}")
        if name.startswith("shared_memory_"):
            raise bad(f"{what} uses shared memory, which is not supported; send the data itself", "not_supported")
        if name.startswith("sequence_"):
            raise bad(f"parameter {quoted(name)}: sequences are not supported; send each request by itself", "not_supported")
        if name.startswith("triton_") or name == "headers":
            raise bad(f"parameter {quoted(name)} is reserved; choose another name", "parameter_reserved")
    _whole(found, "priority")
    return found


def _whole(parameters: dict[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value < 2**63:
        raise bad(f"parameter {name} must be a whole number of at least 0, got {quoted(value)}")
    return value


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise bad(f"parameter {name} must be true or false, got {quoted(value)}")
    return value


def _objects(head: dict[str, Any], member: str, known: Sequence[Spec]) -> list[tuple[dict[str, Any], Spec]]:
    """Pair the inputs or outputs of a request with the model's specification of each; each name may occur once."""
    names = ", ".join(spec.name for spec in known)
    found = head.get(member, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise bad(f"{member} must be a list of objects with a name")
    if len(found) > len(known):
        raise bad(f"the request has {len(found)} {member}, the model has {len(known)}: {names}")
    specs = {spec.name: spec for spec in known}
    pairs = []
    for item in found:
        name = item.get("name")
        if not isinstance(name, str) or name not in {spec.name for spec in known}:
            raise bad(f"the model has no {member[:-1]} {quoted(name)}; it has {names}")
        if name not in specs:
            raise bad(f"the request names the {member[:-1]} {name} twice")
        pairs.append((item, specs.pop(name)))
    return pairs


def _outputs(head: dict[str, Any], model: Signature, binary: bool) -> tuple[RequestedOutput, ...]:
    found = []
    for item, spec in _objects(head, "outputs", model.outputs):
        parameters = _parameters(item, f"output {spec.name}")
        classes = _whole(parameters, "classification")
        if classes == 0 and "classification" in parameters:
            raise bad("classification must be at least 1, the number of classes to return")
        found.append(RequestedOutput(spec.name, _flag(parameters, "binary_data", binary), classes))
    return tuple(found) or tuple(RequestedOutput(spec.name, binary) for spec in model.outputs)


def _inputs(head: dict[str, Any], tail: memoryview, model: Signature, *, has_header: bool) -> dict[str, Tensor]:
    pairs = _objects(head, "inputs", model.inputs)
    if missing := [spec.name for spec in model.inputs if spec not in [known for _, known in pairs]]:
        raise bad(f"the request lacks the input {', '.join(missing)}")
    tensors: dict[str, Tensor] = {}
    start = 0
    for item, spec in pairs:
        if item.get("datatype") != spec.datatype:
            raise bad(f"input {spec.name} has datatype {quoted(item.get('datatype'))}, expected {spec.datatype}")
        shape = _shape(item, spec, model.max_batch)
        size = _parameters(item, f"input {spec.name}").get("binary_data_size")
        if (size is None) == ("data" not in item):
            raise bad(f"input {spec.name} must have either data or the parameter binary_data_size")
        if size is None:
            tensors[spec.name] = from_json(item["data"], spec, shape)
            continue
        if not has_header:
            raise bad("binary data needs the header Inference-Header-Content-Length with the length of the JSON")
        if type(size) is not int or size < 0:
            raise bad(f"binary_data_size of input {spec.name} must be a whole number of bytes, got {quoted(size)}")
        if size > len(tail) - start:
            missing_bytes = size - (len(tail) - start)
            raise bad(f"input {spec.name} has {quoted(size)} bytes by binary_data_size; the body lacks {quoted(missing_bytes)}")
        tensors[spec.name] = from_binary(tail[start : start + size], spec, shape)
        start += size
    if start < len(tail):
        raise bad(f"{len(tail) - start:,} bytes of the body are left over after the inputs' data")
    return tensors


def _shape(item: dict[str, Any], spec: Spec, max_batch: int) -> tuple[int, ...]:
    found = item.get("shape")
    if not isinstance(found, list) or not all(type(size) is int and 0 <= size < 2**63 for size in found):
        raise bad(f"the shape of input {spec.name} must be a list of whole numbers, got {quoted(found)}")
    # The dimension of 1 for each image file may be left out, as clients of other servers do.
    expected = spec.shape if spec.datatype != "BYTES" or len(found) > 1 else spec.shape[:1]
    if len(found) != len(expected) or any(e not in (-1, f) for e, f in zip(expected, found, strict=True)):
        raise bad(f"input {spec.name} has shape {quoted(found)}, expected {list(spec.shape)}, where -1 is the batch")
    if not 1 <= found[0] <= max_batch:
        raise bad(f"input {spec.name} has a batch of {quoted(found[0])}, expected 1 to {max_batch}")
    if spec.datatype != "BYTES" and math.prod(found) * NUMBERS[spec.datatype].itemsize > MAX_TENSOR_BYTES:
        raise bad(f"input {spec.name} of shape {quoted(found)} is larger than {MAX_TENSOR_BYTES:,} bytes", "body_too_large")
    return tuple(found)


def _raw(body: bytes, model: Signature) -> Tensor:
    [spec, *more] = model.inputs
    if more:
        raise bad(f"a body without JSON can be one input only, the model has {len(model.inputs)}; describe them in JSON")
    if spec.datatype == "BYTES":
        return [body]
    return from_binary(memoryview(body), spec, (1, *spec.shape[1:]))
