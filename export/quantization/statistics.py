"""What int8 needs to know about a network's activations, measured image by image in one pass and cached by content.

Of each calibration image: the lowest and the highest value of every tensor before the last layer, and the mean of every channel
that a convolution reads. Ranges and means over a set of images follow from these, so a set that differs in one image costs one
image. The last layer does not take part: its output stays float, so a new head changes nothing here.

Rows are addressed by the digest of the backbone's graph, the image, the preprocessing, the code, the runtime and its number of
threads, and contain their digest. Each batch is filled up to one size, as rounding may depend on it.

Shapes: N images, T tensors, C channels of a convolution's input, H x W the model's input.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeline.export.quantization.static_int8 import Quantizable, Ranges
from edgeline.pipeline.data.samples import Sample, stream_pixels
from edgeline.pipeline.models.devices import CPU_BATCH
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.content_cache import ContentCache, sealed, unsealed
from edgeline.pipeline.runs.step import step_key
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.runtime.session import create_session

PACKAGES = ("onnxruntime", "onnx", "numpy", "pillow")
AVERAGING = 0.1
"""Share of a batch in the moving average of ranges."""
PREFIX = "statistics."


@dataclass(frozen=True)
class Statistics:
    """Of N images, in order."""

    tensors: tuple[str, ...]
    low_NT: np.ndarray
    high_NT: np.ndarray
    means_NC: Mapping[str, np.ndarray]
    """By the name of a convolution's input."""

    def ranges(self, method: str) -> Ranges:
        """The range of every tensor, as ONNX Runtime's calibrator computes it from batches of these images.

        Args:
            method: `minmax`, or `average`: a moving average over batches, which ignores the outliers of single images.
        """
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import TensorsData

        starts = range(0, len(self.low_NT), CPU_BATCH)
        low_T, *lows = [self.low_NT[start : start + CPU_BATCH].min(0) for start in starts]
        high_T, *highs = [self.high_NT[start : start + CPU_BATCH].max(0) for start in starts]
        for batch_low_T, batch_high_T in zip(lows, highs, strict=True):
            if method == "minmax":
                low_T, high_T = np.minimum(low_T, batch_low_T), np.maximum(high_T, batch_high_T)
            else:
                low_T, high_T = low_T + AVERAGING * (batch_low_T - low_T), high_T + AVERAGING * (batch_high_T - high_T)
        ranges = zip(self.tensors, low_T.astype(np.float32), high_T.astype(np.float32), strict=True)
        return TensorsData(CalibrationMethod.MinMax, {name: (np.array([low]), np.array([high])) for name, low, high in ranges})

    @property
    def means(self) -> dict[str, np.ndarray]:
        """The mean of every convolution's input channels over the images, by the tensor's name: float32 (C,)."""
        return {name: mean_NC.mean(0) for name, mean_NC in self.means_NC.items()}


def measure(ready: Quantizable, samples: Sequence[Sample], spec: PreprocessSpec, cache: ContentCache | None) -> Statistics:
    """Measure the activations of a network for images, or find those that were measured before.

    Args:
        ready: the result of `make_ready`.
        samples: calibration images.
        spec: the network's preprocessing.
        cache: None measures all.

    Raises:
        DataError: a file is missing or has changed.
    """
    measuring = _Measuring(ready.model)
    inputs = {"graph": measuring.digest, "spec": spec.digest(), "threads": usable_cores()}
    prefix = f"{PREFIX}{step_key(inputs, code_digest(__name__), PACKAGES)}"
    found: dict[str, np.ndarray] = {}
    for key, row in cache.get(f"{prefix}:{sample.sha256}" for sample in samples) if cache is not None else ():
        if (value := unsealed(row)) is not None:
            found[key.rpartition(":")[2]] = np.frombuffer(value, np.float32)
    missing = list({sample.sha256: sample for sample in samples if sample.sha256 not in found}.values())
    batches = stream_pixels(missing, spec, CPU_BATCH)
    for start, batch_NHW3 in enumerate(track(batches, "measuring activations", len(missing), step=CPU_BATCH)):
        part = missing[start * CPU_BATCH :][: len(batch_NHW3)]
        rows = dict(zip((sample.sha256 for sample in part), measuring.run(batch_NHW3), strict=True))
        if cache is not None:
            cache.put((f"{prefix}:{sha256}", sealed(row.tobytes())) for sha256, row in rows.items())
        found |= rows
    return measuring.statistics(np.stack([found[sample.sha256] for sample in samples]))


