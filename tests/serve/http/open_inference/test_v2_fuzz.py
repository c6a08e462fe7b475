"""Mutated V2 requests on a real connection: each gets an expected status in the one JSON shape, and the next is served."""

import copy
import gzip
import http.client
import json
import random
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

HEADER = "Inference-Header-Content-Length"
JUNK: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1.5, 1e308, float("nan"), float("inf"), "", "x", "\0", "\ud800"]
JUNK += ["é" * 50, [], [[]], {}, {"a": 1}, [1, 2, 3], "1", "BYTES", "UINT8", "image", "probabilities"]
MEMBERS = [
    "id",
    "data",
    "shape",
    "parameters",
    "classification",
    "binary_data",
    "priority",
    "sequence_id",
    "shared_memory_region",
]
EXPECTED = {200, 400, 403, 404, 405, 413, 415, 422, 501, 504}
COUNTS = [pytest.param(300, id="300"), pytest.param(5_000, id="5000", marks=pytest.mark.nightly)]


@pytest.mark.parametrize("count", COUNTS)
def test_every_mutant_gets_an_expected_status(site: Any, artifact_template: Path, count: int) -> None:
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    url, chance, statuses = httpx.URL(site.url), random.Random(count), Counter[int]()
    connection = http.client.HTTPConnection(url.host, url.port, timeout=20)
    for number in range(count):
        path, body, headers = mutant(chance, photo)
        connection.request("POST", path, body, headers)
        reply = connection.getresponse()
        answer = reply.read()
        statuses[reply.status] += 1
        details = f"mutant {number} of seed {count}: {reply.status} {answer[:200]!r} for {path} {headers} {body[:300]!r}"
        late = reply.status == 503 and json.loads(answer)["code"] in ("overloaded", "deadline_exceeded")  # a tiny timeout
        assert reply.status in EXPECTED or late, details
        if reply.status != 200:
            assert reply.headers["Content-Type"] == "application/json", details
            assert json.loads(answer)["error"].isprintable(), details
    connection.close()
    assert {200, 400, 415, 501} <= statuses.keys()  # the mutants reach the server's branches


def good(chance: random.Random, photo: bytes) -> tuple[str, dict[str, Any], bytes]:
    """Return a valid request in one of its forms: the model, the JSON, and the raw tensors."""
    file = struct.pack("<I", len(photo)) + photo
    described = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(file)}}
    classes = [{"name": "probabilities", "parameters": {"binary_data": True, "classification": 2}}]
    pixels = {"name": "image", "shape": [1, 12, 16, 3], "datatype": "UINT8"}
    raw = pixels | {"parameters": {"binary_data_size": 576}}
    return chance.choice(
        [
            ("colors", {"id": "r", "inputs": [described], "outputs": classes, "parameters": {"timeout": 5_000_000}}, file),
            ("colors.pixels", {"inputs": [raw], "parameters": {"binary_data_output": True}}, bytes(576)),
            ("colors.pixels", {"inputs": [pixels | {"data": [0] * 576}]}, b""),
        ]
    )


def mutant(chance: random.Random, photo: bytes) -> tuple[str, bytes, dict[str, str]]:
    """Return a request with up to two members replaced, some bytes changed, and wrong headers."""
    model, head, blob = good(chance, photo)
    for _ in range(chance.randrange(3)):
        holder, value = chance.choice(holders(head)), copy.deepcopy(chance.choice(JUNK))
        if isinstance(holder, dict):
            holder[chance.choice([*holder, *MEMBERS])] = value
        else:
            holder.insert(chance.randrange(len(holder) + 1), value)
    text = json.dumps(head).encode()
    body, headers = bytearray(text + blob), {}
    for _ in range(chance.choice([0, 0, 0, 1, 5])):
        at = chance.randrange(len(body))
        body[at : at + chance.randrange(4)] = chance.randbytes(chance.randrange(4))
    if blob or chance.random() < 0.3:
        headers[HEADER] = chance.choice([str(len(text))] * 8 + ["0", "-1", "x", str(len(body)), "1000000000"])
    packed = bytes(body)
    if chance.random() < 0.15:
        packed = chance.choice([gzip.compress, zlib.compress])(packed)
        headers["Content-Encoding"] = chance.choice(["gzip", "deflate", "br"])
    if chance.random() < 0.1:
        headers["Accept-Encoding"] = chance.choice(["gzip", "deflate", "*", "gzip;q=0", "\xff"])
    if chance.random() < 0.05:
        headers["X-Request-Timeout-Ms"] = chance.choice(["1", "0", "x", "999999", "1e3"])
    route = chance.choice([f"models/{model}/infer"] * 9 + [f"models/{model}/versions/1/infer", "repository/index", "logging"])
    return f"/v2/{route}", packed, headers


def holders(value: Any) -> list[Any]:
    """Return every list and object in a JSON value; of long lists, only the first items are searched."""
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value[:5]
    return [value, *(holder for item in inner for holder in holders(item))]
