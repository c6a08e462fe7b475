"""Checkpoint to a proven, published artifact. onnx lives only here."""
