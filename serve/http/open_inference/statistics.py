"""Counters of the Open Inference Protocol's statistics extension, from the start of the process.

Counters only increase. Durations are nanoseconds. The images of a request are answered in parallel, so the queue, decode and
run times of a request are those of its slowest image; its total duration is under `success` or `fail`.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from edgeline.serve.http.open_inference.models import Answer

STAGES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


class Statistics:
    """The counters of one version of one model. Used on the event loop only."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._ns: Counter[str] = Counter()
        self._images: Counter[int] = Counter()
        self._images_ns: Counter[tuple[int, str]] = Counter()
        self._last_ms = 0

    def succeeded(self, answers: Sequence[Answer], *, took_ns: int, output_ns: int) -> None:
        """Count an answered request."""
        durations = {
            "success": took_ns,
            "queue": max(answer.queue_ns for answer in answers),
            "compute_input": max(answer.decode_ns for answer in answers),
            "compute_infer": max(answer.infer_ns for answer in answers),
            "compute_output": output_ns,
        }
        self._last_ms = time.time_ns() // 10**6
        self._count.update(durations.keys())
        self._ns.update(durations)
        for answer in answers:
            self._images[answer.batch_size] += 1
            self._images_ns[answer.batch_size, "compute_input"] += answer.decode_ns
            self._images_ns[answer.batch_size, "compute_infer"] += answer.infer_ns

    def failed(self, took_ns: int) -> None:
        """Count a request that was rejected or failed."""
        self._count["fail"] += 1
        self._ns["fail"] += took_ns

    def describe(self, model: str, version: int) -> dict[str, Any]:
        """Return one entry of `model_stats`."""
        runs = {size: -(-images // size) for size, images in sorted(self._images.items())}
        return {
            "name": model,
            "version": str(version),
            "last_inference": self._last_ms,
            "inference_count": self._images.total(),
            "execution_count": sum(runs.values()),
            "inference_stats": {stage: {"count": self._count[stage], "ns": self._ns[stage]} for stage in STAGES},
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": {"count": count, "ns": self._images_ns[size, "compute_input"]},
                    # Every image of a batch has the duration of the whole run.
                    "compute_infer": {"count": count, "ns": self._images_ns[size, "compute_infer"] // size},
                    "compute_output": {"count": count, "ns": 0},
                }
                for size, count in runs.items()
            ],
            "memory_usage": [],
        }
