"""What an evaluation shows with pictures: label errors, mistakes with their heatmaps, the learning curve, slices by columns.

It is written beside `evaluation.json`: `insight.json`, `label_errors.csv` with all of them, and the pictures. The report shows
the pictures; the other files stay with the run.

Shapes: M training and validation images, N test images, D features, K classes, H x W the model's input.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from edgeline.pipeline.data.samples import Prepared, Sample, stream_pixels
from edgeline.pipeline.evaluation.label_errors import find_label_errors
from edgeline.pipeline.evaluation.learning_curve import LearningCurve, Table, learning_curve
from edgeline.pipeline.evaluation.metrics import best_temperature, softmax
from edgeline.pipeline.evaluation.report import Record
from edgeline.pipeline.evaluation.slices import Slice
from edgeline.pipeline.explanation.heatmaps import compute_heatmaps
from edgeline.pipeline.explanation.pictures import save_heatmap, save_picture
from edgeline.pipeline.models.backbones import Network, build
from edgeline.pipeline.models.checkpoint import OUT_OF_FOLD
from edgeline.pipeline.models.frozen_features import backbone_digest
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.training.features import FeatureExtractor
from edgeline.serve.errors import ConfigError, WeightsError
from edgeline.serve.preprocess import PreprocessSpec

FILE_NAME = "insight.json"
PICTURES = "pictures"
MAX_PICTURED = {"mistakes": 8, "label_errors": 24}
"""The heatmaps of a mistake take a fifth of a second."""


class LabelError(Record):
    """An image that is probably labeled wrongly."""

    image: str
    split: str
    label: str
    suggested: str
    label_probability: float = Field(description="Out-of-fold probability of the label.")
    suggested_probability: float
    picture: str | None = Field(None, description="File with the picture; null for all but the most suspicious.")


class MistakePictures(Record):
    """The pictures of a test image that was classified wrongly."""

    image: str
    label: str
    predicted: str
    probability: float
    picture: str
    cam: str | None = Field(description="Class activation map of the predicted class; null for a network without.")
    gradient: str = Field(description="Input gradient of the predicted class's logit.")


class Insight(Record):
    """The content of `insight.json`."""

    labels_checked: int = Field(description="Images whose label was checked; 0 without out-of-fold probabilities.")
    label_errors: list[LabelError] = Field(description="The most suspicious first.")
    learning_curve: LearningCurve | None
    slices: list[Slice]
    mistakes: list[MistakePictures] = Field(description="The most confident first.")


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A run's network with its answers to the test images."""

    run: Run
    prepared: Prepared
    network: Network
    """On the CPU, in evaluation mode."""
    spec: PreprocessSpec
    features_ND: np.ndarray
    probabilities_NK: np.ndarray


