"""Required by tritonclient, through tritonclient itself."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from edgeline.serve.conformance.reply import expect, require
from edgeline.serve.conformance.target import Target


@pytest.fixture(name="client")
def open_client(target: Target) -> Iterator[Any]:
    """A client of the server under test."""
    with triton.InferenceServerClient(target.authority, ssl=target.is_tls) as client:
        yield client


def test_client_health(target: Target, client: Any) -> None:
    """is_server_live, is_server_ready and is_model_ready, with and without a version, return true."""
    found = [client.is_server_live(), client.is_server_ready(), client.is_model_ready(target.model)]
    found += [client.is_model_ready(target.model, version) for version in target.versions]
    expect(found, [True] * len(found), "live, ready, model ready and each version")


def test_client_model_not_ready(client: Any) -> None:
    """is_model_ready of an unknown name with a blank in it returns false."""
    expect(client.is_model_ready("no such model"), False, "is_model_ready")


def test_client_metadata(target: Target, client: Any) -> None:
    """get_server_metadata and get_model_metadata return what the server sends."""
    expect(client.get_server_metadata(), target.server, "the server's metadata")
    expect(client.get_model_metadata(target.model)["name"], target.model, "the model's name")


def test_client_config(target: Target, client: Any) -> None:
    """get_model_config, with and without a version, returns the model's configuration."""
    target.require_extension("model_configuration")
    for version in ("", *target.versions):
        expect(client.get_model_config(target.model, version)["name"], target.model, "the model's name")


def test_client_statistics(target: Target, client: Any) -> None:
    """get_inference_statistics answers for one model and for all."""
    target.require_extension("statistics")
    names = [{row["name"] for row in client.get_inference_statistics(name)["model_stats"]} for name in (target.model, "")]
    require(names[0] == {target.model} and target.model in names[1], f"{target.model} should be in both", names)


def test_client_index(target: Target, client: Any) -> None:
    """get_model_repository_index, which sends an empty body, lists the model."""
    target.require_extension("model_repository")
    rows = client.get_model_repository_index()
    require(any(row["name"] == target.model for row in rows), f"{target.model} should be listed", rows)


def test_client_infer(target: Target, client: Any) -> None:
    """Infer with its defaults, which are raw tensors both ways, returns every output."""
    result = client.infer(target.model, _inputs(target))
    for name in target.output_names:
        require(result.as_numpy(name) is not None, f"{name} should be returned", result.get_response())


def test_client_infer_json(target: Target, client: Any) -> None:
    """Infer with JSON both ways returns the same as with raw tensors, to the bit."""
    if target.is_binary_only:
        pytest.skip("the model's inputs cannot be sent as JSON")
    outputs = [triton.InferRequestedOutput(name, binary_data=False) for name in target.output_names]
    found = client.infer(target.model, _inputs(target, binary=False), outputs=outputs)
    _same(target, found, client.infer(target.model, _inputs(target)))


def test_client_infer_outputs(target: Target, client: Any) -> None:
    """Infer returns only a named output, raw."""
    name = target.output_names[-1]
    found = client.infer(target.model, _inputs(target), outputs=[triton.InferRequestedOutput(name)])
    expect([output["name"] for output in found.get_response()["outputs"]], [name], "the outputs")
    require(found.as_numpy(name) is not None, f"{name} should be returned", found.get_response())


def test_client_infer_options(target: Target, client: Any) -> None:
    """Infer accepts request_id, timeout and priority, and the id is returned."""
    found = client.infer(target.model, _inputs(target), request_id="r-1", timeout=20_000_000, priority=1)
    expect(found.get_response().get("id"), "r-1", "id")


def test_client_infer_version(target: Target, client: Any) -> None:
    """Infer accepts a model version."""
    for version in target.versions:
        client.infer(target.model, _inputs(target), model_version=version)


def test_client_infer_batch(target: Target, client: Any) -> None:
    """A batch of 3 equals 3 singles to the bit."""
    if target.max_batch < 3:
        pytest.skip("the model accepts no batch of 3")
    batch, single = (client.infer(target.model, _inputs(target, batch=n)) for n in (3, 1))
    for name in target.output_names:
        for row in batch.as_numpy(name):
            require(row.tobytes() == single.as_numpy(name)[0].tobytes(), f"each row of {name} should be the single's", row)


def test_client_gzip(target: Target, client: Any) -> None:
    """Infer with gzip both ways returns the same."""
    _compressed(target, client, "gzip")


def test_client_deflate(target: Target, client: Any) -> None:
    """Infer with deflate both ways returns the same."""
    _compressed(target, client, "deflate")


def test_client_classes(target: Target, client: Any) -> None:
    """InferRequestedOutput(class_count=2) returns at most two classes a row."""
    target.require_extension("classification")
    name = target.output_names[0]
    found = client.infer(target.model, _inputs(target), outputs=[triton.InferRequestedOutput(name, class_count=2)])
    elements = found.as_numpy(name)
    require(elements.dtype == object and 1 <= elements.shape[-1] <= 2, "one or two classes should be returned", elements)


def test_client_async(target: Target, client: Any) -> None:
    """async_infer returns each of four requests' own id."""
    pending = [client.async_infer(target.model, _inputs(target), request_id=f"r-{n}") for n in range(4)]
    ids = [request.get_result().get_response().get("id") for request in pending]
    expect(ids, ["r-0", "r-1", "r-2", "r-3"], "the ids")


def test_client_error(target: Target, client: Any) -> None:
    """The client reports an error in the server's own words."""
    for model in (target.model, "no-such-model"):
        wrong = triton.InferInput("no-such-input", [1], "FP32")
        wrong.set_data_from_numpy(np.zeros(1, np.float32))
        with pytest.raises(triton.InferenceServerException) as caught:
            client.infer(model, [wrong])
        message = caught.value.message()
        is_sentence = isinstance(message, str) and message and "an exception occurred in the client" not in message
        require(bool(is_sentence), "the message should be a sentence", message)


def _inputs(target: Target, *, binary: bool = True, batch: int = 1) -> list[Any]:
    inputs = []
    for spec in target.specs:
        values, shape = target.values(spec, batch), target.shape(spec, batch)
        tensor = triton.InferInput(spec["name"], shape, spec["datatype"])
        array = np.array(values, dtype=object).reshape(shape) if isinstance(values, list) else values
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


def _same(target: Target, found: Any, expected: Any) -> None:
    for name in target.output_names:
        one, other = found.as_numpy(name), expected.as_numpy(name)
        require(one is not None and other is not None, f"{name} should be returned", found.get_response())
        is_equal = one.shape == other.shape and one.tolist() == other.tolist()
        require(is_equal, f"{name} should be the same to the bit", (one.tolist(), other.tolist()))


def _compressed(target: Target, client: Any, name: str) -> None:
    ways = {"request_compression_algorithm": name, "response_compression_algorithm": name}
    _same(target, client.infer(target.model, _inputs(target), **ways), client.infer(target.model, _inputs(target)))
