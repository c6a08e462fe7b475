"""Faults of an int8 file's scales, zero points and integers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.faults.surgery import Graph, initializer, only, rewrite

BLOCK = "network.backbone.blocks.4.0"
LINEAR = "getitem_141"
"""A convolution's output that no activation follows."""


def read_otherwise(graph: Graph, parameter: int, change: Callable[[np.ndarray], Any]) -> None:
    """Replace the scale (1) or zero point (2) of one DequantizeLinear."""
    [node] = [n for n in graph.graph.node if n.name == f"{LINEAR}_DequantizeLinear"]
    old = numpy_helper.to_array(initializer(graph, node.input[parameter]))
    graph.graph.initializer.append(numpy_helper.from_array(np.asarray(change(old)).astype(old.dtype), "fault"))
    node.input[parameter] = "fault"


def an_activations_zero_point_off_by_one(graph: Graph) -> None:
    rewrite(graph, "hardtanh_5_zero_point", lambda v: v + 1)


def an_activations_scale_doubled(graph: Graph) -> None:
    rewrite(graph, "hardtanh_5_scale", lambda v: 2 * v)


def a_zero_point_that_differs_between_write_and_read(graph: Graph) -> None:
    read_otherwise(graph, 2, lambda v: v + 1)


def a_scale_that_differs_between_write_and_read(graph: Graph) -> None:
    read_otherwise(graph, 1, lambda v: 1.1 * v)


def a_convolutions_output_without_its_scale(graph: Graph) -> None:
    [node] = [n for n in graph.graph.node if n.name == f"{LINEAR}_DequantizeLinear"]
    node.input[1] = ""


def a_scale_that_is_not_a_number(graph: Graph) -> None:
    rewrite(graph, "hardtanh_5_scale", lambda v: v * np.nan)


def per_channel_scales_permuted(graph: Graph) -> None:
    rewrite(graph, f"{BLOCK}.conv_dw.weight_scale", lambda v: np.roll(v, 7))


def weights_scale_doubled(graph: Graph) -> None:
    rewrite(graph, f"{BLOCK}.conv_pw.weight_scale", lambda v: 2 * v)


def the_scale_of_another_layer(graph: Graph) -> None:
    other = numpy_helper.to_array(initializer(graph, "network.backbone.blocks.4.2.conv_pw.weight_scale"))
    rewrite(graph, "network.backbone.blocks.4.1.conv_pw.weight_scale", lambda _: other)


def integers_rolled(graph: Graph) -> None:
    rewrite(graph, f"{BLOCK}.conv_pw.weight_quantized", lambda v: np.roll(v, 1, axis=0))


def integers_of_the_head_rolled(graph: Graph) -> None:
    rewrite(graph, "network.head.1.weight_quantized", lambda v: np.roll(v, 1, axis=int(v.shape[0] != 3)))


def integers_of_a_layer_all_zero(graph: Graph) -> None:
    rewrite(graph, "network.backbone.conv_head.weight_quantized", np.zeros_like)


def asymmetric_weights(graph: Graph) -> None:
    rewrite(graph, f"{BLOCK}.conv_dw.weight_zero_point", lambda v: v + 3)


def the_scale_of_a_bias_doubled(graph: Graph) -> None:
    rewrite(graph, f"{BLOCK}.conv_dw.weight_bias_quantized_scale", lambda v: 2 * v)


def biases_of_other_channels(graph: Graph) -> None:
    """The scales still agree, so only running the file reveals this fault."""
    rewrite(graph, f"{BLOCK}.conv_dw.weight_bias_quantized", lambda v: np.roll(v, 7))


def the_input_zero_point_128_for_127(graph: Graph) -> None:
    rewrite(graph, "div_zero_point", lambda v: v + 1)


def the_input_scale_of_other_weights(graph: Graph) -> None:
    rewrite(graph, "div_scale", lambda v: v * 128 / 57.63)


def softmax_quantized(graph: Graph) -> None:
    softmax = only(graph, "Softmax")
    for name, value in (("fault_scale", np.float32(0.1)), ("fault_zero_point", np.uint8(128))):
        graph.graph.initializer.append(numpy_helper.from_array(value, name))
    position = list(graph.graph.node).index(softmax)
    parameters = ["fault_scale", "fault_zero_point"]
    for kind, given, made in (("Dequantize", "fault_level", "fault_real"), ("Quantize", softmax.input[0], "fault_level")):
        node = helper.make_node(f"{kind}Linear", [given, *parameters], [made], f"fault_{kind}")
        graph.graph.node.insert(position, node)
    only(graph, "Softmax").input[0] = "fault_real"


def leave_float(graph: Graph, reference: bytes) -> None:
    """Not a fault, but the preparation of one: a layer that is left out of quantization, as by `Recipe.exclude`."""
    name = f"{BLOCK}.conv_dw.weight"
    source = onnx.load_model_from_string(reference)
    [conv] = [n for n in graph.graph.node if f"{name}_DequantizeLinear_Output" in n.input]
    for index, tensor in ((1, name), (2, f"{name}_bias")):
        [reader] = [n for n in graph.graph.node if conv.input[index] in n.output]
        graph.graph.node.remove(reader)
        graph.graph.initializer.append(initializer(source, tensor))
        conv.input[index] = tensor
