"""Converters to other runtimes' formats, each run in a separate environment."""
