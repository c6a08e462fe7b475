"""What a model costs on this machine: time per image, start-up time of a fresh process, and memory.

    python -m edgeline.serve.runtime.benchmark MODEL FORMAT HEIGHT WIDTH RUNS OPTIONS

prints as JSON how long a fresh process takes to load a model and for its first result. OPTIONS is a JSON object, see
`serve.runtime.session.SessionOptions`.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from edgeline.serve.preprocess import PreprocessSpec, preprocess
from edgeline.serve.runtime.backends import backend, load_file, uses_onnxruntime
from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.runtime.provenance import DEVICE, provenance, runtime_options
from edgeline.serve.runtime.session import SessionOptions, load_onnxruntime

RUNS = 50


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds for one image at a time."""

    p50_ms: float
    """Model alone."""
    p95_ms: float
    preprocess_p50_ms: float
    """Decoding and resizing the measured image."""
    runs: int


def measure(session: Any, image: bytes, spec: PreprocessSpec, *, runs: int = RUNS) -> Latency:
    """Time a session and the preprocessing separately, after a few warm-up runs.

    Args:
        session: from `serve.runtime.session.create_session`.
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
    path: Path, format: str, image: bytes, spec: PreprocessSpec, *, variant: str, **options: Unpack[SessionOptions]
) -> dict[str, Any]:
    """Measure a model's times and memory on this machine.

    Args:
        path: the model's file; its other files are in the same folder.
        format: as a manifest names it.
        image: an image file's bytes.
        spec: its preprocessing.
        variant: its name in an artifact, for the command that repeats the measurement.
        options: how ONNX Runtime runs it; the number of threads is not used.

    Returns:
        `latency`: a `Latency` as a dictionary for one thread, `threads_1`, and for all usable cores; `start`: `cold_start`;
        `measured_on`: `serve.runtime.provenance.provenance`.
    """
    latency = {}
    for threads in dict.fromkeys((1, usable_cores())):
        session = load_file(format, path, **options | {"threads": threads})
        latency[f"threads_{threads}"] = asdict(measure(session, image, spec))
    start_costs = cold_start(path, format, spec, **options)
    return {"latency": latency, "start": start_costs, "measured_on": times_provenance(variant, format, **options)}


def times_provenance(variant: str, format: str, **options: Unpack[SessionOptions]) -> dict[str, Any]:
    """How a variant's times are measured on this machine; see `serve.runtime.provenance.provenance`."""
    runtime = runtime_options(**options) if uses_onnxruntime(format) else {"runtime": format}
    packages = (*DEVICE, *backend(format).packages)
    return provenance(times_command(variant), {"batch": 1, "runs": RUNS, **runtime}, packages=packages)


def times_command(variant: str) -> str:
    """The command that measures a variant's times."""
    return f"edgeline check ARTIFACT --variant {variant} --time"


def cold_start(path: Path, format: str, spec: PreprocessSpec, **options: Unpack[SessionOptions]) -> dict[str, float]:
    """Start a process that loads a model and runs it once; see `start`."""
    arguments = start_arguments(path, format, spec, runs=0, **options | {"threads": usable_cores()})
    command = [sys.executable, "-m", "edgeline.serve.runtime.benchmark", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(done.stdout))


def start_arguments(
    path: Path, format: str, spec: PreprocessSpec, *, runs: int, **options: Unpack[SessionOptions]
) -> list[str]:
    """The command-line arguments of this module."""
    return [str(path), format, str(spec.height), str(spec.width), str(runs), json.dumps(options)]


def start(
    path: Path, format: str, size: tuple[int, int], *, runs: int = 0, **options: Unpack[SessionOptions]
) -> dict[str, float]:
    """Import the runtime, load a model and run it on black images.

    Args:
        path: the model's file; its other files are in the same folder.
        format: as a manifest names it. Importing a runtime other than ONNX Runtime counts as loading.
        size: height and width of its input.
        runs: how many runs after the first are timed.
        options: how ONNX Runtime runs it.

    Returns:
        Milliseconds for the import, the loading and the first result, and this process's peak memory in MB; with `runs`, also
        `p50_ms` and `p95_ms` of the later runs.
    """
    begin = time.perf_counter()
    if uses_onnxruntime(format):
        load_onnxruntime()
    imported = time.perf_counter()
    model = load_file(format, path, **options)
    loaded = time.perf_counter()
    black_1HW3 = np.zeros((1, *size, 3), np.uint8)
    model.run(["probabilities"], {"image": black_1HW3})
    finished = time.perf_counter()
    found = {
        "import_ms": (imported - begin) * 1e3,
        "load_ms": (loaded - imported) * 1e3,
        "first_answer_ms": (finished - loaded) * 1e3,
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
    """Peak memory of this process, in MB."""
    try:
        # Not getrusage, which on Linux also counts the process that this one was forked from.
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError):
        import resource  # not on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    model_file, model_format, height, width, count, given = sys.argv[1:]
    print(json.dumps(start(Path(model_file), model_format, (int(height), int(width)), runs=int(count), **json.loads(given))))
