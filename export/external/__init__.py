"""Verification of third-party ONNX classifiers."""
