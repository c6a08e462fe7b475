"""Check the photos that were added since a published version, before anything is trained on them.

Three things go wrong where photos arrive by themselves, and each spoils a model that would pass every later test, because the
test images are spoiled alike: a camera that sends the same gray or black picture, a class that is no longer there, and a batch
of photos with wrong labels. The last one is found with the version in use: if it confidently classifies photos of one class as
another one, far more often than it confused these two before, their labels are suspicious. Known photos whose label has changed
are checked like new ones.

Shapes: N new photos, K classes.
"""

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.stats import binom

from edgeline.pipeline.data.samples import Prepared, Sample, map_ahead, read_image
from edgeline.serve.errors import DataError

BLANK_DEVIATION = 4.0
"""A photo whose brightness varies by less (standard deviation, of 255) shows nothing."""
BLANK_PHOTOS, BLANK_SHARE = 3, 0.1
"""So many blank photos, and at least this share of the new ones, stop a run."""
BEFORE = 200
"""Known photos that are looked at for comparison."""
SURE = 0.6
"""Probability from which an answer of the version in use counts against a label."""
FEWEST = 4
CHANCE = 1e-4
"""Probability of suspecting correct labels, over all pairs of classes."""
THUMBNAIL = 32


class InUse(NamedTuple):
    """The version in use."""

    labels: Sequence[str]
    confusion_KK: np.ndarray
    """Its test images by true and predicted class."""
    classify: Callable[[Sequence[Sample]], np.ndarray]
    """Probabilities (N, K) of samples."""


class Doubt(NamedTuple):
    """Labels that the version in use contradicts."""

    label: str
    predicted: str
    contradicted: int
    photos: int


def check_new_photos(prepared: Prepared, known: Mapping[str, str], in_use: InUse, accepted: Collection[str]) -> None:
    """Return if the new photos, and those with a new label, look right.

    Args:
        prepared: all data.
        known: label of the photos that a published version had, by their pixel digests.
        in_use: the version in use.
        accepted: codes of the errors that are to be ignored.

    Raises:
        DataError: `class_lost`, `photos_blank` or `labels_suspicious`: what was seen, with examples, and what to do.
    """
    if "class_lost" not in accepted and (lost := [label for label in in_use.labels if label not in prepared.labels]):
        raise DataError(
            f"the data has no class {', '.join(map(repr, lost))} any more, which the version in use knows; restore its photos, "
            "or accept this with --accept class_lost",
            code="class_lost",
        )
    new = [sample for sample in prepared.samples if known.get(sample.pixels) != sample.label]
    if "photos_blank" not in accepted:
        blank = find_blank(new)
        if len(blank) >= BLANK_PHOTOS and len(blank) >= (BLANK_SHARE + _usually_blank(prepared, known)) * len(new):
            raise DataError(
                f"{len(blank):,} of {len(new):,} new photos show nothing, {_examples(blank)} for example: a covered or broken "
                "camera? Remove them, or accept this with --accept photos_blank",
                code="photos_blank",
            )
    if "labels_suspicious" not in accepted and (doubts := find_doubtful_labels(new, in_use)):
        seen = "; ".join(
            f"{each.contradicted} of {each.photos} new photos labeled {each.label!r} are taken for {each.predicted!r}"
            for each in doubts[:3]
        )
        raise DataError(
            f"{seen}, by the version in use, which rarely confused these before: wrong labels? Check the new photos, or accept "
            "this with --accept labels_suspicious",
            code="labels_suspicious",
        )


def find_blank(samples: Sequence[Sample]) -> list[Sample]:
    """The samples whose picture shows nothing: black, white or of one brightness."""
    deviations = map_ahead(_deviation, samples, ahead=64)
    return [sample for sample, deviation in zip(samples, deviations, strict=True) if deviation < BLANK_DEVIATION]


def _usually_blank(prepared: Prepared, known: Collection[str]) -> float:
    """Share of the photos of before that show nothing: data of plain colors is no broken camera."""
    before = [sample for sample in prepared.samples if sample.pixels in known][:BEFORE]
    return len(find_blank(before)) / len(before) if before else 0.0


def find_doubtful_labels(new: Sequence[Sample], in_use: InUse) -> list[Doubt]:
    """Pairs of classes that the version in use confuses in the new photos far more often than in its test images."""
    samples = [sample for sample in new if sample.label in in_use.labels]
    if not samples:
        return []
    probabilities_NK = in_use.classify(samples)
    predicted_N = np.where(probabilities_NK.max(1) >= SURE, probabilities_NK.argmax(1), -1)
    true_N = np.array([in_use.labels.index(sample.label) for sample in samples])
    support_K = in_use.confusion_KK.sum(1)
    found = []
    for true in np.unique(true_N).tolist():
        of_N = predicted_N[true_N == true]
        for other in np.unique(of_N[(of_N >= 0) & (of_N != true)]).tolist():
            contradicted = int((of_N == other).sum())
            rate = (in_use.confusion_KK[true, other] + 1) / (support_K[true] + 2)
            by_chance = float(binom.sf(contradicted - 1, len(of_N), rate))
            if contradicted >= FEWEST and by_chance < CHANCE / len(in_use.labels) ** 2:
                found.append(Doubt(in_use.labels[true], in_use.labels[other], contradicted, len(of_N)))
    return sorted(found, key=lambda each: -each.contradicted)


def _deviation(sample: Sample) -> float:
    """Standard deviation of the brightness of a small version."""
    with Image.open(io.BytesIO(read_image(sample))) as image:
        image.draft("L", (THUMBNAIL, THUMBNAIL))
        return float(np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).std())


def _examples(samples: Sequence[Sample]) -> str:
    return ", ".join(sample.name for sample in samples[:2])
