from pathlib import Path
from typing import Any

import pytest

from edgeline.export.emulation.old_runtime import OPSETS, newest_opset, prove_on
from edgeline.export.graph.to_onnx import build_export
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import ConfigError, VerificationError


def test_a_release_knows_the_operator_sets_up_to_its_own() -> None:
    assert (newest_opset("1.15"), newest_opset("1.15.1"), newest_opset("1.17.3")) == (19, 19, 20)
    assert newest_opset("onnxruntime>=1.14") == 18
    assert newest_opset("1.31.1") == max(OPSETS.values())


def test_an_operator_set_that_the_oldest_runtime_lacks_is_refused_before_anything_is_exported(run: Run, tmp_path: Path) -> None:
    export = run.config.export.model_copy(update={"opset": 20})
    with pytest.raises(ConfigError, match=r"export.opset = 20 is newer than what ONNX Runtime 1\.15 supports \(19\)"):
        build_export(Run(run.folder, run.config.model_copy(update={"export": export})), tmp_path)
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.long
def test_the_artifact_proves_itself_on_the_oldest_runtime_it_names(finished: Any) -> None:
    """On the newest all other tests run."""
    proofs = prove_on(finished.artifact, f"{finished.config.export.min_runtime}.0")
    assert [proof["variant"] for proof in proofs] == ["onnx-fp32", "onnx-int8", "onnx-fp16"]
    for proof in proofs:
        assert proof["samples"] == 5
        assert proof["max_difference"] < 1e-3 or proof["variant"] == "onnx-int8"


@pytest.mark.long
def test_a_release_that_does_not_exist_is_told_in_one_line(finished: Any) -> None:
    with pytest.raises(VerificationError, match="ONNX Runtime 1.15.99 cannot be installed: ") as caught:
        prove_on(finished.artifact, "1.15.99")
    assert caught.value.code == "runtime_unproven"
    assert "\n" not in str(caught.value)
