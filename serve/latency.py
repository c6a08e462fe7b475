"""How long one image takes on this machine, from its bytes to its probabilities."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.preprocess import PreprocessSpec, preprocess


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
