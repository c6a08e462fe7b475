"""Quantize weights channel by channel as ONNX Runtime's quantizer does, but all channels of a tensor at once.

Its quantizer computes scale, zero point and integers of each channel in a Python loop, which is most of its time. The same
arithmetic on whole arrays gives the same bits (a test compares the files). Other kinds of weights are left to it.

Shapes: O a weight's output channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from edgeline.serve.runtime.session import load_onnxruntime


@cache
def fast_quantizer() -> Any:
    """ONNX Runtime's `QDQQuantizer` with its loops over the channels of int8 weights replaced."""
    load_onnxruntime()  # before the quantizer imports it: its telemetry must be off by then
    from onnxruntime.quantization import qdq_quantizer
    from onnxruntime.quantization.base_quantizer import QuantizationParams
    from onnxruntime.quantization.quant_utils import get_qmin_qmax_for_qType

    class FastQuantizer(qdq_quantizer.QDQQuantizer):  # type: ignore[misc]
        tensors_to_quantize: dict[str, Any]

        def quantize_model(self) -> Any:
            with _whole_arrays(qdq_quantizer):
                return super().quantize_model()

        def _calc_initializer_quant_params(self) -> dict[str, Any]:
            everything = self.tensors_to_quantize
            tensors = {tensor.name: tensor for tensor in self.model.initializer()}
            fast = {name: info for name, info in everything.items() if name in tensors and self._is_simple(name, info)}
            self.tensors_to_quantize = {name: info for name, info in everything.items() if name not in fast}
            found = super()._calc_initializer_quant_params()
            self.tensors_to_quantize = everything
            found |= {name: self._parameters(tensors[name], info.axis) for name, info in fast.items()}
            return {name: found[name] for name in everything if name in found}

        def _is_simple(self, name: str, info: Any) -> bool:
            is_weight = info.tensor_type is qdq_quantizer.QDQQuantTensorType.WEIGHT
            usual = self.weight_qType == TensorProto.INT8 and self.min_real_range is None and not self.block_size
            return bool(is_weight and usual and info.axis is not None and name not in self.tensor_quant_overrides)

        def _parameters(self, tensor: TensorProto, axis: int) -> Any:
            """Symmetric scales of every channel."""
            values = numpy_helper.to_array(tensor)
            axis %= values.ndim
            rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
            lowest, highest = get_qmin_qmax_for_qType(self.weight_qType, self.reduce_range, symmetric=True)
            largest_O = np.abs(rows).max(1).astype(np.float64)
            scale_O = (largest_O + largest_O) / (np.float64(highest) - np.float64(lowest))
            scale_O = np.where(scale_O < np.finfo(rows.dtype).tiny, 1.0, scale_O).astype(rows.dtype)
            zero_point_O = np.zeros(len(rows), np.int8)
            return QuantizationParams(zero_point=zero_point_O, scale=scale_O, quant_type=self.weight_qType, axis=axis)

    return FastQuantizer


@contextmanager
def _whole_arrays(module: Any) -> Iterator[None]:
    """Within the block, the quantizer's module rounds whole weights."""
    original = module.quantize_onnx_initializer

    def quantize(weight: TensorProto, kind: int, zero_point: Any, scale: Any, axis: int | None = None, **options: Any) -> Any:
        if axis is None or kind != TensorProto.INT8 or any(options.values()):
            return original(weight, kind, zero_point, scale, axis, **options)
        values = numpy_helper.to_array(weight)
        shape = [1] * values.ndim
        shape[axis] = -1
        rounded = (values.astype(np.float32) / scale.reshape(shape)).round() + zero_point.reshape(shape)
        return numpy_helper.from_array(rounded.clip(-128, 127).astype(np.int8), f"{weight.name}_quantized")

    module.quantize_onnx_initializer = quantize
    try:
        yield
    finally:
        module.quantize_onnx_initializer = original
