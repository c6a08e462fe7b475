from pathlib import Path

import pytest

from edgeline.export.graph.opsets import OPSETS, newest_opset
from edgeline.export.graph.to_onnx import build_export
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import ConfigError


def test_a_release_supports_operator_sets_up_to_its_own() -> None:
    assert (newest_opset("1.15"), newest_opset("1.15.1"), newest_opset("1.17.3")) == (19, 19, 20)
    assert newest_opset("onnxruntime>=1.14") == 18
    assert newest_opset("1.31.1") == max(OPSETS.values())


def test_an_operator_set_that_the_oldest_runtime_lacks_is_rejected_before_the_export(run: Run, tmp_path: Path) -> None:
    export = run.config.export.model_copy(update={"opset": 20})
    with pytest.raises(ConfigError, match=r"export.opset = 20 is newer than what ONNX Runtime 1\.15 supports \(19\)"):
        build_export(Run(run.folder, run.config.model_copy(update={"export": export})), tmp_path)
    assert not list(tmp_path.glob("*.onnx"))
