"""How long one image takes on this machine, from its bytes to its probabilities.

`python -m serve.latency MODEL HEIGHT WIDTH [FORMAT [THREADS]]` prints what a fresh process takes to load a model, to answer
once, and to answer then, as JSON.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve.formats import load
from serve.preprocess import PreprocessSpec, preprocess
from serve.runtime import load_onnxruntime


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


def start(path: Path, height: int, width: int, format: str = "onnx", threads: int | None = None) -> dict[str, float]:
    """Import the runtime, load a model and answer a black image again and again.

    Args:
        path: the model's file; what belongs to it lies beside.
        height: of its input.
        width: of its input.
        format: as a manifest names it; the import of a runtime other than ONNX Runtime counts as loading.
        threads: for one image; by default as many as this process may use.

    Returns:
        Milliseconds of the import, the loading, the first answer, and later ones; and this process's peak in MB.
    """
    begin = time.perf_counter()
    if format in ("onnx", "ort"):
        load_onnxruntime()
    imported = time.perf_counter()
    model = load(format, path.name, lambda name: (path.parent / name).read_bytes(), threads)
    loaded = time.perf_counter()
    black_1HW3 = np.zeros((1, height, width, 3), np.uint8)
    model.run(["probabilities"], {"image": black_1HW3})
    answered = time.perf_counter()
    times = []
    for _ in range(50):
        before = time.perf_counter()
        model.run(["probabilities"], {"image": black_1HW3})
        times.append(time.perf_counter() - before)
    p50, p95 = np.percentile(times, (50, 95)) * 1e3
    return {
        "import_ms": (imported - begin) * 1e3,
        "load_ms": (loaded - imported) * 1e3,
        "first_answer_ms": (answered - loaded) * 1e3,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "runs": len(times),
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
    path, height, width, *asked = sys.argv[1:]
    kind = asked[0] if asked else "onnx"
    print(json.dumps(start(Path(path), int(height), int(width), kind, int(asked[1]) if len(asked) > 1 else None)))
