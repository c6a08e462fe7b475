"""Required by tritonclient, built by hand: raw tensors after the JSON, compression, classification, connections."""

import gzip
import json
import zlib

import pytest

from edgeline.serve.conformance.reply import Deviation, Reply, expect, require, same
from edgeline.serve.conformance.target import Target, blob_of

BINARY = {"binary_data_output": True}


def test_binary_input(target: Target) -> None:
    """Inputs may be raw tensors after the JSON, without a Content-Type."""
    target.infer(*target.request(binary=True)).outputs()


def test_binary_output(target: Target) -> None:
    """With binary_data_output every output is raw: octet-stream, framing header, binary_data_size and no data."""
    reply = target.infer_any(parameters=BINARY)
    head = reply.ok()
    expect(reply.headers.get("Content-Type"), "application/octet-stream", "Content-Type")
    require("Inference-Header-Content-Length" in reply.headers, "the framing header should be present", dict(reply.headers))
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        require(type(size) is int, f"{output['name']} should have a binary_data_size", output.get("parameters"))
    reply.outputs()


def test_binary_output_by_output(target: Target) -> None:
    """`binary_data` on an output makes it raw."""
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in target.output_names]
    reply = target.infer_any(outputs=outputs)
    require(
        all("binary_data_size" in o.get("parameters", {}) for o in reply.ok()["outputs"]), "all should be raw", reply.json()
    )
    reply.outputs()


def test_binary_output_overridden(target: Target) -> None:
    """`binary_data: false` on an output makes it JSON where binary_data_output would make it raw."""
    outputs = [{"name": target.output_names[0], "parameters": {"binary_data": False}}]
    [output] = target.infer_any(outputs=outputs, parameters=BINARY).ok()["outputs"]
    require("data" in output, f"{output['name']} should have data", output)


def test_binary_and_json_outputs_mixed(target: Target) -> None:
    """One output may be raw and the next JSON."""
    if len(target.output_names) < 2:
        pytest.skip("the model has one output")
    outputs = [{"name": name, "parameters": {"binary_data": not i}} for i, name in enumerate(target.output_names)]
    reply = target.infer_any(outputs=outputs)
    kinds = ["data" in output for output in reply.ok()["outputs"]]
    expect(kinds, [i > 0 for i in range(len(kinds))], "which outputs have data")
    same(sorted(reply.outputs(), key=lambda t: t.name), sorted(target.infer_any().outputs(), key=lambda t: t.name))


def test_binary_order(target: Target) -> None:
    """Raw tensors follow in the order of the reply's outputs, in whatever order they were requested."""
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in reversed(target.output_names)]
    found = target.infer_any(outputs=outputs).outputs()
    same(sorted(found, key=lambda t: t.name), sorted(target.infer_any().outputs(), key=lambda t: t.name))


def test_binary_equals_json_input(target: Target) -> None:
    """A tensor gets the same answer to the bit as JSON and raw."""
    same(target.infer(*target.request(binary=True)).outputs(), target.infer(*target.request(binary=False)).outputs())


def test_binary_equals_json_output(target: Target) -> None:
    """An answer is the same to the bit as JSON and raw."""
    same(target.infer_any(parameters=BINARY).outputs(), target.infer_any().outputs())


def test_header_of_the_whole_body(target: Target) -> None:
    """A framing header that equals the body's length means that all of it is JSON."""
    head = json.dumps(target.request(binary=False)[0]).encode()
    target.infer(head, headers={"Inference-Header-Content-Length": str(len(head))}).outputs()


def test_header_counts_bytes(target: Target) -> None:
    """The framing header counts bytes, not characters: an unescaped id outside ASCII."""
    head, blob = target.raw(id="é€")
    expect(target.infer(json.dumps(head, ensure_ascii=False).encode(), blob).ok().get("id"), "é€", "id")


def test_json_outputs_are_flat(target: Target) -> None:
    """The data of a JSON output is one flat list: the C++ client counts the outer list only."""
    for output in target.infer_any().ok()["outputs"]:
        require(
            not any(isinstance(e, list) for e in output.get("data", [])), f"{output['name']} should be flat", output["data"]
        )


def test_json_outputs_have_no_parameters(target: Target) -> None:
    """A JSON output has no parameters: if they lack binary_data_size, the C++ client stops."""
    for output in target.infer_any().ok()["outputs"]:
        require(not output.get("parameters"), f"{output['name']} should have no parameters", output.get("parameters"))


def test_json_reply_has_no_framing_header(target: Target) -> None:
    """A reply without raw tensors has no framing header, or one that equals the body's length."""
    reply = target.infer_any()
    found = reply.headers.get("Inference-Header-Content-Length")
    require(found in (None, str(len(reply.body))), "the framing header should be absent", found)


def test_raw_request(target: Target) -> None:
    """With a framing header of 0 the body is the only input, and the reply is raw."""
    reply = _raw(target, {})
    expect(reply.headers.get("Content-Type"), "application/octet-stream", "Content-Type")
    same(reply.outputs(), target.infer_any().outputs())


def test_gzip_request(target: Target) -> None:
    """A gzip body is read; its framing header counts uncompressed bytes."""
    same(_compressed(target, gzip.compress, "gzip").outputs(), target.infer_any().outputs())


def test_deflate_request(target: Target) -> None:
    """A deflate body (zlib's format) is read; its framing header counts uncompressed bytes."""
    same(_compressed(target, zlib.compress, "deflate").outputs(), target.infer_any().outputs())


