"""What a model costs on this machine: how long an image takes, what a fresh process takes to start, and its memory.

`python -m edgeline.serve.runtime.benchmark MODEL HEIGHT WIDTH FORMAT THREADS RUNS` prints what a fresh process takes to load a
model and to answer once and again, as JSON; with a last argument `cannot-saturate` of an int8 model that needs no exact
setting.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeline.serve.preprocess import PreprocessSpec, preprocess
from edgeline.serve.runtime.backends import load_file
from edgeline.serve.runtime.provenance import DEVICE, provenance, runtime_options
from edgeline.serve.runtime.session import load_onnxruntime, usable_cores

RUNS = 50
RUNTIMES = {
    "openvino": ("openvino",),
    "litert": ("ai-edge-litert",),
    "executorch": ("executorch", "torch"),
    "coreml": ("coremltools",),
}
"""Distributions that run a format, beside those that every device has."""
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
        session: as `serve.runtime.session.create_session` gives it.
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


def costs(
    path: Path, format: str, image: bytes, spec: PreprocessSpec, *, variant: str, saturates: bool = True
) -> dict[str, Any]:
    """Take all of a model's times here, and its memory.

    Args:
        path: the model's file; what belongs to it lies beside.
        format: as a manifest names it.
        image: an image file's bytes.
        spec: its preprocessing.
        variant: its name in an artifact, for the command that takes them again.
        saturates: as `serve.runtime.session.create_session` takes it.

    Returns:
        `latency`: a `Latency` as a dictionary on one thread, `threads_1`, and on as many as there are; `start`: `cold_start`;
        `taken`: `serve.runtime.provenance.taken`.
    """
    latency = {
        f"threads_{threads}": asdict(measure(load_file(format, path, threads, saturates=saturates), image, spec))
        for threads in dict.fromkeys((1, usable_cores()))
    }
    start_costs = cold_start(path, format, spec, saturates=saturates)
    return {"latency": latency, "start": start_costs, "measured_on": times_provenance(variant, format, saturates=saturates)}


def times_provenance(variant: str, format: str, *, saturates: bool = True) -> dict[str, Any]:
    """How a variant's times are taken here; see `serve.runtime.provenance.taken`."""
    runtime = runtime_options(saturates) if format in ("onnx", "ort") else {"runtime": format}
    options = {"batch": 1, "runs": RUNS, **runtime}
    return provenance(times_command(variant), options, packages=(*DEVICE, *RUNTIMES.get(format, ())))


def times_command(variant: str) -> str:
    """What to type to take a variant's times."""
    return f"edgeline check ARTIFACT --variant {variant} --time"


def cold_start(path: Path, format: str, spec: PreprocessSpec, *, saturates: bool = True) -> dict[str, float]:
    """Start a process that loads a model and answers once: milliseconds of each, and the most memory it held, in MB."""
    arguments = start_arguments(path, format, spec, usable_cores(), runs=0)
    command = [sys.executable, "-m", "edgeline.serve.runtime.benchmark", *arguments, *([] if saturates else [CANNOT_SATURATE])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(done.stdout))


def start_arguments(path: Path, format: str, spec: PreprocessSpec, threads: int, *, runs: int) -> list[str]:
    """What to start this module with."""
    return [str(path), str(spec.height), str(spec.width), format, str(threads), str(runs)]


def start(
    path: Path, height: int, width: int, format: str, threads: int, *, runs: int = 0, saturates: bool = True
) -> dict[str, float]:
    """Import the runtime, load a model and answer black images.

    Args:
        path: the model's file; what belongs to it lies beside.
        height: of its input.
        width: of its input.
        format: as a manifest names it. The import of another runtime than ONNX Runtime counts as loading.
        threads: for one image.
        runs: how many answers are timed after the first.
        saturates: as `serve.runtime.session.create_session` takes it.

    Returns:
        Milliseconds of the import, the loading and the first answer, and this process's peak in MB; `p50_ms` and `p95_ms` of
        later answers where any are asked for.
    """
    begin = time.perf_counter()
    if format in ("onnx", "ort"):
        load_onnxruntime()
    imported = time.perf_counter()
    model = load_file(format, path, threads, saturates=saturates)
    loaded = time.perf_counter()
    black_1HW3 = np.zeros((1, height, width, 3), np.uint8)
    model.run(["probabilities"], {"image": black_1HW3})
    answered = time.perf_counter()
    found = {
        "import_ms": (imported - begin) * 1e3,
        "load_ms": (loaded - imported) * 1e3,
        "first_answer_ms": (answered - loaded) * 1e3,
        "peak_mb": _peak_mb(),
    }
    if not runs:
        return found
    times = []
    for _ in range(runs):
        before = time.perf_counter()
        model.run(["probabilities"], {"image": black_1HW3})
        times.append((time.perf_counter() - before) * 1e3)
    return found | dict(zip(("p50_ms", "p95_ms"), np.percentile(times, (50, 95)).tolist(), strict=True))


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
    file, height, width, kind, threads, runs, *options = sys.argv[1:]
    risk = CANNOT_SATURATE not in options
    print(json.dumps(start(Path(file), int(height), int(width), kind, int(threads), runs=int(runs), saturates=risk)))
