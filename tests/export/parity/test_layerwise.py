from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.parity.layerwise import find_divergence, first_diverging, locate, plot_divergence
from edgeline.export.parity.report import Layer
from edgeline.export.tolerances import FLOAT_LAYER_DB
from edgeline.pipeline.data.samples import Sample, stream_pixels
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.cases import cases


@pytest.fixture(scope="module")
def pixels(held_out: list[Sample], spec: PreprocessSpec) -> np.ndarray:
    return next(stream_pixels(held_out[:3], spec, 3))


def with_weight(model: bytes, name: str, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    graph = onnx.load_model_from_string(model)
    [tensor] = [t for t in graph.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), name))
    return bytes(graph.SerializeToString())


def fifth_more(weights: np.ndarray) -> np.ndarray:
    weights = weights.copy()
    weights[3] *= 1.05
    return weights


def test_every_layer_of_a_correct_file_computes_what_pytorch_computes(
    finished: Any, deployed: CalibratedModel, spec: PreprocessSpec, pixels: np.ndarray
) -> None:
    layers = locate(deployed, finished.model, spec, pixels)
    assert len(layers) == 50  # all of EfficientNet-Lite0's convolutions, and the head
    assert min(layer.sqnr_db for layer in layers) > FLOAT_LAYER_DB + 10
    assert first_diverging(layers, quantized=False) is None


PLACES = ["backbone.conv_stem", "backbone.blocks.0.0.conv_dw", "backbone.blocks.4.0.conv_dw", "backbone.conv_head", "head.1"]


@pytest.mark.parametrize("module", cases({place: place for place in PLACES}, quick=["backbone.conv_stem", "head.1"]))
def test_the_layer_whose_weights_differ_is_named(
    finished: Any, deployed: CalibratedModel, spec: PreprocessSpec, pixels: np.ndarray, module: str, tmp_path: Path
) -> None:
    change = fifth_more if module != "head.1" else lambda weights: weights * 1.05
    model = with_weight(finished.model, f"network.{module}.weight", change)
    divergence = find_divergence(deployed, model, spec, pixels, quantized=False)
    [problem] = divergence.problems
    assert f"layers to diverge is {module} (ONNX node node_" in problem
    assert divergence.first is not None
    assert divergence.first.module == module
    plot_divergence(divergence, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_another_normalization_shows_at_the_first_layer(
    finished: Any, deployed: CalibratedModel, spec: PreprocessSpec, pixels: np.ndarray
) -> None:
    model = with_weight(finished.model, "network.mean", lambda mean: mean + 3)
    [problem] = find_divergence(deployed, model, spec, pixels, quantized=False).problems
    assert "backbone.conv_stem" in problem


def test_an_int8_file_is_compared_layer_by_layer_too(
    finished: Any, deployed: CalibratedModel, spec: PreprocessSpec, pixels: np.ndarray
) -> None:
    model = (finished.run.step("variants") / "model.int8.onnx").read_bytes()
    layers = locate(deployed, model, spec, pixels)
    assert len(layers) == 50
    assert 10 < min(layer.sqnr_db for layer in layers) < FLOAT_LAYER_DB


def test_in_an_int8_file_the_layer_with_a_large_fall_is_named() -> None:
    layers = [Layer(module=name, node=name, sqnr_db=ratio) for name, ratio in (("a", 38), ("b", 33), ("c", 12), ("d", 11))]
    assert first_diverging(layers, quantized=True) == layers[2]
    assert first_diverging(layers[:2], quantized=True) is None
