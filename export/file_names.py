"""Names of steps and files that this layer's steps hand on; free of torch, so that a reused step is recognized at once."""

MODEL = "model.onnx"
VERIFICATION = "verification.json"
VARIANTS = "variants.json"
VERIFIED = ("prepare", "train", "evaluate", "export", "variants")
"""The steps whose results the verification is of."""
