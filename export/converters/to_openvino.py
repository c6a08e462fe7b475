"""Convert an ONNX file to OpenVINO's intermediate representation.

Started by `export.converters.convert` in the environment that has openvino.

An int8 ONNX file keeps its QuantizeLinear pairs, which OpenVINO runs as integers.
"""

import sys
from pathlib import Path

import openvino

if __name__ == "__main__":
    folder, _, path = sys.argv[1:]
    model = openvino.convert_model(Path(folder, "model.onnx"))
    openvino.save_model(model, path, compress_to_fp16=False)
