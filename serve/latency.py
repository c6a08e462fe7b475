"""What a model costs on this machine: how long an image takes, what a fresh process takes to start, and its memory.

`python -m serve.latency MODEL HEIGHT WIDTH` prints what a fresh process takes to load a model and answer once, as JSON; with a
fourth argument `cannot-saturate` of an int8 model that needs no exact setting.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve.preprocess import PreprocessSpec, preprocess
from serve.provenance import runtime_options, taken
from serve.runtime import create_session, load_onnxruntime, usable_cores

RUNS = 50
CANNOT_SATURATE = "cannot-saturate"


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds, one image at a time."""

    p50_ms: float
    """Model alone."""
    p95_ms: float
    preprocess_p50_ms: float
    """Decoding and resizing the image that was measured."""
    runs: int


def measure(session: Any, image: bytes, spec: PreprocessSpec, *, runs: int = RUNS) -> Latency:
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


def costs(model: bytes, image: bytes, spec: PreprocessSpec, *, variant: str, saturates: bool = True) -> dict[str, Any]:
    """Take all of a model's times here, and its memory.

    Args:
        model: the bytes of an ONNX or ORT file.
        image: an image file's bytes.
        spec: its preprocessing.
        variant: its name in an artifact, for the command that takes them again.
        saturates: as `serve.runtime.create_session` takes it.

    Returns:
        `latency`: a `Latency` as a dictionary on one thread, `threads_1`, and on as many as there are; `start`: `cold_start`;
        `taken`: `serve.provenance.taken`.
    """
    latency = {
        f"threads_{threads}": asdict(measure(create_session(model, threads=threads, saturates=saturates), image, spec))
        for threads in dict.fromkeys((1, usable_cores()))
    }
    options = {"batch": 1, "runs": RUNS, **runtime_options(saturates)}
    how = taken(f"edgeline check ARTIFACT --variant {variant} --time", options)
    return {"latency": latency, "start": cold_start(model, spec, saturates=saturates), "taken": how}


def cold_start(model: bytes, spec: PreprocessSpec, *, saturates: bool = True) -> dict[str, float]:
    """Start a process that loads a model and answers once: milliseconds of each, and the most memory it held, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        path.write_bytes(model)
        command = [sys.executable, "-m", "serve.latency", str(path), str(spec.height), str(spec.width)]
        command += [] if saturates else [CANNOT_SATURATE]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(done.stdout))


def start(path: Path, height: int, width: int, *, saturates: bool = True) -> dict[str, float]:
    """Import the runtime, load a model and answer one black image: milliseconds of each, and this process's peak in MB."""
    begin = time.perf_counter()
    load_onnxruntime()
    imported = time.perf_counter()
    session = create_session(path.read_bytes(), saturates=saturates)
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
    path, height, width, *options = sys.argv[1:]
    print(json.dumps(start(Path(path), int(height), int(width), saturates=CANNOT_SATURATE not in options)))
