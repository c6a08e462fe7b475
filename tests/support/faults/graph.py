"""Faults of the reference's operators, independent of its weights."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.support.faults.surgery import HEAD, Graph, before, divisor, initializer, only, rewrite


def rows_for_columns(graph: Graph) -> None:
    only(graph, "Transpose").attribute[0].CopyFrom(helper.make_attribute("perm", [0, 3, 2, 1]))


def symmetric_padding(graph: Graph) -> None:
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "pads" and attribute.ints[0] != attribute.ints[2]:
                attribute.ints[:2] = attribute.ints[2:]


def activations_without_their_upper_bound(graph: Graph) -> None:
    name = next(node.input[2] for node in graph.graph.node if node.op_type == "Clip")
    rewrite(graph, name, lambda _: 1e4)


def maximum_for_average(graph: Graph) -> None:
    only(graph, "GlobalAveragePool").op_type = "GlobalMaxPool"


def batch_norm_in_training_mode(graph: Graph) -> None:
    pool = only(graph, "GlobalAveragePool")
    norm = before(graph, pool, "BatchNormalization", training_mode=1)
    channels = numpy_helper.to_array(initializer(graph, HEAD)).shape[1]
    for name, value in (("scale", 1.0), ("shift", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        graph.graph.initializer.append(numpy_helper.from_array(np.full(channels, value, np.float32), f"fault_{name}"))
        norm.input.append(f"fault_{name}")
    norm.output.extend(["fault_mean_out", "fault_var_out"])


def outputs_that_depend_on_the_batch(graph: Graph) -> None:
    """Each logit is pulled towards the mean of the batch, which a batch of one does not show."""
    division = only(graph, "Div", "logits")
    logits = division.input[0]
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "fault_axis"))
    graph.graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "fault_share"))
    added = [
        helper.make_node("ReduceMean", [logits, "fault_axis"], ["fault_mean"], keepdims=1),
        helper.make_node("Sub", [logits, "fault_mean"], ["fault_apart"]),
        helper.make_node("Mul", ["fault_apart", "fault_share"], ["fault_drawn"]),
        helper.make_node("Sub", [logits, "fault_drawn"], ["fault_logits"]),
    ]
    for node in added:
        graph.graph.node.insert(list(graph.graph.node).index(division), node)
    only(graph, "Div", "logits").input[0] = "fault_logits"


def no_softmax(graph: Graph) -> None:
    softmax = only(graph, "Softmax")
    softmax.CopyFrom(helper.make_node("Identity", softmax.input, softmax.output))


def softmax_over_the_batch(graph: Graph) -> None:
    only(graph, "Softmax").attribute[0].CopyFrom(helper.make_attribute("axis", 0))


def outputs_swapped(graph: Graph) -> None:
    names = {"logits": "probabilities", "probabilities": "logits"}
    for node in graph.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def temperature_ignored(graph: Graph) -> None:
    rewrite(graph, divisor(graph), np.ones_like)


def temperature_ignored_in_the_logits_only(graph: Graph) -> None:
    division, softmax = only(graph, "Div", "logits"), only(graph, "Softmax")
    division.output[0] = softmax.input[0] = "fault_scaled"
    graph.graph.node.append(helper.make_node("Identity", [division.input[0]], ["logits"]))


def probabilities_rounded_to_half_precision(graph: Graph) -> None:
    softmax = only(graph, "Softmax")
    softmax.output[0] = "exact"
    graph.graph.node.append(helper.make_node("Cast", ["exact"], ["half"], to=TensorProto.FLOAT16))
    graph.graph.node.append(helper.make_node("Cast", ["half"], ["probabilities"], to=TensorProto.FLOAT))


def the_batch_fixed(graph: Graph) -> None:
    for value in [*graph.graph.input, *graph.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1


def a_batch_that_the_exporter_froze_inside(graph: Graph) -> None:
    rewrite(graph, only(graph, "Reshape").input[1], lambda shape: np.array([1, shape[1]]))
