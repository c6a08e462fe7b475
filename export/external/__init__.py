"""Verify ONNX classifiers that were made elsewhere."""
