"""V2 requests: those that fit become tensors, others are rejected before memory is allocated for them."""

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeline.serve.errors import InputError
from edgeline.serve.http.open_inference.decode import Request, RequestedOutput, Signature, decode
from edgeline.serve.http.open_inference.tensors import NUMBERS, Spec
from tests.support.cases import cases

OUTPUTS = (Spec("p", "FP32", (-1, 2)), Spec("q", "FP32", (-1, 2)))
FLOATS = Signature((Spec("x", "FP32", (-1, 3)),), OUTPUTS, max_batch=4)
BYTES = Signature((Spec("x", "UINT8", (-1, 2, 2)),), OUTPUTS, max_batch=4)
TEXTS = Signature((Spec("t", "BYTES", (-1, 1)),), OUTPUTS, max_batch=4)
IMAGES = Signature((Spec("t", "BYTES", (-1, 1), is_text=False),), OUTPUTS, max_batch=4)
TWO = Signature((Spec("a", "FP32", (-1, 1)), Spec("b", "BYTES", (-1, 1))), OUTPUTS, max_batch=4)
HALVES = Signature((Spec("x", "FP16", (-1, 3)),), OUTPUTS, max_batch=4)


def x(**members: Any) -> dict[str, Any]:
    """A good input, changed; None leaves a member out."""
    described = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, -3]} | members
    return {key: value for key, value in described.items() if value is not None}


def raw(size: object, **members: Any) -> dict[str, Any]:
    return x(data=None, parameters={"binary_data_size": size}, **members)


def read(head: dict[str, Any], blob: bytes = b"", *, model: Signature = FLOATS, header: str | None = None) -> Request:
    text = json.dumps(head).encode()
    return decode(text + blob, header or (str(len(text)) if blob else None), model)


# Tensors


def test_json_data_becomes_the_tensor_of_its_shape() -> None:
    found = read({"inputs": [x(shape=[2, 3], data=[0.1, 1, 2, 3, 4, 5])]}).inputs["x"]
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, np.array([[0.1, 1, 2], [3, 4, 5]], np.float32), strict=True)


def test_nested_data_is_the_flat_data() -> None:
    nested = read({"inputs": [x(shape=[2, 3], data=[[0, 1, 2], [3, 4, 5]])]}).inputs["x"]
    flat = read({"inputs": [x(shape=[2, 3], data=[0, 1, 2, 3, 4, 5])]}).inputs["x"]
    np.testing.assert_array_equal(nested, flat, strict=True)


@pytest.mark.parametrize("datatype", NUMBERS)
def test_a_raw_tensor_comes_back_to_the_bit_and_without_a_copy(datatype: str) -> None:
    values = np.arange(6).astype(NUMBERS[datatype]).reshape(2, 3)
    model = Signature((Spec("x", datatype, (-1, 3)),), OUTPUTS, max_batch=4)
    found = read({"inputs": [raw(values.nbytes, shape=[2, 3], datatype=datatype)]}, values.tobytes(), model=model).inputs["x"]
    np.testing.assert_array_equal(found, values, strict=True)
    assert not isinstance(found, list)
    assert found.base is not None


@pytest.mark.parametrize("datatype", [name for name in NUMBERS if name != "FP16"])
def test_a_json_tensor_equals_the_raw_one(datatype: str) -> None:
    values = np.arange(6).astype(NUMBERS[datatype]).reshape(2, 3)
    model = Signature((Spec("x", datatype, (-1, 3)),), OUTPUTS, max_batch=4)
    found = read({"inputs": [x(shape=[2, 3], datatype=datatype, data=values.tolist())]}, model=model).inputs["x"]
    np.testing.assert_array_equal(found, values, strict=True)


