"""The int8 files of the shared run, and small graphs for cases that it does not contain."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeline.export.graph.contract import check_graph
from edgeline.export.parity.compare import Outputs, run_session
from edgeline.export.parity.similarity import compare_outputs, sqnr_db
from edgeline.export.quantization.static_int8 import (
    Quantizable,
    Ranges,
    Recipe,
    input_means,
    integer_share,
    make_ready,
    measure_ranges,
    optimized_graph,
    quantize,
    saturates,
)
from edgeline.pipeline.data.samples import Sample, read_prepared, stream_pixels
from edgeline.serve.errors import ExportError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.session import create_session


@pytest.fixture(scope="module")
def calibration(finished: Any) -> list[Sample]:
    return read_prepared(finished.run.step("prepare")).of("train")[::2]


@pytest.fixture(scope="module")
def ready(finished: Any) -> Quantizable:
    return make_ready(finished.model)


@pytest.fixture(scope="module")
def ranges(ready: Quantizable, calibration: list[Sample], spec: PreprocessSpec) -> Ranges:
    return measure_ranges(ready, stream_pixels(calibration, spec, 4), "minmax")


@pytest.fixture(scope="module")
def pixels(held_out: list[Sample], spec: PreprocessSpec) -> list[np.ndarray]:
    return list(next(stream_pixels(held_out, spec, len(held_out))))


@pytest.fixture(scope="module")
def int8(ready: Quantizable, ranges: Ranges) -> bytes:
    return quantize(ready, ranges, Recipe())


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_the_runtime_fuses_every_layer_into_integer_operators(finished: Any, int8: bytes, spec: PreprocessSpec) -> None:
    found = operators(optimized_graph(int8))
    assert found == {
        "QLinearConv": 49,
        "QLinearAdd": 9,
        "QLinearGlobalAveragePool": 1,
        "QGemm": 1,
        "Transpose": 1,
        "Reshape": 1,
        "Div": found["Div"],
        "Softmax": 1,
    }
    assert integer_share(finished.model, int8, spec.height, spec.width) == 1


def test_the_bytes_of_the_image_are_the_first_quantized_tensor(int8: bytes) -> None:
    graph = onnx.load_model_from_string(int8).graph
    assert [node.op_type for node in graph.node if "image" in node.input] == ["Transpose"]
    [first] = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] == "permute"]
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    assert (tensors[first.input[1]], tensors[first.input[2]]) == (np.float32(1 / 128), np.uint8(127))


def test_it_keeps_the_graph_contract_and_states_its_origin(finished: Any, int8: bytes, spec: PreprocessSpec) -> None:
    model = check_graph(int8, spec, classes=3, opset=18)
    own = {entry.key: entry.value for entry in onnx.load_model_from_string(finished.model).metadata_props}
    assert {entry.key: entry.value for entry in model.metadata_props} == own
    assert not [tensor for tensor in model.graph.initializer if tensor.name in ("network.mean", "network.std")]


def test_it_is_little_over_a_quarter_of_the_size(finished: Any, int8: bytes) -> None:
    assert len(int8) / len(finished.model) < 0.29


def test_the_same_recipe_writes_the_same_bytes(ready: Quantizable, ranges: Ranges, int8: bytes) -> None:
    assert quantize(ready, ranges, Recipe()) == int8


def answers(model: bytes, pixels: list[np.ndarray]) -> Outputs:
    return run_session(create_session(model), pixels, 4)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(correct_bias=True)], ids=lambda recipe: recipe.name)
def test_its_outputs_are_similar_to_the_references(
    finished: Any,
    ready: Quantizable,
    ranges: Ranges,
    calibration: list[Sample],
    spec: PreprocessSpec,
    pixels: list[np.ndarray],
    recipe: Recipe,
) -> None:
    means = input_means(ready, stream_pixels(calibration, spec, 4)) if recipe.correct_bias else None
    similarity = compare_outputs(answers(finished.model, pixels), answers(quantize(ready, ranges, recipe, means), pixels))
    assert similarity.sqnr_db > 15
    assert similarity.top1_agreement == 1


def test_correcting_the_bias_increases_the_similarity_to_the_reference(
    finished: Any,
    ready: Quantizable,
    ranges: Ranges,
    calibration: list[Sample],
    spec: PreprocessSpec,
    pixels: list[np.ndarray],
) -> None:
    means = input_means(ready, stream_pixels(calibration, spec, 4))
    expected = answers(finished.model, pixels)
    plain, corrected = (
        compare_outputs(expected, answers(quantize(ready, ranges, recipe, means), pixels)).sqnr_db
        for recipe in (Recipe(), Recipe(correct_bias=True))
    )
    assert corrected > plain + 1


def test_an_excluded_layer_stays_float_in_the_runtime_too(
    finished: Any, ready: Quantizable, ranges: Ranges, spec: PreprocessSpec
) -> None:
    convolutions = [node.name for node in ready.model.graph.node if node.op_type == "Conv"]
    partly = quantize(ready, ranges, Recipe(exclude=(convolutions[0], convolutions[20])))
    found = operators(optimized_graph(partly))
    assert found["QLinearConv"] == 47
    share = integer_share(finished.model, partly, spec.height, spec.width)
    assert 0.9 < share < 1


def test_eight_bit_weights_may_saturate_on_old_x86_and_seven_bit_ones_cannot(
    ready: Quantizable, ranges: Ranges, int8: bytes
) -> None:
    assert saturates(int8)
    assert not saturates(quantize(ready, ranges, Recipe(reduce_range=True)))


def test_ranges_of_one_batch_at_a_time_are_those_of_all_at_once(
    ready: Quantizable, ranges: Ranges, calibration: list[Sample], spec: PreprocessSpec
) -> None:
    at_once = measure_ranges(ready, stream_pixels(calibration, spec, len(calibration)), "minmax")
    for name, _ in ranges.items():
        np.testing.assert_allclose(ranges[name].range_value, at_once[name].range_value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["average", "percentile", "entropy"])
def test_other_calibration_methods_stay_within_the_extremes(
    ready: Quantizable, ranges: Ranges, calibration: list[Sample], spec: PreprocessSpec, method: str
) -> None:
    found = measure_ranges(ready, stream_pixels(calibration[:4], spec, 4), method)
    narrower = 0
    for name, _ in found.items():
        low, high = (float(np.ravel(value)[0]) for value in found[name].range_value)
        least, most = (float(np.ravel(value)[0]) for value in ranges[name].range_value)
        assert low <= high
        assert low >= least - 0.05 * (most - least)
        assert high <= most + 0.05 * (most - least)
        narrower += high - low < 0.999 * (most - least)
    assert narrower > 10


def network_with(mean: list[float], std: list[float], *, bias: bool = True, first: str = "Conv") -> bytes:
    """uint8 NHWC, a normalization, one convolution of 3 x 3 with padding, pooling and a linear layer."""
    chance = np.random.default_rng(0)
    tensors = {
        "mean": np.array(mean, np.float32).reshape(1, -1, 1, 1),
        "std": np.array(std, np.float32).reshape(1, -1, 1, 1),
        "kernel": chance.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32),
        "bias": chance.normal(0, 0.2, 8).astype(np.float32),
        "matrix": chance.normal(0, 1, (3, 8)).astype(np.float32),
        "offset": np.zeros(3, np.float32),
        "shape": np.array([-1, 8]),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["permute"], "t", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["permute"], ["cast"], "c", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["cast", "mean"], ["sub"], "s"),
        helper.make_node("Div", ["sub", "std"], ["div"], "d"),
        helper.make_node(first, ["div", "kernel", *(["bias"] if bias else [])], ["conv"], "conv", pads=[1] * 4)
        if first == "Conv"
        else helper.make_node("Identity", ["div"], ["conv"], "i"),
        helper.make_node("GlobalAveragePool", ["conv"], ["pool"], "g"),
        helper.make_node("Reshape", ["pool", "shape"], ["flat"], "r"),
        helper.make_node("Gemm", ["flat", "matrix", "offset"], ["logits"], "m", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "x", axis=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 24, 24, 3])
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("probabilities", "logits")]
    graph = helper.make_graph(nodes, "net", [image], outputs, [numpy_helper.from_array(v, k) for k, v in tensors.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def noise(count: int) -> Iterator[np.ndarray]:
    chance = np.random.default_rng(3)
    yield from (chance.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8) for _ in range(count))


IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


def test_three_means_and_deviations_move_into_the_first_convolution() -> None:
    reference = network_with(*IMAGENET)
    moved = make_ready(reference)
    assert (moved.zero_point, moved.scale) == (114, pytest.approx(1 / 57.63))
    [batch] = noise(1)
    expected, observed = (
        create_session(model).run(["logits"], {"image": batch})[0] for model in (reference, moved.model.SerializeToString())
    )
    assert sqnr_db(expected, observed) > 20  # but for the border, where padding has the mean's color
    inside = np.full((1, 24, 24, 3), 114, np.uint8)
    assert moved.pixels == "div"
    assert np.isfinite(create_session(moved.model.SerializeToString()).run(["logits"], {"image": inside})[0]).all()


def test_such_a_network_quantizes_the_bytes_directly_too() -> None:
    reference = network_with(*IMAGENET)
    moved = make_ready(reference)
    int8 = quantize(moved, measure_ranges(moved, noise(4), "minmax"), Recipe())
    assert operators(optimized_graph(int8)).keys() & {"QuantizeLinear", "Cast", "Sub"} == set()
    [batch] = noise(1)
    expected, observed = (create_session(model).run(["logits"], {"image": batch})[0] for model in (reference, int8))
    assert sqnr_db(expected, observed) > 15


UNFIT = {
    "no convolution first": ({"first": "Identity"}, "begins with the normalization and a convolution"),
    "no bias to move the means into": ({"bias": False}, "needs a first convolution with a bias"),
}


@pytest.mark.parametrize(("changes", "words"), UNFIT.values(), ids=UNFIT)
def test_a_network_that_cannot_quantize_the_bytes_is_rejected_with_what_to_do(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=f"{words}.*leave onnx-int8 out of export.variants"):
        make_ready(network_with(*IMAGENET, **changes))


def test_a_recipe_has_a_name_for_tables() -> None:
    assert Recipe().name == "U8S8 channel minmax"
    everything = Recipe(
        activations="int8",
        weights="uint8",
        per_channel=False,
        ranges="entropy",
        reduce_range=True,
        correct_bias=True,
        exclude=("a",),
    )
    assert everything.name == "S8U8 tensor entropy 7 bits bias 1 float"
