"""Two more outputs of an ONNX file: `evidence`, the class activation maps, and `embedding`, the features of the classifier.

A network that averages its last map over all positions and then applies one linear layer may as well apply the layer first and
average afterwards. Before averaging it has the contribution of each position (class activation mapping: Zhou et al. 2016,
"Learning Deep Features for Discriminative Localization"):

    logits[n, k] == evidence[n, k].mean()

up to rounding, so a heatmap can be checked: its mean is the logit. `embedding` is the averaged map; drift is measured by its
distance from the training images'.

The outputs are added to a finished file and computed from its own graph, so nothing else in it changes. ONNX Runtime computes
every output whether it is requested or not (its `only_execute_path_to_fetches` has an effect in training builds only): that is
K * C * h * w multiply-adds, little for a few classes.

Shapes: N images, C channels of the last map, h x w its positions, K classes, H x W the model's input.
"""

import copy
from collections.abc import Iterator

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from edgeline.serve.artifact.cam_outputs import EMBEDDING, EVIDENCE
from edgeline.serve.errors import ConfigError

PREFIX = "explain."
"""Of the names of everything that is added, by which it can be removed again."""
PASSED = ("Div", "Gemm", "Reshape", "Flatten", "Squeeze", "Identity", "QuantizeLinear", "DequantizeLinear")
"""Operators between the averaged map and the logits: one linear layer, and those that change no value but its scale."""


def add_outputs(model: ModelProto, height: int, width: int) -> ModelProto:
    """Add the two outputs to a model under the graph contract, float or quantized.

    Args:
        model: left as it is.
        height: H.
        width: W.

    Raises:
        ConfigError: its logits are not one linear layer of an averaged map.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    path = list(_from_the_logits(producers))
    pooling, [linear] = path[-1], [node for node in path if node.op_type == "Gemm"]
    temperature = next((node for node in path if node.op_type == "Div"), None)
    size = helper.make_tensor(PREFIX + "size", TensorProto.INT64, [4], [0, 0, 1, 1])
    graph.initializer.append(size)
    # A quantized tensor is read a second time, by a separate DequantizeLinear: with two readers the first would no longer
    # be merged into the next integer operator.
    map_NChw, features_NC, weight_KC, *bias_K = (
        _read_again(graph, producers, name) for name in (pooling.input[0], *linear.input)
    )
    kernel, summed = PREFIX + "kernel", PREFIX + "sums"
    added = [
        helper.make_node("Reshape", [weight_KC, size.name], [kernel], PREFIX + "reshape"),
        helper.make_node("Conv", [map_NChw, kernel, *bias_K], [summed], PREFIX + "conv", kernel_shape=[1, 1]),
        helper.make_node("Identity", [features_NC], [EMBEDDING], PREFIX + "embedding"),
    ]
    if temperature is None:
        added.append(helper.make_node("Identity", [summed], [EVIDENCE], PREFIX + "evidence"))
    else:
        added.append(helper.make_node("Div", [summed, temperature.input[1]], [EVIDENCE], PREFIX + "evidence"))
    graph.node.extend(added)
    attributes = {each.name: helper.get_attribute_value(each) for each in linear.attribute}
    plainly = {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0}
    if plainly | {"transB": 0} | attributes != plainly:
        raise unfit(f"its classifier's Gemm has the attributes {attributes}")
    shapes = _shapes(model, height, width)
    if len(shapes.get(EVIDENCE, ())) == 3 and shapes[EVIDENCE][1:] == (1, 1):
        raise unfit(f"at {height} x {width} pixels its last map has only one position")
    for name, shape in shapes.items():
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]))
    return model


def remove_outputs(model: ModelProto) -> ModelProto:
    """Remove the two outputs; a model without them stays as it is."""
    model = copy.deepcopy(model)
    graph = model.graph
    for outputs in [value for value in graph.output if value.name in (EVIDENCE, EMBEDDING)]:
        graph.output.remove(outputs)
    for node in [node for node in graph.node if node.name.startswith(PREFIX)]:
        graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name.startswith(PREFIX)]:
        graph.initializer.remove(tensor)
    return model


def plain(model: bytes) -> bytes:
    """A file's bytes without the two outputs; unchanged if it has none."""
    parsed = onnx.load_model_from_string(model)
    return bytes(remove_outputs(parsed).SerializeToString(deterministic=True)) if shapes_of(parsed) else model


def shapes_of(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes, without the batch, of those of the two outputs that a model has: (K, h, w) and (C,)."""
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])
        for value in model.graph.output
        if value.name in (EVIDENCE, EMBEDDING)
    }


def _from_the_logits(producers: dict[str, NodeProto]) -> Iterator[NodeProto]:
    """The nodes from the logits back to the averaging, which is the last."""
    name, linear = "logits", 0
    while (node := producers.get(name)) is not None:
        linear += node.op_type == "Gemm"
        if node.op_type == "GlobalAveragePool" and linear == 1:
            yield node
            return
        if node.op_type not in PASSED or linear > 1:
            break
        yield node
        name = node.input[0]
    seen = "nothing" if node is None else f"another {node.op_type}"
    raise unfit(f"before its classifier it has {seen}, where the averaging of the last map is expected")


def unfit(why: str) -> ConfigError:
    """The error for a network without class activation maps."""
    return ConfigError(
        f"export.explain needs a network whose classifier reads its averaged last map, as in EfficientNet, MobileNetV2 and "
        f"ResNet: {why}; set export.explain = false, or choose another model",
        code="not_explainable",
    )


def _read_again(graph: onnx.GraphProto, producers: dict[str, NodeProto], name: str) -> str:
    node = producers.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return name
    again = copy.deepcopy(node)
    again.name = again.output[0] = f"{PREFIX}{name}"
    # Weights are copied: on x86 without VNNI, ONNX Runtime makes unsigned ones of them, and fails where two nodes share them.
    for position, constant in enumerate(node.input):
        for tensor in [tensor for tensor in graph.initializer if tensor.name == constant]:
            copied = graph.initializer.add()
            copied.CopyFrom(tensor)
            copied.name = again.input[position] = f"{PREFIX}{constant}"
    graph.node.append(again)
    return str(again.output[0])


def _shapes(model: ModelProto, height: int, width: int) -> dict[str, tuple[int, ...]]:
    fixed = copy.deepcopy(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del fixed.graph.value_info[:]
    fixed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (EVIDENCE, EMBEDDING))
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    return shapes_of(inferred)
