"""The device: load an artifact, verify it, predict, serve. Needs numpy, Pillow and ONNX Runtime."""

if not __name__.startswith("edgeline."):
    raise ImportError("import edgeline.serve instead of serve; all packages are below edgeline")
