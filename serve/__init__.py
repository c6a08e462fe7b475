"""The device's floor: everything that an artifact needs to be proven and to answer. numpy, Pillow and ONNX Runtime only."""
