"""Required by the specification: health, metadata, inference in JSON, and errors."""

import numpy as np
import pytest

from edgeline.serve.conformance.reply import expect, require, same
from edgeline.serve.conformance.target import Target
from edgeline.serve.http.open_inference.tensors import NUMBERS


def test_live(target: Target) -> None:
    """GET /v2/health/live returns 200."""
    expect(target.call("GET", "/v2/health/live").status, 200, "the status")


def test_live_body(target: Target) -> None:
    """The body of /v2/health/live is JSON with `live`, as KServe's client reads it."""
    expect(target.call("GET", "/v2/health/live").ok().get("live"), True, "live")


def test_ready(target: Target) -> None:
    """GET /v2/health/ready returns 200."""
    expect(target.call("GET", "/v2/health/ready").status, 200, "the status")


def test_ready_body(target: Target) -> None:
    """The body of /v2/health/ready is JSON with `ready` or `live`."""
    found = target.call("GET", "/v2/health/ready").ok()
    require(True in (found.get("ready"), found.get("live")), "ready or live should be true", found)


def test_model_ready(target: Target) -> None:
    """GET /v2/models/M/ready returns 200."""
    expect(target.call("GET", f"{target.path}/ready").status, 200, "the status")


def test_model_ready_by_version(target: Target) -> None:
    """GET /v2/models/M/versions/V/ready returns 200 for every version that the metadata names."""
    for path in target.version_paths():
        expect(target.call("GET", f"{path}/ready").status, 200, f"the status of {path}/ready")


def test_model_ready_unknown(target: Target) -> None:
    """An unknown model is not ready: 4xx or 503."""
    status = target.call("GET", "/v2/models/no-such-model/ready").status
    require(400 <= status < 500 or status == 503, "the status should be 4xx or 503", status)


def test_server_metadata(target: Target) -> None:
    """GET /v2 returns name, version and a list of extensions."""
    found = target.call("GET", "/v2").ok()
    for member, kind in (("name", str), ("version", str), ("extensions", list)):
        require(isinstance(found.get(member), kind), f"{member} should be a {kind.__name__}", found.get(member))


def test_server_metadata_with_slash(target: Target) -> None:
    """GET /v2/ returns what GET /v2 does: the specification has both."""
    expect(target.call("GET", "/v2/").ok(), target.call("GET", "/v2").ok(), "the body")


def test_model_metadata(target: Target) -> None:
    """GET /v2/models/M returns name, platform, inputs and outputs, with datatypes of the protocol."""
    found = target.call("GET", target.path).ok()
    expect(found.get("name"), target.model, "name")
    require(isinstance(found.get("platform"), str), "platform should be a str", found.get("platform"))
    for tensor in [*found["inputs"], *found["outputs"]]:
        require(tensor["datatype"] in {*NUMBERS, "BYTES", "BF16"}, f"the datatype of {tensor['name']} is unknown", tensor)
        sizes = tensor["shape"]
        require(all(type(size) is int and size >= -1 for size in sizes), "a shape should be whole numbers from -1", sizes)


def test_model_metadata_by_version(target: Target) -> None:
    """GET /v2/models/M/versions/V returns the same inputs and outputs."""
    for path in target.version_paths():
        found = target.call("GET", path).ok()
        expect((found["inputs"], found["outputs"]), (target.metadata["inputs"], target.metadata["outputs"]), "the tensors")


def test_infer(target: Target) -> None:
    """POST /v2/models/M/infer returns 200 with model_name and every output in its shape."""
    reply = target.infer_any()
    expect(reply.ok().get("model_name"), target.model, "model_name")
    for tensor in reply.outputs():
        described = next((output for output in target.metadata["outputs"] if output["name"] == tensor.name), None)
        require(described is not None, "an output should be one of the metadata", tensor.name)
        if described is not None:
            expect(tensor.datatype, described["datatype"], f"the datatype of {tensor.name}")
            fits = len(tensor.shape) == len(described["shape"]) and all(
                size in (-1, seen) for size, seen in zip(described["shape"], tensor.shape, strict=True)
            )
            require(fits, f"{tensor.name} should have shape {described['shape']}", tensor.shape)


def test_infer_json_data(target: Target) -> None:
    """Inputs may be flat lists of numbers in the JSON."""
    target.infer(*target.request(binary=False)).outputs()


def test_infer_nested_data(target: Target) -> None:
    """Data that is nested like its shape gets the same answer as flat data."""
    head, _ = target.request(binary=False)
    flat = target.infer(head).outputs()
    for described in head["inputs"]:
        described["data"] = np.array(described["data"], dtype=object).reshape(described["shape"]).tolist()
    same(target.infer(head).outputs(), flat)


def test_infer_by_version(target: Target) -> None:
    """The versioned path answers with that version's number."""
    head, blob = target.good()
    for path, version in zip(target.version_paths(), target.versions, strict=True):
        expect(target.infer(head, blob, path=f"{path}/infer").ok().get("model_version"), version, "model_version")


