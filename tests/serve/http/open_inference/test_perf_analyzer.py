"""NVIDIA's perf_analyzer against a real server. docs/conformance.md explains how to install it."""

import base64
import json
import os
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

VARIABLE = "EDGELINE_PERF_ANALYZER"
BINARY = Path(os.environ.get(VARIABLE, "/nonexistent"))
LIMIT_S = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARY.is_file(), reason=f"{VARIABLE} names no perf_analyzer binary"),
]

IMAGES = ["-m", "colors", "--input-data", "images.json"]
JSON = ["--input-tensor-format", "json", "--output-tensor-format", "json"]
RUNS: dict[str, list[str]] = {
    "image files": IMAGES,
    "image files, asynchronous, 4 at once": [*IMAGES, "--async", "--concurrency-range", "4"],
    "image files, batches of 4": [*IMAGES, "-b", "4"],
    "image files at a rate": [*IMAGES, "--request-rate-range", "50"],
    "random pixels": ["-m", "colors.pixels"],
    "random pixels, asynchronous, batches of 4": ["-m", "colors.pixels", "--async", "-b", "4"],
    "pixels in JSON both ways": ["-m", "colors.pixels", *JSON],
    "a version": ["-m", "colors.pixels", "-x", "1"],
}


@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_perf_analyzer_runs_to_its_end(site: Any, artifact_template: Path, tmp_path: Path, arguments: list[str]) -> None:
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    # Decoded bytes are sent as they are: the length in front belongs to them.
    element = {"b64": base64.b64encode(struct.pack("<I", len(photo)) + photo).decode()}
    (tmp_path / "images.json").write_text(json.dumps({"data": [{"image": element}]}))
    model = arguments[1]
    before = counted(site, model)
    # Short windows that differ widely count as stable: no speed is measured here.
    command = [BINARY, "-u", httpx.URL(site.url).netloc.decode(), "-p", "300", "-s", "1000", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=LIMIT_S)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    requests = [int(found) for found in re.findall(r"Request count: (\d+)", output)]
    served = [int(found) for found in re.findall(r"Successful request count: (\d+)", output)]
    assert min(requests, default=0) > 0, output
    assert min(served, default=0) > 0, output
    after = counted(site, model)
    assert after["fail"] == before["fail"]
    assert after["images"] - before["images"] >= sum(requests) * (4 if "-b" in arguments else 1)


def counted(site: Any, model: str) -> dict[str, int]:
    [row] = site.client.get(f"/v2/models/{model}/stats").json()["model_stats"]
    return {"images": row["inference_count"], "fail": row["inference_stats"]["fail"]["count"]}
