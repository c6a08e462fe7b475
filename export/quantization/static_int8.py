"""Quantize the reference ONNX file to int8: weights and activations, statically, as QuantizeLinear and DequantizeLinear pairs.

Three things differ from what ONNX Runtime's quantizer does by default, each for a measured reason (ADR 0010):
- the image's own bytes are the first quantized tensor, so nothing is computed in float before the first convolution;
- the last layer returns float logits and the softmax stays float, so probabilities keep their full resolution;
- a layer that is excluded stays float on the device too (`serve.runtime.session.SETTINGS`).

Shapes: N images, C channels, K classes, H x W the model's input.
"""

import copy
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from edgeline.export.graph.ort_tools import suppress_output
from edgeline.export.quantization.fast_weights import fast_quantizer
from edgeline.serve.errors import ExportError
from edgeline.serve.runtime.session import load_onnxruntime, session_options

FLOAT_OPERATORS = ("Cast", "Sub", "Div", "Transpose", "Softmax")
"""Operators that stay float: the normalization, which the bytes replace, and the temperature and softmax at the end."""
INTEGER_OPERATORS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "ConvInteger")
HIGHEST_BYTE = 255
PAIR_LIMIT = 32767
"""Largest sum of two products on x86 without VNNI: `vpmaddubsw` adds them in 16 bits and saturates."""

Ranges = Any
"""`onnxruntime.quantization.calibrate.TensorsData`: the lowest and highest value of every tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One way to quantize."""

    activations: Literal["uint8", "int8"] = "uint8"
    weights: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True
    ranges: Literal["minmax", "average", "percentile", "mse"] = "minmax"
    """How a tensor's range is computed from the calibration images."""
    reduce_range: bool = False
    """Weights in 7 bits: two products then always fit into 16 bits, so every x86 computes the same."""
    correct_bias: bool = False
    """Subtract from a channel's bias what rounding the weights adds to its mean (Nagel et al. 2019, "Data-Free Quantization
    Through Weight Equalization and Bias Correction", section 4.2, with the inputs' measured means)."""
    exclude: tuple[str, ...] = ()
    """Nodes that stay float."""
    tuned: int = 0
    """Epochs of fine-tuning under this rounding (`export.quantization.qat`)."""

    @property
    def name(self) -> str:
        """For tables."""
        kinds = {"uint8": "U8", "int8": "S8"}
        parts = [kinds[self.activations] + kinds[self.weights], "channel" if self.per_channel else "tensor", self.ranges]
        parts += ["7 bits"] * self.reduce_range + ["bias"] * self.correct_bias
        parts += [f"{len(self.exclude)} float"] * bool(self.exclude)
        parts += [f"tuned {self.tuned}"] * bool(self.tuned)
        return " ".join(parts)

    @property
    def kinds(self) -> tuple[str, str, bool]:
        """The types of activations and weights, and whether each channel has its own scale."""
        return self.activations, self.weights, self.per_channel

    @property
    def kernels(self) -> tuple[str, str, bool, tuple[str, ...]]:
        """What its speed depends on; everything else only changes values in the file."""
        return *self.kinds, self.exclude


@dataclass(frozen=True, slots=True)
class Quantizable:
    """The reference prepared for quantization: shapes inferred, normalization by one scale and one integer zero point."""

    model: ModelProto
    pixels: str
    """Name of the tensor of normalized pixels."""
    scale: float
    zero_point: int
    """normalized = (byte - zero_point) * scale"""


def make_ready(reference: bytes) -> Quantizable:
    """Prepare the reference for quantization.

    Raises:
        ExportError: its first layer is not a normalization and a convolution, so its bytes cannot be quantized directly.
    """
    load_onnxruntime()  # before the quantizer imports it: its telemetry must be off by then
    from onnxruntime.quantization import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, suppress_output():
        source, ready = Path(folder, "reference.onnx"), Path(folder, "ready.onnx")
        source.write_bytes(reference)
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        model = onnx.load(ready)
    return with_scalar_input(model)