def test_raw_bytes_are_split_by_their_lengths() -> None:
    elements = [b"", b"\x00\xff", b"abc"]
    blob = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    described = {"name": "t", "shape": [3, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    found = read({"inputs": [described]}, blob, model=IMAGES).inputs["t"]
    assert [bytes(element) for element in found] == elements


@pytest.mark.parametrize("shape", [[2], [2, 1]], ids=str)
def test_bytes_are_accepted_with_and_without_their_dimension_of_one(shape: list[int]) -> None:
    found = read({"inputs": [{"name": "t", "shape": shape, "datatype": "BYTES", "data": ["é", ""]}]}, model=TEXTS)
    assert found.inputs["t"] == ["é".encode(), b""]


def test_raw_tensors_are_read_in_the_order_of_the_raw_inputs() -> None:
    inputs = [
        {"name": "b", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}},
        {"name": "a", "shape": [1, 1], "datatype": "FP32", "data": [7]},
    ]
    found = read({"inputs": inputs}, struct.pack("<I", 1) + b"z", model=TWO)
    assert [bytes(element) for element in found.inputs["b"]] == [b"z"]
    assert float(found.inputs["a"][0][0]) == 7.0


def test_the_raw_form_is_one_element_of_bytes() -> None:
    assert decode(b"JPEG", "0", IMAGES).inputs == {"t": [b"JPEG"]}


def test_the_raw_form_is_one_tensor_of_numbers() -> None:
    found = decode(bytes([1, 2, 3, 4]), "0", BYTES)
    np.testing.assert_array_equal(found.inputs["x"], np.array([[[1, 2], [3, 4]]], np.uint8), strict=True)
    assert found.outputs == (RequestedOutput("p", binary=True), RequestedOutput("q", binary=True))
    assert decode(bytes(4), "0", BYTES, json_reply=True).outputs == (
        RequestedOutput("p", binary=False),
        RequestedOutput("q", binary=False),
    )


def test_the_raw_form_is_rejected_for_a_model_with_several_inputs() -> None:
    with pytest.raises(InputError, match="a body without JSON can be one input only, the model has 2") as caught:
        decode(b"JPEG", "0", TWO)
    assert caught.value.code == "tensor_invalid"


# --- requested outputs ----------------------------------------------------------------------------------------------

REQUESTED = {
    "nothing": ({}, (RequestedOutput("p", False), RequestedOutput("q", False))),
    "no outputs": ({"outputs": []}, (RequestedOutput("p", False), RequestedOutput("q", False))),
    "all raw": ({"parameters": {"binary_data_output": True}}, (RequestedOutput("p", True), RequestedOutput("q", True))),
    "one": ({"outputs": [{"name": "q"}]}, (RequestedOutput("q", False),)),
    "reversed": (
        {"outputs": [{"name": "q"}, {"name": "p"}]},
        (RequestedOutput("q", False), RequestedOutput("p", False)),
    ),
    "one raw": ({"outputs": [{"name": "p", "parameters": {"binary_data": True}}]}, (RequestedOutput("p", True),)),
    "one of all raw in JSON": (
        {
            "outputs": [{"name": "p", "parameters": {"binary_data": False}}, {"name": "q"}],
            "parameters": {"binary_data_output": True},
        },
        (RequestedOutput("p", False), RequestedOutput("q", True)),
    ),
    "classes": ({"outputs": [{"name": "p", "parameters": {"classification": 3}}]}, (RequestedOutput("p", False, 3),)),
}


@pytest.mark.parametrize(("members", "expected"), REQUESTED.values(), ids=REQUESTED)
def test_the_requested_outputs_are_read(members: dict[str, Any], expected: tuple[RequestedOutput, ...]) -> None:
    assert read({"inputs": [x()], **members}).outputs == expected


def test_id_and_timeout_are_read_and_unknown_parameters_ignored() -> None:
    found = read({"inputs": [x()], "id": "r", "parameters": {"timeout": 5, "priority": 1, "mine": "x", "other": 0.5}})
    assert (found.id, found.timeout_us) == ("r", 5)


# --- rejected requests: the JSON, the raw bytes, and a part of the message ---------------------------------------------

TWELVE = bytes(12)
NAN = np.array([1, np.nan, 3], "<f4").tobytes()
HEAD = len(json.dumps({"inputs": [raw(12)]}))
BAD: dict[str, tuple[dict[str, Any], bytes, str]] = {
    "no inputs": ({}, b"", "lacks the input x"),
    "an empty list": ({"inputs": []}, b"", "lacks the input x"),
    "not a list": ({"inputs": {}}, b"", "must be a list"),
    "not objects": ({"inputs": ["x"]}, b"", "must be a list of objects"),
    "another name": ({"inputs": [x(name="y")]}, b"", "no input 'y'; it has x"),
    "no name": ({"inputs": [x(name=None)]}, b"", "no input None"),
    "a list for a name": ({"inputs": [x(name=["x"])]}, b"", "no input ['x']"),
    "two inputs": ({"inputs": [x(), x()]}, b"", "has 2 inputs, the model has 1"),
    "a wrong datatype": ({"inputs": [x(datatype="INT64")]}, b"", "datatype 'INT64', expected FP32"),
    "no datatype": ({"inputs": [x(datatype=None)]}, b"", "datatype None"),
    "no shape": ({"inputs": [x(shape=None)]}, b"", "must be a list of whole numbers"),
    "a float in the shape": ({"inputs": [x(shape=[1.0, 3])]}, b"", "must be a list of whole numbers"),
    "a boolean in the shape": ({"inputs": [x(shape=[True, 3])]}, b"", "must be a list of whole numbers"),
    "a negative dimension": ({"inputs": [x(shape=[-1, 3])]}, b"", "must be a list of whole numbers"),
    "a dimension over 64 bits": ({"inputs": [x(shape=[2**63, 3])]}, b"", "must be a list of whole numbers"),
    "a wrong rank": ({"inputs": [x(shape=[3])]}, b"", "has shape [3], expected [-1, 3]"),
    "a wrong shape": ({"inputs": [x(shape=[3, 1])]}, b"", "expected [-1, 3]"),
    "a batch of 0": ({"inputs": [x(shape=[0, 3], data=[])]}, b"", "a batch of 0, expected 1 to 4"),
    "a batch over the largest": ({"inputs": [x(shape=[5, 3], data=[0] * 15)]}, b"", "a batch of 5"),
    "an enormous batch": ({"inputs": [x(shape=[2**62, 3])]}, b"", "expected 1 to 4"),
    "too few elements": ({"inputs": [x(data=[1, 2])]}, b"", "has 3 elements, its data has 2"),
    "too many elements": ({"inputs": [x(data=[1, 2, 3, 4])]}, b"", "has 3 elements, its data has 4"),
    "nested otherwise": ({"inputs": [x(data=[[1], [2], [3]])]}, b"", "not nested like its shape"),
    "nested unevenly": ({"inputs": [x(shape=[2, 3], data=[[1, 2, 3], [4, 5]])]}, b"", "not nested like its shape"),
    "partly nested": ({"inputs": [x(shape=[2, 3], data=[[1, 2, 3], 4])]}, b"", "not nested like its shape"),
    "lists among numbers": ({"inputs": [x(data=[1, [2], 3])]}, b"", "must be numbers"),
    "data that is not a list": ({"inputs": [x(data="123")]}, b"", "must be a list"),
    "text for numbers": ({"inputs": [x(data=["1", "2", "3"])]}, b"", "must be numbers"),
    "booleans for numbers": ({"inputs": [x(data=[True, 1, 2])]}, b"", "must be numbers"),
    "null among numbers": ({"inputs": [x(data=[None, 1, 2])]}, b"", "must be numbers"),
    "over a float's range": ({"inputs": [x(data=[1e39, 0, 0])]}, b"", "NaN or infinity"),
    "a whole number over it": ({"inputs": [x(data=[10**150, 0, 0])]}, b"", "NaN or infinity"),
    "no data": ({"inputs": [x(data=None)]}, b"", "either data or the parameter binary_data_size"),
    "data twice": ({"inputs": [raw(12) | {"data": [1, 2, 3]}]}, TWELVE, "either data or"),
    "raw without a header": ({"inputs": [raw(12)]}, b"", "needs the header Inference-Header-Content-Length"),
    "a size as text": ({"inputs": [raw("12")]}, TWELVE, "whole number of bytes, got '12'"),
    "a size as a boolean": ({"inputs": [raw(True)]}, b"x", "whole number of bytes, got True"),
    "a negative size": ({"inputs": [raw(-12)]}, TWELVE, "whole number of bytes, got -12"),
    "a size over the body": ({"inputs": [raw(16)]}, TWELVE, "the body lacks 4"),
    "a size of 5,000 bits": ({"inputs": [raw(2**600)]}, TWELVE, "the body lacks"),
    "a size of a wrong shape": ({"inputs": [raw(8)]}, bytes(8), "needs 12 bytes of FP32, got 8"),
    "bytes left over": ({"inputs": [raw(12)]}, bytes(15), "3 bytes of the body are left over"),
    "bytes after JSON only": ({"inputs": [x()]}, b"more", "4 bytes of the body are left over"),
    "raw NaN": ({"inputs": [raw(12)]}, NAN, "NaN or infinity"),
    "another output": ({"inputs": [x()], "outputs": [{"name": "r"}]}, b"", "no output 'r'; it has p, q"),
    "an output twice": ({"inputs": [x()], "outputs": [{"name": "p"}] * 2}, b"", "names the output p twice"),
    "many outputs": ({"inputs": [x()], "outputs": [{"name": "p"}] * 9}, b"", "has 9 outputs, the model has 2"),
    "outputs as text": ({"inputs": [x()], "outputs": "p"}, b"", "outputs must be a list"),
    "binary_data as text": (
        {"inputs": [x()], "outputs": [{"name": "p", "parameters": {"binary_data": "yes"}}]},
        b"",
        "true or",
    ),
    "no classes": ({"inputs": [x()], "outputs": [{"name": "p", "parameters": {"classification": 0}}]}, b"", "at least 1"),
    "classes as text": ({"inputs": [x()], "outputs": [{"name": "p", "parameters": {"classification": "2"}}]}, b"", "whole"),
    "an output in shared memory": (
        {"inputs": [x()], "outputs": [{"name": "p", "parameters": {"shared_memory_region": "r"}}]},
        b"",
        "shared memory, which is not supported",
    ),
    "an input in shared memory": (
        {"inputs": [x(data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 12})]},
        b"",
        "shared memory, which is not supported",
    ),
    "an id that is a number": ({"inputs": [x()], "id": 7}, b"", "id must be a string"),
    "an id of 2,000 characters": ({"inputs": [x()], "id": "r" * 2000}, b"", "id must be a string of at most 1024"),
    "parameters as a list": ({"inputs": [x()], "parameters": []}, b"", "must be an object"),
    "a parameter that is a list": ({"inputs": [x()], "parameters": {"mine": [1]}}, b"", "a string, a number or a boolean"),
    "a sequence": ({"inputs": [x()], "parameters": {"sequence_id": 1}}, b"", "sequences are not supported"),
    "a reserved name": ({"inputs": [x()], "parameters": {"triton_x": 1}}, b"", "is reserved"),
    "headers": ({"inputs": [x()], "parameters": {"headers": "x"}}, b"", "is reserved"),
    "a timeout as text": ({"inputs": [x()], "parameters": {"timeout": "5"}}, b"", "timeout must be a whole number"),
    "a timeout as a float": ({"inputs": [x()], "parameters": {"timeout": 5.0}}, b"", "timeout must be a whole number"),
    "a negative timeout": ({"inputs": [x()], "parameters": {"timeout": -5}}, b"", "timeout must be a whole number"),
    "a priority as text": ({"inputs": [x()], "parameters": {"priority": "1"}}, b"", "priority must be a whole number"),
}