class _Measuring:
    """A copy of a graph that ends before the last layer and returns the figures of each image."""

    def __init__(self, ready: ModelProto) -> None:
        model = copy.deepcopy(ready)
        graph = model.graph
        kept = _before_the_head(model)
        used = {name for node in kept for name in node.input}
        constants = {tensor.name: tensor for tensor in ready.graph.initializer if tensor.name in used}
        shapes = {value.name: value.type.tensor_type for value in (*ready.graph.value_info, *ready.graph.input)}
        names = dict.fromkeys(name for node in kept for name in (*node.input, *node.output) if name not in constants)
        self.tensors = tuple(name for name in names if name in shapes and shapes[name].elem_type == TensorProto.FLOAT)
        convolutions = [node for node in kept if node.op_type == "Conv" and node.input[1] in constants]
        groups = {n.output[0]: next((a.i for a in n.attribute if a.name == "group"), 1) for n in convolutions}
        self.channels = {n.input[0]: constants[n.input[1]].dims[1] * groups[n.output[0]] for n in convolutions}
        batch = ready.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        first = [shapes[name].shape.dim[0].dim_param if shapes[name].shape.dim else "" for name in self.tensors]
        # In some transformers, the rows of a tensor are parts of images; then each image is run alone.
        self.batch = CPU_BATCH if batch and set(first) == {batch} else 1

        for field in (graph.node, graph.initializer, graph.output, graph.value_info, model.metadata_props):
            del field[:]
        ranks = {name: len(shapes[name].shape.dim) for name in self.tensors}
        axes = {rank: numpy_helper.from_array(np.arange(1, rank), f"{PREFIX}axes.{rank}") for rank in set(ranks.values())}
        graph.initializer.extend([*constants.values(), *(axes[rank] for rank in sorted(axes) if rank > 1)])
        self.outputs = [f"{PREFIX}{kind}.{name}" for kind in ("Min", "Max") for name in self.tensors]
        reduced = [
            helper.make_node(f"Reduce{kind}", [name, axes[rank].name], [f"{PREFIX}{kind}.{name}"], keepdims=0)
            if rank > 1
            else helper.make_node("Identity", [name], [f"{PREFIX}{kind}.{name}"])
            for kind in ("Min", "Max")
            for name, rank in ranks.items()
        ]
        averaged = [helper.make_node("GlobalAveragePool", [name], [f"{PREFIX}mean.{name}"]) for name in self.channels]
        self.outputs += [node.output[0] for node in averaged]
        graph.node.extend([*kept, *reduced, *averaged])
        graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs)
        self.model = bytes(model.SerializeToString(deterministic=True))
        self.digest = hashlib.sha256(self.model).hexdigest()

    @cached_property
    def session(self) -> Any:
        return create_session(self.model)

    def run(self, batch_NHW3: np.ndarray) -> np.ndarray:
        """The row of each image: lowest values, highest values, and means, float32."""
        missing = -len(batch_NHW3) % self.batch
        filled_NHW3 = np.concatenate([batch_NHW3, np.repeat(batch_NHW3[:1], missing, axis=0)])
        return np.concatenate([self._rows(part) for part in np.split(filled_NHW3, len(filled_NHW3) // self.batch)])[
            : len(batch_NHW3)
        ]

    def _rows(self, batch_NHW3: np.ndarray) -> np.ndarray:
        found = iter(self.session.run(self.outputs, {"image": batch_NHW3}))
        images = len(batch_NHW3)
        columns = [next(found).reshape(images, -1).min(1, keepdims=True) for _ in self.tensors]
        columns += [next(found).reshape(images, -1).max(1, keepdims=True) for _ in self.tensors]
        columns += [next(found).reshape(images, -1, count).mean(1) for count in self.channels.values()]
        return np.concatenate(columns, axis=1)

    def statistics(self, rows: np.ndarray) -> Statistics:
        """Rows of `run`, by meaning."""
        count = len(self.tensors)
        low_NT, high_NT, means = rows[:, :count], rows[:, count : 2 * count], rows[:, 2 * count :]
        parts = np.split(means, np.cumsum(list(self.channels.values()))[:-1], axis=1)
        return Statistics(self.tensors, low_NT, high_NT, dict(zip(self.channels, parts, strict=True)))


def _before_the_head(model: ModelProto) -> list[onnx.NodeProto]:
    """The nodes that the last linear layer reads from."""
    producers = {output: node for node in model.graph.node for output in node.output}
    linear = next(node for node in reversed(model.graph.node) if node.op_type in ("Gemm", "MatMul"))
    needed, waiting = set(), [linear.input[0]]
    while waiting:
        if (node := producers.get(waiting.pop())) is not None and node.output[0] not in needed:
            needed.add(node.output[0])
            waiting += node.input
    return [node for node in model.graph.node if node.output[0] in needed]
