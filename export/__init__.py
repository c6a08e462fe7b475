"""A checkpoint to a verified, published artifact. Needs onnx."""

if not __name__.startswith("edgeline."):
    raise ImportError("import edgeline.export instead of export; all packages are below edgeline")