@pytest.mark.parametrize(("head", "blob", "sentence"), BAD.values(), ids=BAD)
def test_a_request_that_does_not_fit_is_rejected(head: dict[str, Any], blob: bytes, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        read(head, blob)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 250


HEADERS = {
    "negative": "-1",
    "a billion": "1000000000",
    "5,000 digits": "9" * 5000,
    "not a number": "x",
    "empty": " ",
    "a sign": f"+{HEAD}",
    "another alphabet's digits": "\u0661\u0662",
    "one too small": str(HEAD - 1),
    "one too large": str(HEAD + 1),
    "the whole body": str(HEAD + 12),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_wrong_framing_header_is_rejected(header: str) -> None:
    assert read({"inputs": [raw(12)]}, TWELVE, header=str(HEAD)).inputs["x"] is not None
    with pytest.raises(InputError) as caught:
        read({"inputs": [raw(12)]}, TWELVE, header=header)
    assert caught.value.code in ("tensor_invalid", "json_invalid")


def test_a_framing_header_of_the_whole_json_is_accepted() -> None:
    text = json.dumps({"inputs": [x()]}).encode()
    assert decode(text, str(len(text)), FLOATS).inputs.keys() == {"x"}


ELEMENTS = {
    "cut within a length": (1, b"\x01\x00", "ends 2 bytes after"),
    "cut within an element": (1, struct.pack("<I", 9) + b"abc", "ends 6 bytes after"),
    "a length of 4 GB": (1, struct.pack("<I", 2**32 - 1) + b"abc", "bytes after"),
    "one too few": (2, struct.pack("<I", 1) + b"a", "must have 2 elements by its shape, its data has 1"),
    "one too many": (1, (struct.pack("<I", 1) + b"a") * 2, "5 bytes left over"),
}


@pytest.mark.parametrize(("count", "blob", "sentence"), ELEMENTS.values(), ids=ELEMENTS)
def test_raw_elements_that_do_not_fit_are_rejected(count: int, blob: bytes, sentence: str) -> None:
    described = {"name": "t", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    with pytest.raises(InputError, match=sentence):
        read({"inputs": [described]}, blob, model=IMAGES)


TEXT_CASES = {
    "an image as text": (
        IMAGES,
        {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["x"]},
        "cannot be sent as JSON",
    ),
    "a number as text": (TEXTS, {"name": "t", "shape": [1], "datatype": "BYTES", "data": [1]}, "must be strings"),
    "half a character": (TEXTS, {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["\ud800"]}, "is not valid Unicode"),
    "FP16 in JSON": (HALVES, x(datatype="FP16"), "FP16 cannot be sent as JSON"),
    "256 as UINT8": (BYTES, x(shape=[1, 2, 2], datatype="UINT8", data=[0, 0, 0, 256]), "outside the range of UINT8"),
    "-1 as UINT8": (BYTES, x(shape=[1, 2, 2], datatype="UINT8", data=[0, 0, 0, -1]), "outside the range of UINT8"),
    "0.5 as UINT8": (BYTES, x(shape=[1, 2, 2], datatype="UINT8", data=[0, 0, 0, 0.5]), "must be integers"),
}


@pytest.mark.parametrize(("model", "described", "sentence"), TEXT_CASES.values(), ids=TEXT_CASES)
def test_json_data_of_the_wrong_type_is_rejected(model: Signature, described: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read({"inputs": [described]}, model=model)


def test_json_over_its_limit_is_rejected_before_it_is_parsed() -> None:
    with pytest.raises(InputError, match="send large tensors as binary data") as caught:
        decode(b" " * (4 * 2**20 + 1), None, FLOATS)
    assert caught.value.code == "body_too_large"


def test_a_tensor_over_its_limit_is_rejected_before_it_is_allocated() -> None:
    model = Signature((Spec("x", "FP64", (-1, -1)),), OUTPUTS, max_batch=4)
    with pytest.raises(InputError) as caught:
        read({"inputs": [x(shape=[1, 2**61], datatype="FP64", data=[1])]}, model=model)
    assert caught.value.code == "body_too_large"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data())
def read_a_mutated_request(data: st.DataObject) -> None:
    head = {"inputs": [raw(12)], "outputs": [{"name": "p", "parameters": {"binary_data": True}}], "parameters": {"timeout": 1}}
    holder: Any = data.draw(st.sampled_from([head, head["inputs"][0], head["inputs"][0]["parameters"], head["outputs"][0]]))
    holder[data.draw(st.sampled_from([*holder, "id", "data"]))] = data.draw(JSON)
    text = bytearray(json.dumps(head).encode() + TWELVE)
    for _ in range(data.draw(st.integers(0, 2))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    header = data.draw(st.sampled_from([None, "0", str(len(text) - 12), str(len(text)), "7"]))
    with contextlib.suppress(InputError):
        decode(bytes(text), header, FLOATS)


@pytest.mark.parametrize("examples", cases({"40": 40, "400": 400}, quick=["40"]))
def test_a_mutated_request_is_read_or_rejected(examples: int) -> None:
    settings(max_examples=examples)(read_a_mutated_request)()
