"""Validation of an artifact in a child process: what passes, what is rejected, and how the process limits itself."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgeline.serve.errors import ArtifactError
from edgeline.serve.inference import sandbox
from edgeline.serve.inference.sandbox import validate_in_subprocess
from edgeline.serve.preprocess import Limits

PIXELS = Limits().max_pixels


def make_endless(folder: Path) -> None:
    """Replace the graph by one that loops 2**62 times before it answers."""
    model = onnx.load(folder / "model.onnx")
    names = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "value": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, []) for name, kind in names.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_out", names[name], []) for name in ("go", "value")]
    nodes = [helper.make_node("Identity", ["go"], ["go_out"]), helper.make_node("Sin", ["value"], ["value_out"])]
    body = helper.make_graph(nodes, "round", inputs, outputs)
    graph = model.graph
    graph.initializer.append(helper.make_tensor("rounds", TensorProto.INT64, [], [2**62]))
    graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    last = graph.node[-1]
    output_name, last.output[0] = last.output[0], "before"
    graph.node.append(helper.make_node("ReduceSum", ["before"], ["start"], keepdims=0))
    graph.node.append(helper.make_node("Loop", ["rounds", "yes", "start"], ["end"], body=body))
    graph.node.append(helper.make_node("Add", ["before", "end"], [output_name]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_a_good_artifact_passes_validation(artifact_template: Path) -> None:
    validate_in_subprocess(artifact_template, max_pixels=PIXELS)


def test_validation_of_an_endless_graph_times_out(make_artifact: Any, seal: Any) -> None:
    folder = make_artifact()
    make_endless(folder)
    seal(folder)
    with pytest.raises(ArtifactError, match="self-test did not finish within 3 s") as caught:
        validate_in_subprocess(folder, max_pixels=PIXELS, time_s=3)
    assert caught.value.code == "candidate_too_slow"


def make_huge(folder: Path) -> None:
    """Replace the graph by one that fills 64 GB before it answers."""
    model = onnx.load(folder / "model.onnx")
    graph = model.graph
    graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [1], [2**34]))
    last = graph.node[-1]
    output_name, last.output[0] = last.output[0], "before"
    graph.node.append(helper.make_node("ReduceSum", ["before"], ["start"], keepdims=0))
    graph.node.append(helper.make_node("Expand", ["start", "shape"], ["expanded"]))
    graph.node.append(helper.make_node("ReduceMax", ["expanded"], ["end"], keepdims=0))
    graph.node.append(helper.make_node("Add", ["before", "end"], [output_name]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_a_graph_that_needs_too_much_memory_is_rejected(make_artifact: Any, seal: Any) -> None:
    """A18."""
    folder = make_artifact()
    make_huge(folder)
    seal(folder)
    with pytest.raises(ArtifactError, match="cannot compute the golden samples.*Expand.*alloc") as caught:
        validate_in_subprocess(folder, max_pixels=PIXELS)
    assert caught.value.code == "golden_mismatch"
    assert "\n" not in str(caught.value)


def test_validation_raises_the_error_of_a_bad_artifact(make_artifact: Any) -> None:
    folder = make_artifact()
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"model\.onnx") as caught:
        validate_in_subprocess(folder, max_pixels=PIXELS)
    assert caught.value.code == "digest_mismatch"


DEATHS = {
    "a crash": ("kill -SEGV $$", "process was killed by SIGSEGV"),
    "out of time": ("kill -XCPU $$", "process was killed by SIGXCPU"),
    "an exit code": ("exit 7", "exit code 7 and reported nothing"),
    "nonsense": ("echo nonsense; exit 1", "exit code 1 and reported nothing; see the server's log"),
}


@pytest.mark.parametrize(("script", "reason"), DEATHS.values(), ids=DEATHS)
def test_a_candidate_is_rejected_when_its_child_process_dies(
    artifact_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ArtifactError, match=reason) as caught:
        validate_in_subprocess(artifact_template, max_pixels=PIXELS)
    assert caught.value.code == "candidate_crashed"


def test_what_a_child_process_printed_before_it_died_is_in_the_log(
    artifact_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'ImportError: failed to map segment' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ArtifactError):
        validate_in_subprocess(artifact_template, max_pixels=PIXELS)
    assert caplog.messages[-1].endswith("ended with exit code 1: ImportError: failed to map segment")


DROP_PRIVILEGES = """
import json, os, resource, signal
from edgeline.serve.inference.sandbox import drop_privileges
drop_privileges()
left = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1] for name in ("AS", "CPU", "CORE", "FSIZE", "NOFILE")}
print(json.dumps({**left, "nice": os.nice(0), "alarm": signal.alarm(0)}))
"""


def test_the_child_process_drops_the_resources_it_does_not_need() -> None:
    root = Path(sandbox.__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", DROP_PRIVILEGES], cwd=root, capture_output=True, text=True, check=True)
    left = json.loads(ended.stdout)
    assert left["FSIZE"] == left["CORE"] == 0
    assert 0 < left["AS"] <= sandbox.MAX_MEMORY_BYTES
    assert 0 < left["CPU"] <= sandbox.MAX_CPU_S
    assert 0 < left["NOFILE"] <= sandbox.MAX_OPEN_FILES
    assert left["nice"] >= 10
    assert 0 < left["alarm"] <= sandbox.TIMEOUT_S
