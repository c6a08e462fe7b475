"""The checks, as tests that pytest runs against a URL."""
