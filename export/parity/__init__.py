"""Compare outputs, and find the first layer that differs."""
