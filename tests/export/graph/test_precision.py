from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edgeline.export.graph.contract import check_graph
from edgeline.export.graph.precision import SMALL, halve, to_ort
from edgeline.serve.errors import ExportError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.session import create_session


def test_half_precision_halves_the_file_and_keeps_the_contract(finished: Any, spec: PreprocessSpec) -> None:
    halved = halve(finished.model)
    assert 0.49 < len(halved) / len(finished.model) < 0.52
    check_graph(halved, spec, classes=3, opset=18)


def test_half_precision_only_stores_in_halves_and_computes_in_full(finished: Any) -> None:
    model = onnx.load_model_from_string(halve(finished.model))
    large = [t for t in model.graph.initializer if np.prod(t.dims) >= SMALL]
    assert {t.data_type for t in large} == {TensorProto.FLOAT16}
    widened = {node.output[0] for node in model.graph.node if node.op_type == "Cast" and node.input[0].endswith("_half")}
    assert {t.name.removesuffix("_half") for t in large} == widened


def test_a_weight_too_large_for_half_precision_is_rejected(finished: Any) -> None:
    model = onnx.load_model_from_string(finished.model)
    tensor = next(t for t in model.graph.initializer if np.prod(t.dims) >= SMALL)
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[0] = 7e4
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    with pytest.raises(ExportError, match="has weights over 65504, the largest float16"):
        halve(model.SerializeToString())


@pytest.fixture(scope="module")
def variants(finished: Any) -> Path:
    folder: Path = finished.run.step("variants")
    return folder


@pytest.mark.parametrize("name", ["model.ort", "model.int8.ort"])
def test_an_ort_file_is_one_and_loads_from_its_bytes(variants: Path, name: str) -> None:
    data = (variants / name).read_bytes()
    assert data[4:8] == b"ORTM"
    session = create_session(data)
    assert [value.name for value in session.get_inputs()] == ["image"]


def test_an_ort_file_has_no_layout_that_only_x86_supports(variants: Path) -> None:
    assert "nchwc" not in (variants / "model.ort.operators.config").read_text()


def test_int8_in_ort_format_has_the_same_outputs(variants: Path) -> None:
    pixels_NHW3 = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    [one, other] = [
        create_session((variants / name).read_bytes()).run(["logits"], {"image": pixels_NHW3})[0]
        for name in ("model.int8.onnx", "model.int8.ort")
    ]
    np.testing.assert_array_equal(one, other)


def test_the_operators_for_a_reduced_build_name_no_path(variants: Path) -> None:
    text = (variants / "model.int8.ort.operators.config").read_text()
    assert "QLinearConv" in text
    assert "/" not in text
    assert "#" not in text


def test_writing_ort_format_leaves_logging_as_it_was(finished: Any, capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    before = logging.getLogger().handlers[:], logging.getLogger().level
    to_ort((finished.run.step("variants") / "model.int8.onnx").read_bytes())
    assert (logging.getLogger().handlers, logging.getLogger().level) == before
    assert capfd.readouterr() == ("", "")