def test_infer_id(target: Target) -> None:
    """The request's id is returned."""
    expect(target.infer_any(id="r-1").ok().get("id"), "r-1", "id")


def test_infer_id_unicode(target: Target) -> None:
    """An id outside ASCII is returned unchanged."""
    expect(target.infer_any(id="é€").ok().get("id"), "é€", "id")


def test_infer_all_outputs(target: Target) -> None:
    """A request that names no outputs gets all of them."""
    found = sorted(tensor.name for tensor in target.infer_any().outputs())
    expect(found, sorted(target.output_names), "the outputs")


def test_infer_named_outputs(target: Target) -> None:
    """A request that names an output gets only that one."""
    name = target.output_names[-1]
    found = [tensor.name for tensor in target.infer_any(outputs=[{"name": name}]).outputs()]
    expect(found, [name], "the outputs")


def test_infer_unknown_parameters(target: Target) -> None:
    """Unknown parameters are ignored."""
    target.infer_any(parameters={"some_parameter": 1, "another": "text", "third": True}).outputs()


def test_infer_content_type(target: Target) -> None:
    """A request may have the Content-Type application/json, and a reply in JSON has it."""
    head, blob = target.good()
    kind = "application/octet-stream" if blob else "application/json"
    reply = target.infer(head, blob, {"Content-Type": kind})
    reply.outputs()
    expect(reply.headers.get("Content-Type"), "application/json", "Content-Type")


def test_infer_repeats(target: Target) -> None:
    """The same request gets the same answer."""
    same(target.infer_any().outputs(), target.infer_any().outputs())


def test_infer_batch(target: Target) -> None:
    """A batch of 2 is the first dimension of every output."""
    if target.max_batch < 2:
        pytest.skip("the model accepts no batches")
    for tensor in target.infer_any(batch=2).outputs():
        expect(tensor.shape[0], 2, f"the first dimension of {tensor.name}")


def test_rejects_no_inputs(target: Target) -> None:
    """A request without inputs is rejected with an error object."""
    target.infer({"inputs": []}).rejected()


def test_rejects_an_empty_object(target: Target) -> None:
    """The request {} is rejected with an error object."""
    target.infer({}).rejected()


def test_rejects_text(target: Target) -> None:
    """A body that is not JSON is rejected with an error object."""
    target.infer(b"hello").rejected()


def test_rejects_an_empty_body(target: Target) -> None:
    """An empty body is rejected with an error object."""
    target.infer(b"").rejected()


def test_rejects_an_unknown_input(target: Target) -> None:
    """An input that the model does not have is rejected."""
    head, blob = target.good()
    head["inputs"][0]["name"] = "no-such-input"
    target.infer(head, blob).rejected()


def test_rejects_an_unknown_output(target: Target) -> None:
    """An output that the model does not have is rejected."""
    target.infer_any(outputs=[{"name": "no-such-output"}]).rejected()


def test_rejects_a_wrong_datatype(target: Target) -> None:
    """An input with a datatype other than the metadata's is rejected."""
    head, blob = target.good()
    head["inputs"][0]["datatype"] = "INT64" if head["inputs"][0]["datatype"] != "INT64" else "FP64"
    target.infer(head, blob).rejected()


def test_rejects_an_unknown_datatype(target: Target) -> None:
    """A datatype that the protocol does not have is rejected."""
    head, blob = target.good()
    head["inputs"][0]["datatype"] = "FLOAT"
    target.infer(head, blob).rejected()


def test_rejects_data_of_the_wrong_size(target: Target) -> None:
    """Data with one element too many for its shape is rejected."""
    head, _ = target.request(binary=False)
    head["inputs"][0]["data"].append(head["inputs"][0]["data"][0])
    target.infer(head).rejected()


def test_rejects_a_wrong_rank(target: Target) -> None:
    """A shape with three dimensions too many is rejected."""
    head, blob = target.good()
    head["inputs"][0]["shape"] = [*head["inputs"][0]["shape"], 1, 1, 1]
    target.infer(head, blob).rejected()


def test_rejects_an_unknown_model(target: Target) -> None:
    """An unknown model is rejected with an error object."""
    target.infer({"inputs": []}, path="/v2/models/no-such-model/infer").rejected()


def test_rejects_an_unknown_version(target: Target) -> None:
    """An unknown version is rejected with an error object."""
    target.call("GET", f"{target.path}/versions/999999").rejected()


def test_rejects_an_unknown_path(target: Target) -> None:
    """An unknown path below /v2 is rejected with an error object."""
    target.call("GET", "/v2/no-such-path").rejected()


def test_rejects_a_wrong_method(target: Target) -> None:
    """GET on infer is rejected with an error object."""
    target.call("GET", f"{target.path}/infer").rejected()