def test_gzip_reply(target: Target) -> None:
    """A reply for Accept-Encoding: gzip decompresses to the same; its framing header counts uncompressed bytes."""
    _compressed_reply(target, "gzip")


def test_deflate_reply(target: Target) -> None:
    """A reply for Accept-Encoding: deflate decompresses to the same; its framing header counts uncompressed bytes."""
    _compressed_reply(target, "deflate")


def test_metadata_is_never_compressed(target: Target) -> None:
    """Metadata is not compressed whatever Accept-Encoding is: tritonclient decompresses inference replies only."""
    for path in ("/v2", target.path):
        reply = target.call("GET", path, headers={"Accept-Encoding": "gzip, deflate"})
        expect(reply.headers.get("Content-Encoding"), None, f"Content-Encoding of {path}")


def test_errors_are_never_compressed(target: Target) -> None:
    """Errors are not compressed whatever Accept-Encoding is."""
    reply = target.infer({"inputs": []}, headers={"Accept-Encoding": "gzip, deflate"})
    expect(reply.headers.get("Content-Encoding"), None, "Content-Encoding")
    reply.rejected()


def test_classification(target: Target) -> None:
    """`classification` returns BYTES of `value:index`, best first."""
    target.require_extension("classification")
    outputs = [{"name": target.output_names[0], "parameters": {"classification": 2, "binary_data": False}}]
    [found] = target.infer_any(outputs=outputs).outputs()
    expect(found.datatype, "BYTES", "the datatype")
    _classes(found.values)


def test_classification_binary(target: Target) -> None:
    """`classification` and `binary_data` can be combined."""
    target.require_extension("classification")
    outputs = [{"name": target.output_names[0], "parameters": {"classification": 2, "binary_data": True}}]
    [found] = target.infer_any(outputs=outputs).outputs()
    _classes(found.values)


def test_classification_of_too_many_classes(target: Target) -> None:
    """A request for more classes than the model has returns all of them."""
    target.require_extension("classification")
    name = target.output_names[0]
    plain = next(tensor for tensor in target.infer_any().outputs() if tensor.name == name)
    outputs = [{"name": name, "parameters": {"classification": 1000, "binary_data": True}}]
    [found] = target.infer_any(outputs=outputs).outputs()
    expect(found.shape[-1], min(1000, plain.shape[-1]), "the last dimension")


def test_empty_tensor(target: Target) -> None:
    """A batch of 0 with binary_data_size 0 is answered or rejected; it does not crash the server."""
    head, _ = target.raw()
    if target.specs[0]["shape"][:1] != [-1]:
        pytest.skip("the model's input has no free first dimension")
    for described in head["inputs"]:
        described["shape"][0] = 0
        described["parameters"]["binary_data_size"] = 0
    text = json.dumps(head).encode()
    reply = target.infer(text, headers={"Inference-Header-Content-Length": str(len(text))})
    if reply.status != 200:
        reply.rejected()


def test_http_1_1(target: Target) -> None:
    """Replies are HTTP/1.1 with a Content-Length."""
    reply = target.call("GET", "/v2")
    expect(reply.http_version, 11, "the HTTP version")
    expect(reply.headers.get("Content-Length"), str(len(reply.body)), "Content-Length")


def test_keep_alive(target: Target) -> None:
    """One connection serves many requests, errors among them."""
    connection = target.connect()
    head, blob = target.good()
    text = json.dumps(head).encode()
    framing = {"Inference-Header-Content-Length": str(len(text))} if blob else {}
    try:
        target.send(connection, "GET", "/v2").ok()
        socket = connection.sock
        target.send(connection, "GET", "/v2/models/no-such-model")
        target.send(connection, "POST", f"{target.path}/infer", text + blob, framing).ok()
        target.send(connection, "GET", target.path).ok()
        require(connection.sock is socket and socket is not None, "the connection should stay open", "it was closed")
    finally:
        connection.close()


def _raw(target: Target, headers: dict[str, str]) -> Reply:
    target.require_extension("binary_tensor_data")
    if len(target.specs) != 1:
        pytest.skip("the model has several inputs")
    [spec] = target.specs
    values = target.values(spec)
    body = values[0] if isinstance(values, list) else blob_of(values)
    return target.infer(b"", body, {"Inference-Header-Content-Length": "0", **headers})


def _compressed(target: Target, compress: object, encoding: str) -> Reply:
    assert callable(compress)
    head, blob = target.good()
    text = json.dumps(head).encode()
    framing = {"Inference-Header-Content-Length": str(len(text))} if blob else {}
    headers = {"Content-Encoding": encoding} | framing
    return target.call("POST", f"{target.path}/infer", compress(text + blob), headers)


def _compressed_reply(target: Target, encoding: str) -> None:
    plain = target.good(parameters=BINARY)
    reply = target.infer(*plain, {"Accept-Encoding": encoding})
    encoded = reply.headers.get("Content-Encoding")
    if encoded is None:
        pytest.skip("the server does not compress replies")
    expect(encoded, encoding, "Content-Encoding")
    body = gzip.decompress(reply.body) if encoding == "gzip" else zlib.decompress(reply.body)
    same(Reply(reply.status, reply.headers, body, reply.http_version).outputs(), target.infer(*plain).outputs())


def _classes(elements: object) -> None:
    assert isinstance(elements, list)
    values = []
    for element in elements:
        parts = element.decode().split(":", 2)
        try:
            values.append(float(parts[0]))
            int(parts[1])
        except (ValueError, IndexError):
            raise Deviation(f"an element should be value:index or value:index:label; seen: {element!r}") from None
    expect(values, sorted(values, reverse=True), "the values, best first,")
