"""Robustness: hostile JSON, parameters and compressed bodies get a one-line error, and the server keeps running."""

import gzip
import json
import math
import zlib

import pytest

from edgeline.serve.conformance.reply import expect, require
from edgeline.serve.conformance.target import Target

BOMB_BYTES = 96 * 2**20
"""Over the 64 MiB that Triton accepts by default."""
UNSUPPORTED = {
    "system_shared_memory": "/v2/systemsharedmemory/status",
    "cuda_shared_memory": "/v2/cudasharedmemory/status",
    "trace": "/v2/trace/setting",
    "logging": "/v2/logging",
}
INTERNALS = ("Traceback", 'File "', "site-packages", "/usr/", "/home/", "0x")

pytestmark = pytest.mark.usefixtures("still_alive")


def test_nan(target: Target) -> None:
    """NaN in the JSON is rejected."""
    _literal(target, b"NaN")


def test_infinity(target: Target) -> None:
    """Infinity in the JSON is rejected."""
    _literal(target, b"-Infinity")


def test_overflowing_number(target: Target) -> None:
    """1e999 in the JSON is rejected."""
    _literal(target, b"1e999")


def test_number_of_5000_digits(target: Target) -> None:
    """A whole number of 5,000 digits is rejected."""
    _literal(target, b"9" * 5000)


def test_nested_101_deep(target: Target) -> None:
    """Data nested 101 deep is rejected."""
    _literal(target, b"[" * 101 + b"0" + b"]" * 101)


def test_nested_100000_deep(target: Target) -> None:
    """Data nested 100,000 deep is rejected."""
    _literal(target, b"[" * 100_000 + b"0" + b"]" * 100_000)


def test_duplicate_key(target: Target) -> None:
    """An object with the same key twice is rejected."""
    head, blob = target.good()
    target.infer(b'{"inputs": [], ' + json.dumps(head).encode()[1:], blob).rejected()


def test_not_utf8(target: Target) -> None:
    """JSON that is not UTF-8 is rejected."""
    head, blob = target.good()
    target.infer(b'{"id": "\xff", ' + json.dumps(head).encode()[1:], blob).rejected()


def test_trailing_text(target: Target) -> None:
    """Text after the JSON is rejected."""
    head, blob = target.good()
    target.infer(json.dumps(head).encode() + b"{}", blob).rejected()


def test_not_an_object(target: Target) -> None:
    """JSON that is not an object is rejected."""
    for text in (b"[]", b"1", b"null", b'"inputs"'):
        target.infer(text).rejected()


def test_wrong_types(target: Target) -> None:
    """Members of the wrong type are rejected."""
    wrong: tuple[object, ...] = ({}, ["x"], [{}], [{"name": 1}], None)
    for inputs in wrong:
        target.infer({"inputs": inputs}).rejected()
    head, blob = target.good()
    for name, value in (("id", 1), ("outputs", "all"), ("outputs", [1]), ("parameters", [])):
        target.infer({**head, name: value}, blob).rejected()


def test_many_outputs(target: Target) -> None:
    """The same output requested 10,000 times is rejected."""
    head, blob = target.good(outputs=[{"name": target.output_names[0]}] * 10_000)
    target.infer(head, blob).rejected()


def test_sequence(target: Target) -> None:
    """A sequence_id is rejected by a server without sequences."""
    if "sequence" in target.server.get("extensions", []):
        pytest.skip("the server supports sequences")
    head, blob = target.good(parameters={"sequence_id": 1, "sequence_start": True})
    target.infer(head, blob).rejected()


def test_reserved_parameter(target: Target) -> None:
    """A parameter that starts with triton_ is rejected."""
    head, blob = target.good(parameters={"triton_enable_empty_final_response": "x"})
    target.infer(head, blob).rejected()


def test_timeout_as_text(target: Target) -> None:
    """A timeout that is not a number is rejected."""
    head, blob = target.good(parameters={"timeout": "soon"})
    target.infer(head, blob).rejected()


def test_shared_memory(target: Target) -> None:
    """Shared memory that was never registered is rejected."""
    parameters = {"shared_memory_region": "x", "shared_memory_byte_size": 16}
    head, _ = target.good()
    for described in head["inputs"]:
        described.pop("data", None)
        described["parameters"] = parameters
    target.infer(head).rejected()


def test_unknown_encoding(target: Target) -> None:
    """A Content-Encoding that the server does not support is rejected."""
    head, blob = target.good()
    target.infer(head, blob, {"Content-Encoding": "br"}).rejected()


def test_broken_gzip(target: Target) -> None:
    """A body that is not gzip, and one that is cut off, are rejected."""
    for body in (b"hello", gzip.compress(json.dumps({"inputs": []}).encode())[:-9]):
        target.call("POST", f"{target.path}/infer", body, {"Content-Encoding": "gzip"}).rejected()


def test_gzip_bomb(target: Target) -> None:
    """A small gzip body of 96 MiB of blanks and a valid request is rejected, not decompressed."""
    head, blob = target.good()
    text = json.dumps(head).encode()
    framing = {"Inference-Header-Content-Length": str(BOMB_BYTES + len(text))} if blob else {}
    compressor = zlib.compressobj(1, wbits=31)
    blanks = b"".join(compressor.compress(b" " * 2**20) for _ in range(BOMB_BYTES // 2**20))
    body = blanks + compressor.compress(text + blob) + compressor.flush()
    target.call("POST", f"{target.path}/infer", body, {"Content-Encoding": "gzip"} | framing).rejected()


def test_unsupported_extensions(target: Target) -> None:
    """Extensions that the metadata does not name are rejected with an error object."""
    for extension, path in UNSUPPORTED.items():
        if extension not in target.server.get("extensions", []):
            target.call("GET", path).rejected()


def test_wrong_method_names_the_right_one(target: Target) -> None:
    """GET on infer is 405 with Allow."""
    reply = target.call("GET", f"{target.path}/infer")
    expect((reply.status, reply.headers.get("Allow")), (405, "POST"), "status and Allow")


def test_malicious_model_names(target: Target) -> None:
    """Model names with NUL, dots and slashes are unknown models."""
    for name in ("%00", "..%2f..%2fetc%2fpasswd", "%2e%2e", "x" * 2000):
        reply = target.call("GET", f"/v2/models/{name}/ready")
        require(400 <= reply.status < 500, f"the status of {name[:30]} should be 4xx", reply.status)


def test_errors_reveal_no_internals(target: Target) -> None:
    """Errors are one line, without paths, addresses or tracebacks."""
    head, blob = target.good()
    wrong = [described | {"shape": [7, 7, 7]} for described in head["inputs"]]
    for reply in (target.infer(b"hello"), target.infer({**head, "inputs": wrong}, blob), target.infer({**head, "inputs": []})):
        message = reply.rejected()
        leaked = [word for word in INTERNALS if word in message]
        require(not leaked and "\n" not in message, "an error should be one line without internals", message)


def _literal(target: Target, text: bytes) -> None:
    """Send a number that `json.dumps` would not write, as the first element of every input."""
    head, _ = target.good()
    for described in head["inputs"]:
        described.pop("parameters", None)
        described["data"] = ["<here>", *[0] * (math.prod(described["shape"]) - 1)]
    target.infer(json.dumps(head).encode().replace(b'"<here>"', text)).rejected()
