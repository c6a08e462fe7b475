"""Check an int8 file's quantization parameters: do they agree with each other and with the reference?

Similarity of outputs does not reveal everything: a zero point that is off by one costs only a few decibels, and a doubled scale
looks like poor calibration. What is checked here is true of every recipe, so a violation is a fault that can be named:
- a tensor is read with the scale and zero point that it was written with, and every DequantizeLinear has them;
- if the quantizer fused a ReLU or a Clip, the tensor's range replaces it and must not exceed its bounds;
- int8 weights are symmetric and close to the reference's; a bias is in steps of input scale times weight scale;
- the image's bytes have the scale and zero point of the reference's normalization;
- temperature and softmax are computed in float;
- what the file leaves float stays float in ONNX Runtime's optimized graph.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from edgeline.export.parity.similarity import sqnr_db
from edgeline.export.quantization.static_int8 import INTEGER_OPERATORS, optimized_graph, with_scalar_input
from edgeline.export.tolerances import MIN_WEIGHTS_DB, RANGE_TOLERANCE, SCALE_TOLERANCE
from edgeline.serve.errors import ExportError


@dataclass(frozen=True, slots=True)
class _File:
    """An int8 file, with its tensors and producers by name."""

    nodes: list[NodeProto]
    tensors: Mapping[str, np.ndarray]
    producers: Mapping[str, NodeProto]

    def parameters(self, node: NodeProto) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point of a QuantizeLinear or DequantizeLinear."""
        scale, zero_point = (self.tensors[name] for name in node.input[1:3])
        return scale, zero_point


