"""Required by perf_analyzer: what it reads before, during and after a run, requested as libcurl does."""

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edgeline.serve.conformance.reply import Reply, expect, require
from edgeline.serve.conformance.target import Target

CURL = {"User-Agent": "libcurl-agent/1.0", "Accept": "*/*"}
STAGES = ("success", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
ROUNDS, REQUESTS, DELAYED_S = 3, 7, 0.03


def test_versions_are_numbers(target: Target) -> None:
    """Versions are strings of plain decimal numbers; perf_analyzer aborts on any other."""
    for version in target.versions:
        is_plain = isinstance(version, str) and version.isascii() and version.isdigit() and str(int(version)) == version
        require(is_plain, "a version should be a string such as '7'", version)


def test_config(target: Target) -> None:
    """GET /v2/models/M/config returns 200."""
    target.call("GET", f"{target.path}/config").ok()


def test_config_names(target: Target) -> None:
    """The configuration names only inputs and outputs of the metadata."""
    config = _config(target)
    for member, known in (("input", [spec["name"] for spec in target.specs]), ("output", target.output_names)):
        for tensor in config.get(member, []):
            require(tensor["name"] in known, f"{member} should be one of {known}", tensor["name"])


def test_config_batch(target: Target) -> None:
    """With a max_batch_size over 0 the metadata's first dimension is the batch, and `dims` omits it."""
    config = _config(target)
    size = config.get("max_batch_size", 0)
    require(type(size) is int and size >= 0, "max_batch_size should be a whole number", size)
    if size:
        shapes = {tensor["name"]: tensor["shape"] for tensor in [*target.metadata["inputs"], *target.metadata["outputs"]]}
        for tensor in [*config.get("input", []), *config.get("output", [])]:
            expect([-1, *tensor["dims"]], shapes[tensor["name"]], f"the batch and the dims of {tensor['name']}")


def test_config_objects(target: Target) -> None:
    """The configuration's optional objects have the member that perf_analyzer reads."""
    config = _config(target)
    for name, member in (("model_transaction_policy", "decoupled"), ("response_cache", "enable")):
        require(name not in config or member in config[name], f"{name} should have {member}", config.get(name))


def test_statistics(target: Target) -> None:
    """The statistics have every counter that perf_analyzer reads, as whole numbers."""
    for row in _rows(target):
        for counter in ("inference_count", "execution_count"):
            require(type(row.get(counter)) is int, f"{counter} should be a whole number", row.get(counter))
        for stage in STAGES:
            found = row["inference_stats"].get(stage)
            whole = isinstance(found, dict) and all(type(found.get(member)) is int for member in ("count", "ns"))
            require(whole, f"{stage} should have count and ns", found)


def test_statistics_by_version(target: Target) -> None:
    """The statistics of a version are of that version."""
    target.require_extension("statistics")
    for path, version in zip(target.version_paths(), target.versions, strict=True):
        rows = target.call("GET", f"{path}/stats").ok()["model_stats"]
        expect([row["version"] for row in rows], [version], "the versions")


def test_statistics_of_all(target: Target) -> None:
    """GET /v2/models/stats includes the model."""
    target.require_extension("statistics")
    rows = target.call("GET", "/v2/models/stats").ok()["model_stats"]
    require(any(row["name"] == target.model for row in rows), f"{target.model} should be listed", [row["name"] for row in rows])


def test_queue_grows(target: Target) -> None:
    """queue.count and success.count grow with every request, even if it was not queued."""
    before = _sum(target, "success"), _sum(target, "queue")
    for _ in range(3):
        target.infer_any().ok()
    expect((_sum(target, "success"), _sum(target, "queue")), (before[0] + 3, before[1] + 3), "success and queue after 3 more")


def test_inferences_are_counted(target: Target) -> None:
    """inference_count counts every item of a batch."""
    batch = min(3, target.max_batch)
    before = sum(row["inference_count"] for row in _rows(target))
    target.infer_any(batch=batch).ok()
    expect(sum(row["inference_count"] for row in _rows(target)), before + batch, f"inference_count after {batch} more")


def test_runs_are_counted(target: Target) -> None:
    """execution_count grows with a request."""
    before = sum(row["execution_count"] for row in _rows(target))
    target.infer_any().ok()
    after = sum(row["execution_count"] for row in _rows(target))
    require(after > before, f"execution_count should be over {before}", after)


def test_curl_binary(target: Target) -> None:
    """The C++ client's request is answered: an empty id, octet-stream, raw tensors both ways."""
    _curl(target, *_request(target, binary=True), "application/octet-stream").outputs()


def test_curl_json(target: Target) -> None:
    """The C++ client's request in JSON is answered: an empty id, and a framing header of the whole body."""
    _curl(target, *_request(target, binary=False), "application/json").outputs()


def test_curl_batch(target: Target) -> None:
    """The C++ client's batch of 4 is answered."""
    if target.max_batch < 4:
        pytest.skip("the model accepts no batch of 4")
    _curl(target, *_request(target, binary=True, batch=4), "application/octet-stream").outputs()


def test_empty_id(target: Target) -> None:
    """An empty id is accepted, and returned empty or not at all."""
    head, blob = _request(target, binary=target.is_binary_only)
    found = _curl(target, head, blob, _kind(blob)).ok().get("id", "")
    expect(found, "", "id")


def test_concurrent_ids(target: Target) -> None:
    """Of 16 requests on 4 connections each gets its own id back; the asynchronous mode stops at any other."""

    def one(number: int) -> Any:
        head, blob = _request(target, binary=target.is_binary_only, id=str(number))
        return _curl(target, head, blob, _kind(blob)).ok().get("id")

    with ThreadPoolExecutor(4) as pool:
        expect(list(pool.map(one, range(16))), [str(number) for number in range(16)], "the ids")


def test_no_delayed_acknowledgement(target: Target) -> None:
    """Replies on a persistent connection do not wait 40 ms for an acknowledgement, as two writes without TCP_NODELAY do."""
    medians = []
    connection = target.connect()
    try:
        for _ in range(ROUNDS):
            durations = []
            for _ in range(REQUESTS):
                start = time.perf_counter()
                target.send(connection, "GET", target.path).ok()
                durations.append(time.perf_counter() - start)
            medians.append(statistics.median(durations))
    finally:
        connection.close()
    require(min(medians) < DELAYED_S, f"the median should be under {DELAYED_S * 1e3:.0f} ms", f"{min(medians) * 1e3:.0f} ms")


def _config(target: Target) -> dict[str, Any]:
    if not target.config:
        pytest.skip("the server returns no configuration")
    return target.config


def _rows(target: Target) -> list[dict[str, Any]]:
    target.require_extension("statistics")
    rows = target.call("GET", f"{target.path}/stats").ok()["model_stats"]
    require(bool(rows) and all(row["name"] == target.model for row in rows), f"all should be of {target.model}", rows)
    return list(rows)


def _sum(target: Target, stage: str) -> int:
    return sum(row["inference_stats"][stage]["count"] for row in _rows(target))


def _request(target: Target, *, binary: bool, batch: int = 1, id: str = "") -> tuple[dict[str, Any], bytes]:
    outputs = [{"name": name, "parameters": {"binary_data": binary}} for name in target.output_names]
    return target.request(binary=binary, batch=batch, id=id, outputs=outputs)


def _kind(blob: bytes) -> str:
    return "application/octet-stream" if blob else "application/json"


def _curl(target: Target, head: dict[str, Any], blob: bytes, kind: str) -> Reply:
    text = json.dumps(head).encode()
    headers = {**CURL, "Content-Type": kind, "Inference-Header-Content-Length": str(len(text))}
    return target.infer(text, blob, headers)
