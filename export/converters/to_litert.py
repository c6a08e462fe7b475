"""Write a LiteRT file (`.tflite`) of a PyTorch program; see `export.converters.convert`. Runs where litert-torch is installed.

One input `image`, uint8 [1, H, W, 3], and two float32 outputs, `probabilities` and `logits`, by these names in its signature.
int8 is static, with ranges from the calibration images. What becomes a logit stays float: a linear layer's weights are int8 and
its input is quantized as it comes, its output is not. The softmax is float.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"  # read as it is imported

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import qtyping, quantizer
from torch import Tensor, nn

SIGNATURE = "serving_default"


class Named(nn.Module):
    """A program whose outputs have names."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Classify uint8 (1, H, W, 3)."""
        probabilities_1K, logits_1K = self.program(image)
        return {"probabilities": probabilities_1K, "logits": logits_1K}


def convert(program: Path, path: Path) -> None:
    """Write the float32 file."""
    exported = torch.export.load(program)
    [example_1HW3], _ = exported.example_inputs
    with torch.no_grad():
        model = litert_torch.convert(Named(exported.module()), sample_kwargs={"image": example_1HW3})
    model.export(str(path))


def quantize(float32: Path, pixels_NHW3: np.ndarray, path: Path) -> None:
    """Write the int8 file of a float32 one."""
    operator, never = qtyping.TFLOperationName, "no_quantize"
    chosen = quantizer.Quantizer(str(float32))
    chosen.add_static_config(".*", operator.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    chosen.add_dynamic_config(".*", operator.FULLY_CONNECTED, num_bits=8)
    # Its file does not run where a tensor that is an output, and the softmax's input too, is quantized.
    for kept in (operator.INPUT, operator.OUTPUT, operator.SOFTMAX):
        chosen.update_quantization_recipe(".*", kept, algorithm_key=never)
    images = [{"image": image_HW3[None]} for image_HW3 in pixels_NHW3]
    ranges = chosen.calibrate({SIGNATURE: images}, num_threads=torch.get_num_threads())
    path.write_bytes(bytes(chosen.quantize(ranges).quantized_model))


def main(folder: Path, precision: str, path: Path) -> None:
    """Write one file, of float32 or int8."""
    if precision == "float32":
        convert(folder / "program.pt2", path)
        return
    with tempfile.TemporaryDirectory() as scratch:
        float32 = Path(scratch, "model.tflite")
        convert(folder / "program.pt2", float32)
        quantize(float32, np.load(folder / "calibration.npy"), path)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    except Exception as error:  # what it cannot convert it tells by errors of many kinds, over many lines
        sys.exit((str(error).strip() or repr(error)).splitlines()[0])
