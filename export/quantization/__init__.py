"""int8: static quantization, recipe search, quantization-aware training."""
