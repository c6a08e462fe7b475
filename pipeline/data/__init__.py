"""Find, validate, deduplicate and split images."""
