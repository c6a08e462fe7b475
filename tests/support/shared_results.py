"""Costly results that many tests read: built once for all workers, and reused by the next run of the suite.

A result is addressed by its name, its inputs, the code that produces it (`edgeline.pipeline.runs.code_digest`), the file of its
fixture and the versions of the libraries, so an edit that can matter builds it again. It is stored in pytest's cache folder,
which `make clean` and `pytest --cache-clear` empty. Tests that change a result copy it first.
"""

import fcntl
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgeline.pipeline.runs.atomic_files import file_digest
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.step import step_key

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "onnx", "onnxscript", "onnxruntime", "scipy", "scikit-learn")
STALE_S = 24 * 3600
"""Results of other code are removed when they are older than this, in seconds."""
COMPLETE = ".complete"


def shared_result(
    config: pytest.Config, name: str, build: Callable[[Path], None], *, code: tuple[str, ...], inputs: Mapping[str, Any]
) -> Path:
    """Return the folder of a result, which is built under a lock if it does not exist.

    Args:
        config: of the test session; its cache folder is used.
        name: of the result.
        build: writes it into the folder it is given, whose path does not change afterwards.
        code: modules that produce it.
        inputs: JSON values that it depends on; a path under the key `file` counts by its content.
    """
    assert config.cache is not None
    store = config.cache.mkdir("edgeline-results")
    values = {key: file_digest(Path(value)) if key == "file" else value for key, value in inputs.items()}
    key = step_key(values, code_digest(*code, cache=store / "code.json"), PACKAGES)
    folder = store / f"{name}-{key[:16]}"
    with (store / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / COMPLETE).exists():
            return folder
        for other in store.glob(f"{name}-*"):
            if other == folder or time.time() - other.stat().st_mtime > STALE_S:
                shutil.rmtree(other)
        folder.mkdir()
        build(folder)
        (folder / COMPLETE).touch()
    return folder
