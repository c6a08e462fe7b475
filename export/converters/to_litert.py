"""Convert a PyTorch program to a LiteRT file (`.tflite`); see `export.converters.convert`. Needs litert-torch.

One input `image`, uint8 [1, H, W, 3], and two float32 outputs, `probabilities` and `logits`, by these names in its signature.
int8 is static, with ranges from the calibration images. Logits stay float: linear layers have int8 weights and dynamically
quantized inputs, but float outputs. The softmax is float.
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


class NamedOutputs(nn.Module):
    """A program with named outputs."""

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
        model = litert_torch.convert(NamedOutputs(exported.module()), sample_kwargs={"image": example_1HW3})
    model.export(str(path))


def quantize(float32: Path, pixels_NHW3: np.ndarray, path: Path) -> None:
    """Write the int8 version of a float32 file."""
    operator = qtyping.TFLOperationName
    recipe = quantizer.Quantizer(str(float32))
    recipe.add_static_config(".*", operator.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    recipe.add_dynamic_config(".*", operator.FULLY_CONNECTED, num_bits=8)
    # A file with a quantized tensor that is both an output and the softmax's input does not run.
    for unquantized in (operator.INPUT, operator.OUTPUT, operator.SOFTMAX):
        recipe.update_quantization_recipe(".*", unquantized, algorithm_key="no_quantize")
    images = [{"image": image_HW3[None]} for image_HW3 in pixels_NHW3]
    ranges = recipe.calibrate({SIGNATURE: images}, num_threads=torch.get_num_threads())
    path.write_bytes(bytes(recipe.quantize(ranges).quantized_model))


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
    except Exception as error:  # the converter raises errors of many types with messages of many lines
        sys.exit((str(error).strip() or repr(error)).splitlines()[0])
