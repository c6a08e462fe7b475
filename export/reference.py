"""The statistics that drift is measured against: a snapshot of the test split, as if a device had seen it.

The probabilities are those of the evaluation, calibrated as the artifact's are, so no network runs; only the pixels are decoded
again.
"""

import json
from pathlib import Path

import numpy as np

from pipeline.checkpoint import Checkpoint
from pipeline.run import Run
from pipeline.samples import ADMITTED, Sample, map_ahead, read_image, read_prepared
from serve.drift import Drift, origin_of
from serve.preprocess import preprocess
from serve.snapshots import OF_A_VERSION

MOST = 1000
"""Images, evenly spread over the test split: enough for shares of 1 %, and seconds to decode."""


def write_reference(path: Path, run: Run, checkpoint: Checkpoint) -> None:
    """Write an artifact's `statistics.json`: the same bytes whenever and under whatever version it is published.

    Raises:
        DataError: an image is gone or changed.
    """
    samples = read_prepared(run.step("prepare")).of("test")
    with np.load(run.step("evaluate") / "test.npz", allow_pickle=False) as kept:
        probabilities_NK = kept["probabilities"]
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(MOST, len(samples))).astype(int))
    spec = checkpoint.preprocess
    nothing = dict.fromkeys(OF_A_VERSION)
    drift = Drift(checkpoint.labels, spec.height, spec.width, **{**nothing, "model": run.config.artifact_name})

    def look(sample: Sample) -> tuple[np.ndarray, dict[str, int]]:
        data = read_image(sample)
        return preprocess(data, spec, ADMITTED), origin_of(data)

    seen = map_ahead(look, (samples[index] for index in chosen), ahead=16)
    for index, (pixels_HW3, origin) in zip(chosen, seen, strict=True):
        drift.observe(pixels_HW3, probabilities_NK[index], **origin)
    path.write_text(json.dumps(drift.snapshot() | nothing, allow_nan=False) + "\n", encoding="utf-8")
