"""Laws of the int8 helpers, on random weights."""

import itertools
from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from edgeline.export.quantization.static_int8 import Recipe, _rounded, saturates, with_scalar_input
from edgeline.serve.runtime.session import create_session

few = settings(max_examples=40, derandomize=True)
kernels = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    elements=st.floats(-100, 100, width=32),
)
recipes = st.builds(Recipe, per_channel=st.booleans(), reduce_range=st.booleans())


@few
@given(kernels, recipes)
def test_a_rounded_kernel_is_whole_steps_of_its_scale_and_at_most_half_a_step_off(kernel: np.ndarray, recipe: Recipe) -> None:
    rounded = _rounded(kernel, recipe)
    levels = 64 if recipe.reduce_range else 127
    largest = np.abs(kernel).max(axis=(1, 2, 3) if recipe.per_channel else None, keepdims=True)
    step = np.maximum(largest, np.finfo(np.float32).tiny).astype(np.float64) / levels
    assert rounded.shape == kernel.shape
    assert np.all(np.abs(rounded - kernel) <= 0.501 * step)
    steps = rounded / step
    np.testing.assert_allclose(steps, np.round(steps), rtol=0, atol=1e-3)
    assert np.abs(steps).max() <= levels + 1e-3
    np.testing.assert_array_equal(_rounded(-kernel, recipe), -rounded)


@few
@given(kernels, st.floats(2**-10, 2**10, width=32))
def test_a_channels_rounding_does_not_depend_on_the_other_channels(kernel: np.ndarray, factor: float) -> None:
    other = kernel.copy()
    other[1:] *= np.float32(factor)
    np.testing.assert_array_equal(_rounded(other, Recipe())[0], _rounded(kernel, Recipe())[0])


def holding(weights: np.ndarray) -> bytes:
    nodes = [helper.make_node("DequantizeLinear", ["weights", "scale"], ["real"])]
    held = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.float32(1), "scale")]
    value = helper.make_tensor_value_info("real", TensorProto.FLOAT, weights.shape)
    model = helper.make_model(helper.make_graph(nodes, "weights", [], [value], held))
    return bytes(model.SerializeToString())


# Two products of the same sign fit if the weights add up to at most 128.
near = st.one_of(st.integers(63, 66), st.integers(-66, -63))
shapes = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))
integers = st.one_of(
    arrays.arrays(np.int8, shapes, elements=near), arrays.arrays(np.int8, shapes, elements=st.integers(-127, 127))
)


@settings(max_examples=150, derandomize=True)
@given(integers)
def test_a_file_saturates_exactly_where_some_pair_of_products_does_not_fit_into_16_bits(weights: np.ndarray) -> None:
    """As `vpmaddubsw` adds them, for any two weights of a channel and any bytes."""
    sums = [
        byte * int(one) + other_byte * int(other)
        for channel in weights.reshape(len(weights), -1)
        for one, other in itertools.combinations(channel, 2)
        for byte, other_byte in itertools.product((0, 1, 254, 255), repeat=2)
    ]
    assert saturates(holding(weights)) == any(total != np.clip(total, -(2**15), 2**15 - 1) for total in sums)


@few
@given(arrays.arrays(np.int8, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=near))
def test_a_matrix_saturates_the_same_whether_it_is_transposed_or_not(matrix: np.ndarray) -> None:
    assert saturates(holding(matrix)) == saturates(holding(np.ascontiguousarray(matrix.T)))


@few
@given(arrays.arrays(np.int8, (3, 2, 2, 2), elements=st.integers(-64, 64)))
def test_seven_bits_never_saturate(weights: np.ndarray) -> None:
    assert not saturates(holding(weights))


def beginning(mean: list[float], std: list[float], padding: int) -> bytes:
    """A normalization and a convolution of 3 x 3."""
    chance = np.random.default_rng(0)
    tensors = {
        "mean": np.array(mean, np.float32).reshape(1, 3, 1, 1),
        "std": np.array(std, np.float32).reshape(1, 3, 1, 1),
        "kernel": chance.normal(0, 0.2, (4, 3, 3, 3)).astype(np.float32),
        "bias": chance.normal(0, 0.2, 4).astype(np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["permute"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["permute"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["cast", "mean"], ["sub"]),
        helper.make_node("Div", ["sub", "std"], ["div"]),
        helper.make_node("Conv", ["div", "kernel", "bias"], ["conv"], pads=[padding] * 4),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 9, 8, 3])
    conv = helper.make_tensor_value_info("conv", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [image], [conv], [numpy_helper.from_array(v, k) for k, v in tensors.items()])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString())


means, deviations = st.floats(0, 255, width=32), st.floats(20, 255, width=32)


@few
@given(
    st.lists(means, min_size=3, max_size=3),
    st.lists(deviations, min_size=3, max_size=3),
    st.integers(0, 1),
    arrays.arrays(np.uint8, (2, 9, 8, 3)),
)
def test_one_mean_and_deviation_for_all_channels_computes_the_same_inside_the_border(
    mean: list[float], std: list[float], padding: int, images: np.ndarray
) -> None:
    reference = beginning(mean, std, padding)
    moved = with_scalar_input(onnx.load_model_from_string(reference))
    assert moved.zero_point == round(float(np.float32(mean).astype(np.float64).mean()))

    def run(model: bytes) -> Any:
        [conv] = create_session(model, threads=1).run(["conv"], {"image": images})
        return conv[:, :, padding : conv.shape[2] - padding, padding : conv.shape[3] - padding]

    np.testing.assert_allclose(run(moved.model.SerializeToString()), run(reference), rtol=1e-3, atol=1e-3)
