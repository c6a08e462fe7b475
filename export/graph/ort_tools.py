"""Keep tools quiet that talk to whoever runs them by hand."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what ONNX Runtime's tools print and log, and undo what they do to the root logger."""
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.disabled
    root.disabled = True
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        root.handlers[:], root.disabled = handlers, disabled
        root.setLevel(level)
