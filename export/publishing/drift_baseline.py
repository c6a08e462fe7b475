"""The baseline of drift: a snapshot of the test split, as a device would record it.

The probabilities are those of the evaluation, calibrated as the artifact's are, so no network runs; only the pixels are decoded
again. If the artifact has embeddings, the mean and variance of the training images' embeddings are stored too, and how far the
test images' are from them: these are computed by the shipped file.

Shapes: N images, C features, H x W the model's input.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeline.export import file_names
from edgeline.pipeline.data.samples import Sample, map_ahead, read_image, read_pixels, read_prepared, stream_pixels
from edgeline.pipeline.models.checkpoint import Checkpoint
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.run import Run
from edgeline.serve.artifact.cam_outputs import EMBEDDING
from edgeline.serve.artifact.training_features import FILE_NAME as FEATURES_NAME
from edgeline.serve.artifact.training_features import SCHEMA, Features
from edgeline.serve.drift.collector import Drift, Origin, origin_of
from edgeline.serve.drift.report import FILE_NAME
from edgeline.serve.drift.snapshot import OF_A_VERSION
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.session import create_session

MAX_IMAGES = 1000
"""Images, evenly spread over a split: enough for shares of 1 %, decoded in seconds."""
BATCH = 16


def write_baseline(folder: Path, run: Run, checkpoint: Checkpoint) -> None:
    """Write an artifact's `statistics.json`, and its `embedding.json` if it has embeddings.

    On one machine the bytes do not depend on the time or the version.

    Raises:
        DataError: an image is missing or has changed.
    """
    prepared = read_prepared(run.step("prepare"))
    test = prepared.of("test")
    with np.load(run.step("evaluate") / "test.npz", allow_pickle=False) as arrays:
        probabilities_NK = arrays["probabilities"]
    chosen = _spread(len(test))
    spec = checkpoint.preprocess
    features, session = None, None
    if run.config.export.explain:
        session = create_session((folder / file_names.MODEL).read_bytes())
        train = prepared.of("train")
        features = _features(session, [train[index] for index in _spread(len(train))], spec)
        baseline: dict[str, Any] = {"schema": SCHEMA, "images": min(MAX_IMAGES, len(train))}
        baseline |= {"mean": features.mean_C.tolist(), "variance": features.variance_C.tolist()}
        (folder / FEATURES_NAME).write_text(json.dumps(baseline, allow_nan=False) + "\n", encoding="utf-8")
    nothing = dict.fromkeys(OF_A_VERSION)
    identity = {**nothing, "model": run.config.artifact_name}
    drift = Drift(checkpoint.labels, spec.height, spec.width, features, **identity)

    def decode(sample: Sample) -> tuple[np.ndarray, Origin]:
        return read_pixels(sample, spec), origin_of(read_image(sample))

    decoded = map_ahead(decode, (test[index] for index in chosen), ahead=16)
    for index, (pixels_HW3, origin) in zip(chosen, decoded, strict=True):
        embedding_C = None if session is None else _embed(session, pixels_HW3[None])[0]
        drift.observe(pixels_HW3, probabilities_NK[index], origin, embedding_C=embedding_C)
    (folder / FILE_NAME).write_text(json.dumps(drift.snapshot() | nothing, allow_nan=False) + "\n", encoding="utf-8")


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(MAX_IMAGES, count)).astype(int))


def _features(session: Any, samples: Sequence[Sample], spec: PreprocessSpec) -> Features:
    """Mean and variance of the training images' embeddings."""
    batches = track(stream_pixels(samples, spec, BATCH), "embedding training images", len(samples), step=BATCH)
    embedding_NC = np.concatenate([_embed(session, batch_NHW3) for batch_NHW3 in batches]).astype(np.float64)
    return Features(embedding_NC.mean(0), embedding_NC.var(0))


def _embed(session: Any, pixels_NHW3: np.ndarray) -> np.ndarray:
    """The embeddings of images, float32 (N, C)."""
    [embedding_NC] = session.run([EMBEDDING], {"image": pixels_NHW3})
    return np.asarray(embedding_NC)
