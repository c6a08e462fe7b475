"""The graph contract: what an ONNX file must satisfy before anything runs it.

Nothing may reach outside the file, hang, or surprise a device: one file, no functions, no control flow, standard operators
only, no newer format than the oldest runtime reads, the inputs and outputs of the contract, finite numbers.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeline.export.graph.cam_outputs import shapes_of
from edgeline.serve.artifact.cam_outputs import EMBEDDING, EVIDENCE
from edgeline.serve.errors import ExportError
from edgeline.serve.preprocess import PreprocessSpec

IR_VERSION = 8
"""What ONNX Runtime 1.15 reads; nothing in these graphs needs a newer one."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def check_graph(data: bytes, spec: PreprocessSpec, *, classes: int, opset: int | None = None) -> onnx.ModelProto:
    """Check an ONNX file against the graph contract.

    Args:
        data: the file's bytes.
        spec: the preprocessing its input expects.
        classes: K.
        opset: the newest operator set it may use; any if None.

    Returns:
        The parsed model.

    Raises:
        ExportError: with every problem found.
    """
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError is not importable by a stable name
        raise ExportError(f"the file is not an ONNX model: {' '.join(str(error).split())[:200]}", code="not_onnx") from error
    problems = _structure(model, opset) + _interface(model, spec, classes) + _numbers(model)
    if not problems:
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # ValidationError, InferenceError and others without a common base
            problems.append(f"onnx.checker rejects it: {' '.join(str(error).split())[:300]}")
    if problems:
        raise ExportError("the ONNX file breaks the graph contract: " + "; ".join(problems), code="graph_contract")
    return model


def _structure(model: onnx.ModelProto, opset: int | None) -> list[str]:
    problems = []
    if model.functions:
        problems.append("it defines functions")
    if model.training_info:
        problems.append("it contains training graphs")
    # Control flow is what holds a graph of its own: If, Loop, Scan, SequenceMap, and whatever comes after them.
    if found := {node.op_type for node in model.graph.node if any(a.HasField("g") or a.graphs for a in node.attribute)}:
        problems.append(f"it has control flow ({', '.join(sorted(found))})")
    if found := {node.domain for node in model.graph.node} - {"", "ai.onnx"}:
        problems.append(f"it uses operators outside the standard ({', '.join(sorted(found))})")
    if found := {entry.domain for entry in model.opset_import} - {"", "ai.onnx"}:
        problems.append(f"it imports operator domains that older runtimes may not support ({', '.join(sorted(found))})")
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if opset is not None and (not versions or max(versions) > opset):
        problems.append(f"it uses operator set {versions}, at most {opset} is allowed")
    if model.ir_version > IR_VERSION:
        problems.append(f"its IR version is {model.ir_version}, at most {IR_VERSION} is allowed")
    if elsewhere := [name for name, tensor in tensors_of(model) if is_external(tensor)]:
        problems.append(f"weights are in another file: {', '.join(elsewhere[:5])}")
    return problems


def _interface(model: onnx.ModelProto, spec: PreprocessSpec, classes: int) -> list[str]:
    expected = {
        "image": (TensorProto.UINT8, (spec.height, spec.width, 3)),
        "probabilities": (TensorProto.FLOAT, (classes,)),
        "logits": (TensorProto.FLOAT, (classes,)),
    }
    shapes = shapes_of(model)
    if shapes:
        expected |= {name: (TensorProto.FLOAT, shapes.get(name, ())) for name in (EVIDENCE, EMBEDDING)}
    initializers = {tensor.name for tensor in model.graph.initializer}
    values = [v for v in (*model.graph.input, *model.graph.output) if v.name not in initializers]
    problems = []
    if {value.name for value in values} != expected.keys():
        problems.append(f"its inputs and outputs are {sorted(v.name for v in values)}, expected {sorted(expected)}")
    for value in values:
        if value.name not in expected:
            continue
        kind, shape = expected[value.name]
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        if tensor.elem_type != kind or tuple(d.dim_value for d in dims[1:]) != shape:
            shown = ", ".join(str(d.dim_value or d.dim_param or "?") for d in dims)
            found = f"{TensorProto.DataType.Name(tensor.elem_type)} [{shown}]"
            wanted = f"{TensorProto.DataType.Name(kind)} [{', '.join(['batch', *map(str, shape)])}]"
            problems.append(f"{value.name} is {found}, expected {wanted}")
        elif not dims[0].dim_param:
            fixed = f"has the fixed batch {dims[0].dim_value}" if dims[0].HasField("dim_value") else "does not name its batch"
            problems.append(f"{value.name} {fixed}, it must be free")
    if shapes and not _add_up(shapes, classes):
        problems.append(
            f"its evidence and embedding have the shapes {shapes} after the batch, expected ({classes}, h, w) and (features,)"
        )
    return problems


def _add_up(shapes: dict[str, tuple[int, ...]], classes: int) -> bool:
    evidence, embedding = shapes.get(EVIDENCE, ()), shapes.get(EMBEDDING, ())
    return len(evidence) == 3 and evidence[0] == classes and len(embedding) == 1 and min(*evidence, *embedding) > 0


def _numbers(model: onnx.ModelProto) -> list[str]:
    broken, unreadable = [], []
    for name, tensor in tensors_of(model):
        if is_external(tensor) or tensor.data_type not in FLOATS:
            continue
        try:
            finite = np.isfinite(numpy_helper.to_array(tensor)).all()
        except (ValueError, TypeError):  # fewer or more bytes than its shape needs
            unreadable.append(name)
        else:
            broken += [] if finite else [name]
    broken += [node.name for node in model.graph.node for a in node.attribute if not np.isfinite([a.f, *a.floats]).all()]
    return [
        f"{what}: {', '.join(found[:5])}"
        for what, found in (("weights that are not finite", broken), ("weights of another size than their shape", unreadable))
        if found
    ]


def tensors_of(model: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor in the file, including branches, loops and functions, with a name to find it by."""
    yield from _tensors_of_graph(model.graph)
    yield from _tensors_of_nodes(node for function in model.functions for node in function.node)


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's numbers are in another file."""
    return bool(tensor.external_data) or bool(tensor.data_location == TensorProto.EXTERNAL)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for sparse in graph.sparse_initializer:
        yield from ((sparse.values.name, tensor) for tensor in (sparse.values, sparse.indices))
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, TensorProto]]:
    for node in nodes:
        for a in node.attribute:
            sparse_tensors = (part for s in (a.sparse_tensor, *a.sparse_tensors) for part in (s.values, s.indices))
            yield from ((node.name, tensor) for tensor in (a.t, *a.tensors, *sparse_tensors))
            for inner in (a.g, *a.graphs):
                yield from _tensors_of_graph(inner)
