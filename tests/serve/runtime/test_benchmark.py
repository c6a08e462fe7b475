"""Benchmarks of a model: every figure is present and from the right process."""

from pathlib import Path

import pytest

from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.benchmark import cold_start, costs
from edgeline.serve.runtime.cpu import usable_cores

SPEC = PreprocessSpec(height=12, width=16)


@pytest.fixture(scope="module")
def model(artifact_template: Path) -> Path:
    return artifact_template / "model.onnx"


def test_times_are_measured_with_one_and_all_threads_and_name_their_command(model: Path, artifact_template: Path) -> None:
    found = costs(model, "onnx", (artifact_template / "golden" / "0.jpg").read_bytes(), SPEC, variant="onnx-fp32")
    assert list(found["latency"]) == list(dict.fromkeys(["threads_1", f"threads_{usable_cores()}"]))
    for latency in found["latency"].values():
        assert 0 < latency["p50_ms"] <= latency["p95_ms"]
        assert latency["runs"] == found["measured_on"]["options"]["runs"] == 50
    assert found["measured_on"]["command"] == "edgeline check ARTIFACT --variant onnx-fp32 --time"


@pytest.mark.parametrize("saturates", [True, False])
def test_a_cold_start_is_measured_in_a_separate_process(model: Path, saturates: bool) -> None:
    started = cold_start(model, "onnx", SPEC, saturates=saturates)
    assert started.keys() == {"import_ms", "load_ms", "first_answer_ms", "peak_mb"}
    assert 20 < started["peak_mb"] < 400
    assert all(value > 0 for value in started.values())
