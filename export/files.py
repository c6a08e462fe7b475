"""Names of the files that the steps of this layer hand on; free of torch, so that a reused step is recognised at once."""

MODEL = "model.onnx"
VERIFICATION = "verification.json"