def with_scalar_input(model: ModelProto) -> Quantizable:
    """Give the normalization one mean and one standard deviation for all channels.

    Where it has three of each, the differences move into the weights and the bias of the first convolution. At the border,
    where padding stands for a pixel of the mean color, that is off by the difference of the means, which the measured
    similarity includes.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    conv = next((node for node in model.graph.node if node.op_type == "Conv"), None)
    div = producers.get(conv.input[0]) if conv is not None else None
    sub = producers.get(div.input[0]) if div is not None else None
    if conv is None or div is None or sub is None or (div.op_type, sub.op_type) != ("Div", "Sub"):
        raise ExportError(
            "int8 needs a network that begins with the normalization and a convolution; leave onnx-int8 out of export.variants"
        )
    mean_C, std_C = (numpy_helper.to_array(weights[node.input[1]]).astype(np.float64).ravel() for node in (sub, div))
    mean, std = round(float(mean_C.mean())), float(std_C.mean())
    if np.any(mean_C != mean) or np.ptp(std_C) > 0:
        if len(conv.input) < 3:
            raise ExportError("int8 needs a first convolution with a bias; leave onnx-int8 out of export.variants")
        kernel_OCHW, bias_O = (numpy_helper.to_array(weights[name]).astype(np.float64) for name in conv.input[1:3])
        kernel_OCHW = kernel_OCHW * (std / std_C)[None, :, None, None]
        bias_O = bias_O - (kernel_OCHW.sum((2, 3)) * ((mean_C - mean) / std)).sum(1)
        for name, value in zip(conv.input[1:3], (kernel_OCHW, bias_O), strict=True):
            weights[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
        for node, number in ((sub, mean), (div, std)):
            shape = tuple(weights[node.input[1]].dims)
            value = np.full(shape, number, np.float32)
            weights[node.input[1]].CopyFrom(numpy_helper.from_array(value, node.input[1]))
    return Quantizable(model, div.output[0], 1 / std, mean)


def measure_ranges(ready: Quantizable, batches: Iterable[np.ndarray], *, average: bool = False) -> Ranges:
    """Measure every tensor's range with ONNX Runtime's calibrator, with one batch in memory at a time.

    `export.quantization.statistics` computes the same ranges from what it caches of each image.

    Args:
        ready: the result of `make_ready`.
        batches: uint8 (N, H, W, 3).
        average: a moving average over the batches instead of the lowest and highest value.
    """
    from onnxruntime.quantization.calibrate import create_calibrator

    with tempfile.TemporaryDirectory() as folder, suppress_output():
        source = Path(folder, "model.onnx")
        onnx.save(ready.model, source)
        calibrator = create_calibrator(
            source,
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            extra_options={"moving_average": average, "averaging_constant": 0.1},
        )
        for batch_NHW3 in batches:
            calibrator.collect_data(_reader(batch_NHW3))  # merges the ranges and releases the batch
        return calibrator.compute_data()


def _reader(batch_NHW3: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class OneBatch(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([{"image": batch_NHW3}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    return OneBatch()


def quantize(ready: Quantizable, ranges: Ranges, recipe: Recipe, means: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Write the int8 model of one recipe.

    Args:
        ready: the result of `make_ready`.
        ranges: the result of `measure_ranges`.
        recipe: how.
        means: the result of `input_means`, if the recipe corrects biases.

    Returns:
        The bytes of an ONNX file under the graph contract.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    types = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    model = copy.deepcopy(ready.model)
    if recipe.correct_bias:
        _correct_biases(model, recipe, means or {})
    signed = recipe.activations == "int8"
    zero_point = np.array(ready.zero_point - 128, np.int8) if signed else np.array(ready.zero_point, np.uint8)
    options = {
        "TensorQuantOverrides": {ready.pixels: [{"scale": np.array(ready.scale, np.float32), "zero_point": zero_point}]},
        "OpTypesToExcludeOutputQuantization": ["Gemm"],
    }
    float_nodes = [node.name for node in model.graph.node if node.op_type in FLOAT_OPERATORS]
    with suppress_output():
        quantizer = fast_quantizer()(
            model,
            recipe.per_channel,
            recipe.reduce_range,
            types[recipe.weights],
            types[recipe.activations],
            copy.deepcopy(ranges),  # it writes into them
            [],
            [*float_nodes, *recipe.exclude],
            sorted({*QDQRegistry, *QLinearOpsRegistry}),
            options,
        )
        quantizer.quantize_model()
    quantized = quantizer.model.model
    if not signed:
        _feed_bytes(quantized, ready.pixels)
    quantizer.model.topological_sort()
    quantized.producer_name = "edgeline"
    # The preparation imports every domain of the installed runtime, at versions that an older one does not load.
    for imported in [entry for entry in quantized.opset_import if entry.domain]:
        quantized.opset_import.remove(imported)
    for entry in [e for e in quantized.metadata_props if not e.key.startswith("edgeline.")]:
        quantized.metadata_props.remove(entry)
    return bytes(quantized.SerializeToString(deterministic=True))


def _feed_bytes(model: ModelProto, pixels: str) -> None:
    """Remove Cast, Sub, Div and QuantizeLinear: (byte - mean) / std, quantized with that scale and zero point, is the byte."""
    producers = {output: node for node in model.graph.node for output in node.output}
    quantize_pixels = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == pixels]
    if not quantize_pixels:
        return  # the first convolution is excluded and reads the float pixels
    div = producers[pixels]
    sub = producers[div.input[0]]
    cast = producers[sub.input[0]]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == quantize_pixels[0].output[0]:
                node.input[index] = cast.input[0]
    for node in (div, sub, cast, quantize_pixels[0]):
        model.graph.node.remove(node)
    unused = {tensor.name for tensor in model.graph.initializer} - {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name in unused]:
        model.graph.initializer.remove(tensor)


def input_means(ready: Quantizable, batches: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """The mean of every convolution's input channels over calibration images, by the tensor's name: float32 (C,)."""
    ort = load_onnxruntime()
    model = copy.deepcopy(ready.model)
    tensors = sorted({node.input[0] for node in model.graph.node if node.op_type == "Conv"})
    for name in tensors:
        node = onnx.helper.make_node("GlobalAveragePool", [name], [f"{name}_mean"])
        model.graph.node.append(node)
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}_mean", onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    sums: dict[str, np.ndarray] = {}
    count = 0
    for batch_NHW3 in batches:
        found = session.run([f"{name}_mean" for name in tensors], {"image": batch_NHW3})
        for name, mean_NC11 in zip(tensors, found, strict=True):
            sums[name] = sums.get(name, 0) + mean_NC11.sum((0, 2, 3))
        count += len(batch_NHW3)
    return {name: total / count for name, total in sums.items()}


def _correct_biases(model: ModelProto, recipe: Recipe, means: Mapping[str, np.ndarray]) -> None:
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Conv" or len(node.input) < 3 or node.input[0] not in means or node.name in recipe.exclude:
            continue
        kernel_OCHW = numpy_helper.to_array(weights[node.input[1]])
        error_OC = (kernel_OCHW - _rounded(kernel_OCHW, recipe)).sum((2, 3))
        outputs, channels = error_OC.shape
        mean_C = means[node.input[0]]
        groups = len(mean_C) // channels
        mean_GC = mean_C.reshape(groups, channels)
        shift_O = (error_OC * np.repeat(mean_GC, outputs // groups, axis=0)).sum(1)
        bias_O = numpy_helper.to_array(weights[node.input[2]]) + shift_O.astype(np.float32)
        weights[node.input[2]].CopyFrom(numpy_helper.from_array(bias_O, node.input[2]))


def _rounded(kernel_OCHW: np.ndarray, recipe: Recipe) -> np.ndarray:
    """A kernel, rounded to int8 with symmetric scales."""
    axes = (1, 2, 3) if recipe.per_channel else None
    largest = np.abs(kernel_OCHW).max(axis=axes, keepdims=True)
    scale = np.maximum(largest, np.finfo(np.float32).tiny) / (64 if recipe.reduce_range else 127)
    return np.asarray(np.round(kernel_OCHW / scale) * scale)


def saturates(model: bytes) -> bool:
    """Whether two products of neighboring weights may exceed 16 bits, so that x86 without VNNI computes other outputs.

    A bound, not a simulation: it is valid for every image and every order in which a kernel may pair a channel's weights.
    """
    parsed = onnx.load_model_from_string(model)
    tensors = {tensor.name: tensor for tensor in parsed.graph.initializer}
    for node in parsed.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in tensors:
            continue
        values = numpy_helper.to_array(tensors[node.input[0]])
        if values.dtype != np.int8 or values.ndim < 2:
            continue
        rows = values.reshape(values.shape[0], -1).astype(np.int64)
        # A matrix may be stored transposed or not; the larger of both bounds covers either.
        if any(_largest_pair(table) * HIGHEST_BYTE > PAIR_LIMIT for table in ((rows, rows.T) if values.ndim == 2 else (rows,))):
            return True
    return False


def _largest_pair(rows: np.ndarray) -> int:
    """The largest sum of two weights of one sign in any row."""
    return max(int(np.sort(np.clip(sign * rows, 0, None), axis=1)[:, -2:].sum(1).max()) for sign in (1, -1))


def integer_share(reference: bytes, quantized: bytes, height: int, width: int) -> float:
    """Share of the reference's multiply-adds that ONNX Runtime computes in integers.

    Counted in the runtime's optimized graph, not in the file: a pair of operators that is not fused stays float.
    """
    operations = _multiply_adds(reference, height, width)
    optimized = optimized_graph(quantized)
    integer = 0
    for weight, count in operations.items():
        used_by = [n for n in optimized.graph.node if any(i == weight or i.startswith(f"{weight}_") for i in n.input)]
        integer += count if any(node.op_type in INTEGER_OPERATORS for node in used_by) else 0
    return integer / sum(operations.values())


def optimized_graph(model: bytes) -> ModelProto:
    """ONNX Runtime's optimized graph of a model at the settings that ship, without its weights' data."""
    ort = load_onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads=1)
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _multiply_adds(model: bytes, height: int, width: int) -> dict[str, int]:
    """Multiply-adds for one image, by the name of the weights that they use."""
    parsed = onnx.load_model_from_string(model)
    parsed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(parsed)
    known = (*inferred.graph.value_info, *inferred.graph.output)
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in known}
    weights = {tensor.name: list(tensor.dims) for tensor in parsed.graph.initializer}
    counts: dict[str, int] = {}
    for node in parsed.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights:
            per_output = int(np.prod(weights[node.input[1]][1:])) if node.op_type == "Conv" else _inner(node, weights)
            counts[node.input[1]] = int(np.prod(shapes[node.output[0]])) * per_output
    return counts


def _inner(node: NodeProto, weights: dict[str, list[int]]) -> int:
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return weights[node.input[1]][-1 if transposed else -2]
