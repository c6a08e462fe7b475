"""Open Inference Protocol checks for any server."""
