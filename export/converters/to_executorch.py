"""Convert a network to an ExecuTorch program for XNNPACK; see `export.converters.convert`. Needs executorch.

int8 uses ranges from the calibration images: integer activations and convolutions, one scale per channel. Linear layers are
quantized dynamically, so that the logits and the softmax stay float.

Shapes: N images, H x W the model's input.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer import xnnpack_quantizer_utils
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

CLAMPS = {getattr(torch.ops.aten, name).default for name in ("relu", "relu_", "hardtanh", "hardtanh_")}


def quantize(network: Any, calibration_NHW3: np.ndarray) -> Any:
    """Quantize a network after training.

    Args:
        network: of one uint8 image (1, H, W, 3).
        calibration_NHW3: images that determine the ranges of its activations.
    """
    # By default the quantizer fuses ReLU only. A ReLU6 would be stored with its range before clipping, which costs a
    # MobileNet 11 dB.
    xnnpack_quantizer_utils.is_relu_node = lambda node: node.op == "call_function" and node.target in CLAMPS
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    linear = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    quantizer.set_operator_type(torch.ops.aten.linear.default, linear)
    prepared = prepare_pt2e(network, quantizer)
    with torch.no_grad():
        for pixels_HW3 in calibration_NHW3:
            prepared(torch.from_numpy(pixels_HW3[None]))
    return convert_pt2e(prepared)


if __name__ == "__main__":
    folder, precision, path = sys.argv[1:]
    program = torch.export.load(Path(folder, "program.pt2"))
    calibration_NHW3 = np.load(Path(folder, "calibration.npy")) if precision == "int8" else None
    if calibration_NHW3 is not None:
        example = (torch.from_numpy(calibration_NHW3[:1]),)
        program = torch.export.export(quantize(program.module(), calibration_NHW3), example)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    Path(path).write_bytes(lowered.to_executorch().buffer)
