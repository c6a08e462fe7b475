"""The int8 files of the shared run, and small graphs for cases that it does not contain."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

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
from edgeline.serve.errors import ExportError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.session import create_session
from tests.support.small_graphs import IMAGENET, ONE_FOR_ALL, SIZE, convolutional


@pytest.fixture(scope="module")
def int8(finished: Any) -> bytes:
    """The int8 file of the shared run."""
    data: bytes = (finished.run.step("variants") / "model.int8.onnx").read_bytes()
    return data


@pytest.fixture(scope="module")
def reference() -> bytes:
    """A network of ten small convolutions."""
    return convolutional(*ONE_FOR_ALL, layers=10)


@pytest.fixture(scope="module")
def ready(reference: bytes) -> Quantizable:
    return make_ready(reference)


def calibration(batch: int = 4) -> Iterator[np.ndarray]:
    """24 images of patches with grain, in batches."""
    yield from np.split(patches(3), 24 // batch)


def patches(seed: int) -> np.ndarray:
    chance = np.random.default_rng(seed)
    pixels = chance.integers(0, 256, (24, 1, 1, 3)) + chance.normal(0, 40, (24, SIZE, SIZE, 3))
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def ranges(ready: Quantizable) -> Ranges:
    return measure_ranges(ready, calibration())


@pytest.fixture(scope="module")
def pixels() -> list[np.ndarray]:
    """Images that are not calibrated on."""
    return list(patches(4))


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


def test_the_same_recipe_writes_the_same_bytes(ready: Quantizable, ranges: Ranges) -> None:
    assert quantize(ready, ranges, Recipe()) == quantize(ready, ranges, Recipe())


def answers(model: bytes, pixels: list[np.ndarray]) -> Outputs:
    return run_session(create_session(model), pixels, 4)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(correct_bias=True)], ids=lambda recipe: recipe.name)
def test_its_outputs_are_similar_to_the_references(
    reference: bytes, ready: Quantizable, ranges: Ranges, pixels: list[np.ndarray], recipe: Recipe
) -> None:
    means = input_means(ready, calibration()) if recipe.correct_bias else None
    similarity = compare_outputs(answers(reference, pixels), answers(quantize(ready, ranges, recipe, means), pixels))
    assert similarity.sqnr_db > 15
    assert similarity.top1_agreement == 1


def test_correcting_the_bias_increases_the_similarity_to_the_reference(
    reference: bytes, ready: Quantizable, ranges: Ranges, pixels: list[np.ndarray]
) -> None:
    means = input_means(ready, calibration())
    expected = answers(reference, pixels)
    plain, corrected = (
        compare_outputs(expected, answers(quantize(ready, ranges, recipe, means), pixels)).sqnr_db
        for recipe in (Recipe(), Recipe(correct_bias=True))
    )
    assert corrected > plain + 1


def test_an_excluded_layer_stays_float_in_the_runtime_too(reference: bytes, ready: Quantizable, ranges: Ranges) -> None:
    convolutions = [node.name for node in ready.model.graph.node if node.op_type == "Conv"]
    partly = quantize(ready, ranges, Recipe(exclude=(convolutions[0], convolutions[5])))
    found = operators(optimized_graph(partly))
    assert found["QLinearConv"] == len(convolutions) - 2 == 8
    assert 0.5 < integer_share(reference, partly, SIZE, SIZE) < 1


def test_eight_bit_weights_may_saturate_on_old_x86_and_seven_bit_ones_cannot(ready: Quantizable, ranges: Ranges) -> None:
    assert saturates(quantize(ready, ranges, Recipe()))
    assert not saturates(quantize(ready, ranges, Recipe(reduce_range=True)))


def test_ranges_of_one_batch_at_a_time_are_those_of_all_at_once(ready: Quantizable, ranges: Ranges) -> None:
    at_once = measure_ranges(ready, calibration(batch=24))
    for name, _ in ranges.items():
        np.testing.assert_allclose(ranges[name].range_value, at_once[name].range_value, rtol=1e-4, atol=1e-4)


def test_averaged_ranges_stay_within_the_extremes(ready: Quantizable, ranges: Ranges) -> None:
    found = measure_ranges(ready, calibration(), average=True)
    narrower = 0
    for name, _ in found.items():
        low, high = (float(np.ravel(value)[0]) for value in found[name].range_value)
        least, most = (float(np.ravel(value)[0]) for value in ranges[name].range_value)
        assert least - 1e-5 <= low <= high <= most + 1e-5
        narrower += high - low < 0.999 * (most - least)
    assert narrower > 0


def noise(count: int) -> Iterator[np.ndarray]:
    chance = np.random.default_rng(3)
    yield from (chance.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8) for _ in range(count))


def test_three_means_and_deviations_move_into_the_first_convolution() -> None:
    reference = convolutional(*IMAGENET)
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
    reference = convolutional(*IMAGENET)
    moved = make_ready(reference)
    int8 = quantize(moved, measure_ranges(moved, noise(4)), Recipe())
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
        make_ready(convolutional(*IMAGENET, **changes))


def test_a_recipe_has_a_name_for_tables() -> None:
    assert Recipe().name == "U8S8 channel minmax"
    everything = Recipe(
        activations="int8",
        weights="uint8",
        per_channel=False,
        ranges="mse",
        reduce_range=True,
        correct_bias=True,
        exclude=("a",),
    )
    assert everything.name == "S8U8 tensor mse 7 bits bias 1 float"
