"""Attach a head to the graph of a backbone that was exported before: the same bytes as exporting both, in milliseconds.

With a frozen backbone, three tensors of a run's file are new: the weight and the bias of the last layer, and the temperature.
A template is an exported graph, addressed by the digests of the backbone and of the code that exports it. Its digest is
checked when it is read, and the finished file is checked as any other.

Where the result could differ from an export, there is none, and the caller exports: a head whose tensor equals another of the
graph would be merged with it, and a temperature of 1 would be left out.

Shapes: D features, K classes.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.frozen_features import backbone_digest
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.content_cache import ContentCache, sealed, unsealed
from edgeline.pipeline.runs.step import step_key

PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnx-ir", "numpy")
WEIGHT, BIAS = "network.head.1.weight", "network.head.1.bias"


class Templates:
    """Exported graphs of one network's backbone in a cache."""

    def __init__(self, cache: ContentCache, network: Network, example: tuple[int, ...], opset: int) -> None:
        """Address the graph of a network.

        Args:
            cache: of graphs.
            network: its head does not matter.
            example: shape of the pixels that it is traced with.
            opset: operator set of the graph.
        """
        inputs = {"backbone": backbone_digest(network), "example": example, "opset": opset}
        self.cache, self.key = cache, f"graph:{step_key(inputs, code_digest('edgeline.export.graph.to_onnx'), PACKAGES)}"

    def find(self, network: Network, temperature: float) -> ModelProto | None:
        """The graph with this network's head; None if it must be exported."""
        for _, row in self.cache.get([self.key]):
            if (data := unsealed(row)) is not None:
                return attach(onnx.load_model_from_string(data), network, temperature)
        return None

    def keep(self, model: ModelProto, network: Network, temperature: float) -> None:
        """Store an exported graph, if a head can be attached to it."""
        data = model.SerializeToString(deterministic=True)
        attached = attach(onnx.load_model_from_string(data), network, temperature)
        if attached is not None and attached.SerializeToString(deterministic=True) == data:
            self.cache.put([(self.key, sealed(data))])


def attach(template: ModelProto, network: Network, temperature: float) -> ModelProto | None:
    """Put a network's head and a temperature into an exported graph, in place.

    Returns:
        The graph; None where the exporter might have written another one.
    """
    graph = template.graph
    tail = _tail(graph.node)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    if tail is None or not {WEIGHT, BIAS, tail[1].input[1]} <= tensors.keys():
        return None
    linear, division = tail
    head = {
        WEIGHT: network.classifier.weight.detach().cpu().numpy(),
        BIAS: network.classifier.bias.detach().cpu().numpy(),
        division.input[1]: np.array(temperature, np.float32),
    }
    others = {_content(tensor) for tensor in graph.initializer if tensor.name not in head}
    for name, value in head.items():
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if _content(tensor) in others or np.array_equal(value, np.array(1, np.float32)):
            return None
        tensors[name].CopyFrom(tensor)
    axis_K = {WEIGHT: 0, BIAS: 0, linear.output[0]: 1, "logits": 1, "probabilities": 1}
    for value in (*graph.value_info, *graph.output):
        if value.name in axis_K:
            value.type.tensor_type.shape.dim[axis_K[value.name]].dim_value = network.classifier.out_features
    return template


def _tail(nodes: Sequence[NodeProto]) -> tuple[NodeProto, NodeProto] | None:
    """The last layer and the division by the temperature, if the graph ends in them and a softmax."""
    last = list(nodes)[-3:]
    if [node.op_type for node in last] != ["Gemm", "Div", "Softmax"]:
        return None
    linear, division, softmax = last
    if list(linear.input[1:]) != [WEIGHT, BIAS] or division.input[0] != linear.output[0] or softmax.input[0] != "logits":
        return None
    # Nothing else reads the three tensors.
    own = (WEIGHT, BIAS, division.input[1])
    readers = [name for node in nodes for name in node.input if name in own]
    return (linear, division) if sorted(readers) == sorted(own) else None


def _content(tensor: TensorProto) -> tuple[int, tuple[int, ...], bytes]:
    return tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes()
