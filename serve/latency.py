"""How long one image takes on this machine, from its bytes to its probabilities.

`python -m serve.latency MODEL HEIGHT WIDTH` prints what a fresh process takes to load a model and answer once, as JSON.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve.preprocess import PreprocessSpec, preprocess
from serve.runtime import create_session, load_onnxruntime


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds, one image at a time, all cores."""

    p50_ms: float
    """Model alone."""
    p95_ms: float
    preprocess_p50_ms: float
    """Decoding and resizing the image that was measured."""
    runs: int


def measure(session: Any, image: bytes, spec: PreprocessSpec, *, runs: int = 50) -> Latency:
    """Time a session and the preprocessing apart, after a few runs to warm up.

    Args:
        session: as `serve.runtime.create_session` gives it.
        image: an image file's bytes.
        spec: its preprocessing.
        runs: how many of each are timed.
    """
    pixels_1HW3 = preprocess(image, spec)[None]
    model, preprocessing = [], []
    for run in range(-5, runs):
        start = time.perf_counter()
        session.run(["probabilities"], {"image": pixels_1HW3})
        middle = time.perf_counter()
        preprocess(image, spec)
        if run >= 0:
            model.append(middle - start)
            preprocessing.append(time.perf_counter() - middle)
    p50, p95 = np.percentile(model, (50, 95)) * 1e3
    return Latency(float(p50), float(p95), float(np.median(preprocessing) * 1e3), runs)


def start(path: Path, height: int, width: int) -> dict[str, float]:
    """Import the runtime, load a model and answer one black image: milliseconds of each, and this process's peak in MB."""
    begin = time.perf_counter()
    load_onnxruntime()
    imported = time.perf_counter()
    session = create_session(path.read_bytes())
    loaded = time.perf_counter()
    session.run(["probabilities"], {"image": np.zeros((1, height, width, 3), np.uint8)})
    end = time.perf_counter()
    return {
        "import_ms": (imported - begin) * 1e3,
        "load_ms": (loaded - imported) * 1e3,
        "first_answer_ms": (end - loaded) * 1e3,
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> float:
    """The most memory that this process held, in MB."""
    try:
        # Not getrusage, which on Linux still counts the process that this one was forked from.
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError):
        import resource  # not on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    print(json.dumps(start(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
