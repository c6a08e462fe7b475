"""Ranges that cut off outliers, computed from histograms of every tensor over the calibration images.

Clipping a few outliers makes the steps of all other values smaller. `percentile` cuts off a fixed share of the values;
`mse` minimizes the squared error of clipping and rounding together (Nagel et al. 2021, "A White Paper on Neural Network
Quantization", section 3.1). Both read the same histograms, which take one pass over the images, one image at a time. Their
bounds are the lowest and highest values of `export.quantization.statistics`, so that no histogram is ever extended or merged.

Shapes: T tensors, B bins, N images, H x W the model's input.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper

from edgeline.export.quantization.static_int8 import Quantizable, Ranges
from edgeline.serve.runtime.session import create_session

BINS = 8192
"""Many, so that a tensor whose outliers are a hundred times as large as its other values still has enough for these."""
LEVELS = 255
"""Steps between the 256 values of a byte."""
CUT = 1e-4
"""Share of the values that `percentile` cuts off at each end."""
FRACTIONS = np.geomspace(0.01, 1, 64)
"""Of a bound: the candidates of `mse`, whose error is flat near the best one."""
MERGED = 4
"""Bins that `mse` counts as one."""
SWEEPS = 2
"""How often `mse` searches one bound with the other fixed."""


@dataclass(frozen=True)
class Histograms:
    """Of T tensors: how often each value occurs between the lowest and the highest one."""

    tensors: tuple[str, ...]
    low_T: np.ndarray
    high_T: np.ndarray
    counts_TB: np.ndarray
    """int64."""

    def ranges(self, method: str) -> Ranges:
        """The range of every tensor.

        Args:
            method: `percentile` or `mse`.
        """
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import TensorsData

        find = {"percentile": percentile_range, "mse": least_squares_range}[method]
        found = {}
        for name, low, high, counts_B in zip(self.tensors, self.low_T, self.high_T, self.counts_TB, strict=True):
            bounds = find(float(low), float(high), counts_B) if high > low else (low, high)
            found[name] = tuple(np.array([bound], np.float32) for bound in bounds)
        return TensorsData(CalibrationMethod.MinMax, found)


def collect(ready: Quantizable, batches: Iterable[np.ndarray], bounds: Ranges) -> Histograms:
    """Run calibration images and count the values of every tensor.

    Args:
        ready: the result of `make_ready`.
        batches: uint8 (N, H, W, 3).
        bounds: the lowest and highest value of every tensor over the same images.
    """
    tensors = tuple(bounds.keys())
    low_T, high_T = (np.array([bounds[name].range_value[end].item() for name in tensors]) for end in (0, 1))
    session = create_session(_with_outputs(ready.model, tensors))
    scales_T = BINS / np.maximum(high_T - low_T, np.finfo(np.float32).tiny)
    counts_TB = np.zeros((len(tensors), BINS), np.int64)
    for batch_NHW3 in batches:
        for image_HW3 in batch_NHW3:
            values = session.run(list(tensors), {"image": image_HW3[None]})
            for counts_B, value, low, scale in zip(counts_TB, values, low_T, scales_T, strict=True):
                bins = ((value.ravel() - np.float32(low)) * np.float32(scale)).astype(np.int32)
                counts_B += np.bincount(np.clip(bins, 0, BINS - 1, out=bins), minlength=BINS)
    return Histograms(tensors, low_T, high_T, counts_TB)


def percentile_range(low: float, high: float, counts_B: np.ndarray) -> tuple[float, float]:
    """The range without the lowest and the highest `CUT` of the values."""
    edges = np.linspace(low, high, len(counts_B) + 1)
    share_B = np.cumsum(counts_B) / counts_B.sum()
    return float(edges[np.searchsorted(share_B, CUT)]), float(edges[np.searchsorted(share_B, 1 - CUT) + 1])


def least_squares_range(low: float, high: float, counts_B: np.ndarray) -> tuple[float, float]:
    """The range with the least squared error of clipping and rounding to 256 values; it contains 0, as a quantized one must."""
    merged_B = counts_B.reshape(-1, MERGED).sum(1)
    edges = np.linspace(low, high, len(merged_B) + 1)
    occupied = merged_B > 0
    values_B, weights_B = ((edges[:-1] + edges[1:]) / 2)[occupied], merged_B[occupied]
    found = [min(low, 0.0), max(high, 0.0)]
    for _ in range(SWEEPS):
        for end, outer in enumerate((min(low, 0.0), max(high, 0.0))):
            if outer == 0:
                continue
            candidates = [(outer * fraction, found[1]) if end == 0 else (found[0], outer * fraction) for fraction in FRACTIONS]
            errors = [_squared_error(values_B, weights_B, *candidate) for candidate in candidates]
            found = list(candidates[int(np.argmin(errors))])
    return found[0], found[1]


def _squared_error(values_B: np.ndarray, weights_B: np.ndarray, low: float, high: float) -> float:
    if high <= low:
        return float("inf")
    step = (high - low) / LEVELS
    rounded_B = np.clip(np.round((values_B - low) / step), 0, LEVELS) * step + low
    return float((weights_B * (values_B - rounded_B) ** 2).sum())


def _with_outputs(model: ModelProto, tensors: Iterable[str]) -> bytes:
    """The model with every one of these tensors as an output, and no other."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    return bytes(copy.SerializeToString())
