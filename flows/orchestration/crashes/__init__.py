"""Runs whose process was killed: found, marked as crashed, and started again."""
