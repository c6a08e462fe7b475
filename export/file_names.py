"""Names of the files and steps that this layer's steps pass on. Free of torch, so that a reused step is recognized quickly."""

MODEL = "model.onnx"
VERIFICATION = "verification.json"
VARIANTS = "variants.json"
VERIFIED = ("prepare", "train", "evaluate", "export", "variants")
"""The steps whose results are verified."""
