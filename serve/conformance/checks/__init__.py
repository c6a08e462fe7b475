"""The conformance checks: tests that pytest runs against a URL."""