def write_insight(folder: Path, insight: Insight) -> None:
    """Write `insight.json`, and `label_errors.csv` if there are any."""
    (folder / FILE_NAME).write_text(insight.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if insight.label_errors:
        with (folder / "label_errors.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [error.model_dump(exclude={"picture"}) for error in insight.label_errors]
            writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)


def read_insight(folder: Path) -> Insight | None:
    """Read `insight.json` from an evaluate step's folder; None in one of an earlier version."""
    path = folder / FILE_NAME
    return Insight.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def check_labels(evaluated: Evaluated, folder: Path) -> tuple[int, list[LabelError]]:
    """Find label errors among the training and validation images, and write the pictures of the most suspicious.

    Returns:
        The number of images that were checked, and those that are probably labeled wrongly.
    """
    path = evaluated.run.step("train") / OUT_OF_FOLD
    if not path.is_file():
        return 0, []
    with np.load(path, allow_pickle=False) as saved:
        logits_MK, targets_M, images = saved["logits"], saved["targets"], saved["images"].tolist()
    samples = {sample.sha256: sample for sample in evaluated.prepared.samples}
    probabilities_MK = softmax(logits_MK / best_temperature(logits_MK, targets_M))
    found = find_label_errors(probabilities_MK, targets_M)
    suspicious = [samples[images[index]] for index in found.indices]
    pictured = suspicious[: MAX_PICTURED["label_errors"]]
    pictures = [f"{PICTURES}/label-{number:02}.jpg" for number in range(len(pictured))]
    for name, pixels_HW3 in zip(pictures, _pixels(pictured, evaluated.spec), strict=True):
        save_picture(folder / name, pixels_HW3)
    labels = evaluated.prepared.labels
    return len(targets_M), [
        LabelError(
            image=sample.name,
            split=sample.split,
            label=sample.label,
            suggested=labels[suggested],
            label_probability=float(probabilities_MK[index, sample.index]),
            suggested_probability=float(probabilities_MK[index, suggested]),
            picture=picture,
        )
        for index, suggested, sample, picture in zip(
            found.indices, found.suggested, suspicious, [*pictures, *[None] * (len(suspicious) - len(pictures))], strict=True
        )
    ]


def picture_mistakes(evaluated: Evaluated, folder: Path) -> list[MistakePictures]:
    """Write pictures and heatmaps of the most confident mistakes in the test split."""
    test, probabilities_NK = evaluated.prepared.of("test"), evaluated.probabilities_NK
    predicted_N = probabilities_NK.argmax(1)
    wrong = [index for index, sample in enumerate(test) if predicted_N[index] != sample.index]
    wrong = sorted(wrong, key=lambda index: -probabilities_NK[index].max())[: MAX_PICTURED["mistakes"]]
    found = []
    for number, (index, pixels_HW3) in enumerate(
        zip(wrong, _pixels([test[index] for index in wrong], evaluated.spec), strict=True)
    ):
        sample, name = test[index], f"{PICTURES}/mistake-{number:02}"
        maps = compute_heatmaps(evaluated.network, pixels_HW3[None], predicted_N[[index]])
        save_picture(folder / f"{name}.jpg", pixels_HW3)
        save_heatmap(folder / f"{name}-gradient.jpg", pixels_HW3, maps.gradient_NHW[0])
        if maps.cam_Nhw is not None:
            save_heatmap(folder / f"{name}-cam.jpg", pixels_HW3, maps.cam_Nhw[0])
        found.append(
            MistakePictures(
                image=sample.name,
                label=sample.label,
                predicted=evaluated.prepared.labels[predicted_N[index]],
                probability=float(probabilities_NK[index].max()),
                picture=f"{name}.jpg",
                cam=None if maps.cam_Nhw is None else f"{name}-cam.jpg",
                gradient=f"{name}-gradient.jpg",
            )
        )
    return found


def measure_curve(evaluated: Evaluated, folder: Path, device: torch.device) -> LearningCurve | None:
    """Measure the learning curve on the features of the frozen backbone, which training has cached.

    Returns:
        None if training had no such features, if the pretrained weights are not there any more, or for too few images.
    """
    run, prepared = evaluated.run, evaluated.prepared
    if not (run.step("train") / OUT_OF_FOLD).is_file():
        return None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.config.seed)  # of the weights that are not loaded, as in training
            frozen, _ = build(
                run.config.model, run.config.weights, classes=len(prepared.labels), preprocess=run.config.preprocess
            )
    except (ConfigError, WeightsError):
        return None
    extractor = FeatureExtractor(frozen, evaluated.spec, ContentCache(run.config.cache / "features.sqlite"), device)
    learned, test = [*prepared.of("train"), *prepared.of("val")], prepared.of("test")
    files = folder / "learned.npy", folder / "test.npy"
    try:
        train = _table(extractor.compute(learned, files[0]), learned)
        own = backbone_digest(frozen) == backbone_digest(evaluated.network)
        test_ND = evaluated.features_ND if own else extractor.compute(test, files[1])
        return learning_curve(train, _table(test_ND, test), list(prepared.labels), seed=run.config.seed)
    finally:
        for path in files:
            path.unlink(missing_ok=True)  # the cache has them


def _table(features_ND: np.ndarray, samples: Sequence[Sample]) -> Table:
    return Table(
        features_ND=features_ND,
        targets_N=np.array([sample.index for sample in samples]),
        groups_N=np.array([sample.group for sample in samples]),
    )


def _pixels(samples: Sequence[Sample], spec: PreprocessSpec) -> Iterator[np.ndarray]:
    """The model's input of each sample, uint8 (H, W, 3)."""
    for batch_1HW3 in stream_pixels(samples, spec, 1):
        yield batch_1HW3[0]
