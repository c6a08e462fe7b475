"""The device: load an artifact, verify it, predict, serve. Needs numpy, Pillow and ONNX Runtime."""

if not __name__.startswith("edgeline."):
    raise ImportError("import edgeline.serve instead of serve; the packages of edgeline are importable only as edgeline.*")
