from typing import Any

import pytest

from edgeline.export.emulation.old_runtime import check_on_release
from edgeline.serve.errors import VerificationError


@pytest.mark.long
def test_the_artifact_passes_its_self_test_on_the_oldest_runtime_it_names(finished: Any) -> None:
    """All other tests run on the newest."""
    results = check_on_release(finished.artifact, f"{finished.config.export.min_runtime}.0")
    assert [result.variant for result in results] == ["onnx-fp32", "onnx-int8", "onnx-fp16"]
    for result in results:
        assert result.samples == 5
        assert result.max_difference < 1e-3 or result.variant == "onnx-int8"


@pytest.mark.long
def test_a_release_that_does_not_exist_is_reported_in_one_line(finished: Any) -> None:
    with pytest.raises(VerificationError, match="ONNX Runtime 1.15.99 cannot be installed: ") as caught:
        check_on_release(finished.artifact, "1.15.99")
    assert caught.value.code == "runtime_unverified"
    assert "\n" not in str(caught.value)
