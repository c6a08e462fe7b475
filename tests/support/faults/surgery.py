"""Change an ONNX graph in one place."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Graph = onnx.ModelProto
HEAD = "network.head.1.weight"


def mutate(model: bytes, fault: Callable[[Graph], None]) -> bytes:
    graph = onnx.load_model_from_string(model)
    fault(graph)
    return bytes(graph.SerializeToString())


def initializer(graph: Graph, name: str) -> TensorProto:
    [found] = [tensor for tensor in graph.graph.initializer if tensor.name == name]
    return found


def rewrite(graph: Graph, name: str, change: Callable[[np.ndarray], Any]) -> None:
    """Change an initializer's numbers."""
    tensor = initializer(graph, name)
    old = numpy_helper.to_array(tensor)
    new = np.empty_like(old)
    new[...] = change(old.copy())
    tensor.CopyFrom(numpy_helper.from_array(new, name))


def only(graph: Graph, kind: str, output: str | None = None) -> onnx.NodeProto:
    [found] = [node for node in graph.graph.node if node.op_type == kind and output in (None, *node.output)]
    return found


def before(graph: Graph, node: onnx.NodeProto, kind: str, **attributes: Any) -> onnx.NodeProto:
    """Put a node of one input in front of another's first input."""
    fresh = f"fault_{len(graph.graph.node)}"
    added = helper.make_node(kind, [node.input[0]], [fresh], name=fresh, **attributes)
    node.input[0] = fresh
    graph.graph.node.insert(list(graph.graph.node).index(node), added)
    return next(n for n in graph.graph.node if n.name == fresh)


def divisor(graph: Graph) -> str:
    """The name of the temperature."""
    return str(only(graph, "Div", "logits").input[1])
