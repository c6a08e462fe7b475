"""ONNX Runtime and the other runtimes: sessions, threads, measurements."""