def check_quantized(model: bytes, reference: bytes) -> None:
    """Check an int8 file's quantization parameters.

    Args:
        model: the int8 file's bytes, which passed `export.graph.contract.check_graph`.
        reference: the float32 file's, from which it was made.

    Raises:
        ExportError: with every problem found.
    """
    ready = with_scalar_input(onnx.load_model_from_string(reference))
    file = _parse(onnx.load_model_from_string(model))
    if problems := _missing_parameters(file):  # nothing else can be read then
        raise ExportError("the int8 file's quantization is wrong: " + "; ".join(problems), code="quantization")
    problems = [
        *_image_bytes(file, ready.scale, ready.zero_point),
        *_float_end(file),
        *_pairs(file),
        *_ranges(file, _parse(ready.model)),
        *_weights(file, _parse(ready.model)),
        *_biases(file),
    ]
    problems += [
        f"the runtime quantizes {name}, which the file leaves float; use the session settings of edgeline.serve.runtime"
        for name in requantized(model)
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ExportError(f"the int8 file's quantization is wrong: {shown}; make the variants again", code="quantization")


def requantized(model: bytes) -> list[str]:
    """Weights that are float in the file, of layers that the runtime computes in integers anyway."""
    file = _parse(onnx.load_model_from_string(model))
    left = [n for n in file.nodes if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in file.tensors]
    if not left:
        return []
    # The runtime names the weights that it rounds itself after the node: `node_Conv_818_weight_q`.
    read = [name for n in optimized_graph(model).graph.node if n.op_type in INTEGER_OPERATORS for name in n.input]
    return sorted(node.input[1] for node in left if any(name.startswith(f"{node.name}_weight") for name in read))


def _parse(model: ModelProto) -> _File:
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return _File(list(model.graph.node), tensors, {output: node for node in model.graph.node for output in node.output})


def _missing_parameters(file: _File) -> list[str]:
    return [
        f"{node.op_type} {node.name} has no {what}"
        for node in _quantization_nodes(file)
        for what, name in zip(("scale", "zero point"), [*node.input[1:3], "", ""], strict=False)
        if name not in file.tensors
    ]


def _quantization_nodes(file: _File) -> list[NodeProto]:
    return [node for node in file.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]


def _pairs(file: _File) -> Iterator[str]:
    for node in _quantization_nodes(file):
        writer = file.producers.get(node.input[0])
        if node.op_type != "DequantizeLinear" or writer is None or writer.op_type != "QuantizeLinear":
            continue
        for what, written, read in zip(("scale", "zero point"), file.parameters(writer), file.parameters(node), strict=True):
            if written.dtype != read.dtype or not np.array_equal(written, read):
                yield f"{node.name} reads {writer.input[0]} with {what} {_shown(read)}, it was written with {_shown(written)}"


def _ranges(file: _File, reference: _File) -> Iterator[str]:
    """Problems of the tensors that a fused activation produced in the reference."""
    for node in file.nodes:
        if node.op_type != "QuantizeLinear":
            continue
        activation, writer = reference.producers.get(node.input[0]), file.producers.get(node.input[0])
        if activation is None or activation.op_type not in ("Relu", "Clip") or writer is None:
            continue
        if writer.op_type == activation.op_type:
            continue  # it was not fused
        scale, zero_point = file.parameters(node)
        levels = np.iinfo(zero_point.dtype)
        low, high = ((level - int(zero_point)) * float(scale) for level in (levels.min, levels.max))
        least, most = _bounds(activation, reference)
        if low < least - SCALE_TOLERANCE * float(scale) or high > most * (1 + RANGE_TOLERANCE):
            yield (
                f"{node.input[0]} is quantized from {low:.4g} to {high:.4g} (scale {float(scale):.4g}, zero point "
                f"{int(zero_point)}), its {activation.op_type} is bounded by {least:g} and {most:g}"
            )


def _bounds(activation: NodeProto, file: _File) -> tuple[float, float]:
    if activation.op_type == "Relu":
        return 0.0, float("inf")
    given = [float(file.tensors[name]) if name in file.tensors else None for name in (*activation.input[1:3], "", "")]
    return (-np.inf if given[0] is None else given[0]), (np.inf if given[1] is None else given[1])


def _weights(file: _File, reference: _File) -> Iterator[str]:
    for node in file.nodes:
        if node.op_type != "DequantizeLinear" or node.input[0] not in file.tensors:
            continue
        stored = file.tensors[node.input[0]]
        name = node.input[0].removesuffix("_quantized")
        if stored.dtype not in (np.int8, np.uint8) or name not in reference.tensors:
            continue
        scale, zero_point = file.parameters(node)
        if stored.dtype == np.int8 and np.any(zero_point):
            yield f"{name} has zero point {_shown(zero_point)}, int8 weights are symmetric and have 0"
            continue
        expected = reference.tensors[name].astype(np.float64)
        found = _real(stored, scale, zero_point, _axis(node))
        if (ratio := sqnr_db(expected, found)) < MIN_WEIGHTS_DB:
            cause = _probable_cause(expected, found, stored, scale, _axis(node))
            yield f"{name} is not the reference's (SQNR {ratio:.0f} dB): {cause}"


def _probable_cause(expected: np.ndarray, found: np.ndarray, stored: np.ndarray, scale: np.ndarray, axis: int) -> str:
    """Whether weights that differ have another scale, or are other weights."""
    channels = np.moveaxis(expected, axis, 0).reshape(expected.shape[axis], -1) if scale.ndim else expected.reshape(1, -1)
    integers = np.moveaxis(stored, axis, 0).reshape(channels.shape).astype(np.float64)
    fitting = (channels * integers).sum(1) / np.maximum(np.square(integers).sum(1), 1)
    if sqnr_db(channels, integers * fitting[:, None]) < MIN_WEIGHTS_DB:
        return "they are other weights, or in another order"
    given = np.broadcast_to(scale, fitting.shape)
    if np.allclose(np.sort(given), np.sort(fitting), rtol=0.05):
        return "their scales are another channel's each"
    return f"their scale is {_shown(given / np.where(fitting, fitting, given), digits=3)} times what fits"


def _biases(file: _File) -> Iterator[str]:
    for node in file.nodes:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        parts = [file.producers.get(name) for name in node.input[:3]]
        if any(part is None or part.op_type != "DequantizeLinear" for part in parts):
            continue
        of_input, of_weights, of_bias = (file.parameters(part)[0] for part in parts if part is not None)
        expected = np.broadcast_to(of_input * of_weights, of_bias.shape) if of_bias.ndim else of_input * of_weights
        if not np.allclose(of_bias, expected, rtol=SCALE_TOLERANCE, atol=0):
            worst = float(np.ravel(of_bias / expected)[np.argmax(np.abs(np.log(np.ravel(of_bias / expected))))])
            yield f"the bias of {node.name} ({node.input[2]}) has {worst:.3g} times the scale of its input times its weights"


def _image_bytes(file: _File, scale: float, zero_point: int) -> Iterator[str]:
    """Problems of the tensor of the image's own bytes, if the file quantizes them directly."""
    for node in file.nodes:
        writer = file.producers.get(node.input[0])
        if node.op_type == "DequantizeLinear" and writer is not None and "image" in writer.input:
            found_scale, found_zero_point = file.parameters(node)
            if int(found_zero_point) != zero_point or not np.isclose(found_scale, scale, rtol=SCALE_TOLERANCE):
                yield (
                    f"the image's bytes are read with zero point {int(found_zero_point)} and scale {float(found_scale):.4g}, "
                    f"the normalization has mean {zero_point} and 1 / std {scale:.4g}"
                )


def _float_end(file: _File) -> Iterator[str]:
    readers = {name: node for node in file.nodes for name in node.input}
    name: str | None = "probabilities"
    while name is not None:
        node = file.producers.get(name)
        for kind in (node, readers.get(name)):
            if kind is not None and kind.op_type in ("QuantizeLinear", "DequantizeLinear"):
                yield f"{name} is quantized ({kind.name}); temperature and softmax stay float"
                return
        name = node.input[0] if node is not None and node.op_type in ("Softmax", "Div", "Identity") else None


def _real(stored: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int) -> np.ndarray:
    shape = [1] * stored.ndim
    if scale.ndim and scale.size > 1:
        shape[axis] = -1
    return np.asarray((stored.astype(np.float64) - zero_point.reshape(shape)) * scale.reshape(shape))


def _axis(node: NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 1)


def _shown(values: np.ndarray, digits: int = 4) -> str:
    low, high = (f"{float(value):.{digits}g}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"
