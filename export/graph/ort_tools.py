"""Run ONNX Runtime's tools without their output."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def suppress_output() -> Iterator[None]:
    """Suppress what ONNX Runtime's tools print and log, and restore the root logger that they change."""
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.disabled
    root.disabled = True
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        root.handlers[:], root.disabled = handlers, disabled
        root.setLevel(level)
