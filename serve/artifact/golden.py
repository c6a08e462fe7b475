"""Golden samples: real images in the artifact, with the pixels and probabilities PyTorch gave for them.

A device that answers them within tolerance decodes, preprocesses and computes as the machine that proved the model. The
file's pixels and its probabilities are compared apart, so a failure says which half differs. The model also answers the
stored pixels, and there its logits are compared: a confident model's probabilities are 0 and 1 to the last bit and hide what
becomes of its weights.

`golden/golden.json`:
    {"tolerance": 0.001, "pixel_tolerance": 2.0,
     "samples": [{"file": "golden/0.jpg", "pixels": "golden/0.pixels.png", "label": "ants",
                  "probabilities": [0.98, ...], "logits": [7.1, ...],
                  "variants": {"onnx-int8": {"probabilities": [0.97, ...], "logits": [6.9, ...]}}}, ...],
     "variants": {"onnx-int8": {"tolerance": 0.15, "logit_tolerance": 0.06}}}

A variant that is named there has answers and a tolerance of its own: those of its file where it was proven, or in float16
PyTorch's with wider tolerances. Any other is held
against PyTorch's.
"""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from edgeline.serve.artifact.reader import Artifact
from edgeline.serve.errors import GoldenError, ImageError
from edgeline.serve.preprocess import preprocess

FILE_NAME = "golden/golden.json"
EXPLAINS = 0.25
"""A guess explains a difference of pixels of which it leaves less than this share."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the golden samples showed on this machine."""

    samples: int
    max_difference: float
    """Largest difference of a probability, from the file's bytes on."""
    max_logit_difference: float
    """Largest difference of a logit, from the stored pixels on, as a share of the sample's largest."""
    max_pixel_difference: float
    """Largest mean difference of an image's pixels, in levels of 0 to 255."""
    tolerance: float
    """Of probabilities."""
    logit_tolerance: float
    pixel_tolerance: float


def prove(
    artifact: Artifact,
    answer: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    variant: str | None = None,
    evidence: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Proof:
    """Have this machine answer an artifact's golden samples.

    Args:
        artifact: checked by `open_artifact`.
        answer: uint8 (N, H, W, 3) to probabilities and logits, float32 (N, K): the model as this machine runs it.
        variant: the name of what `answer` runs; the reference where not given.
        evidence: uint8 (N, H, W, 3) to each class's evidence at each place, float32 (N, K, h, w), of a model that gives it.

    Returns:
        What was measured; every sample is within tolerance.

    Raises:
        GoldenError: a sample's pixels, probabilities, logits or best class differ, or its evidence adds up to other logits.
    """
    golden = _read(artifact, variant)
    largest = largest_logits = largest_pixels = 0.0
    for sample in golden["samples"]:
        expected_HW3 = _read_pixels(artifact, sample["pixels"])
        pixels_HW3 = _preprocess(artifact, sample["file"])
        pixel_difference = _mean_difference(sample["file"], pixels_HW3, expected_HW3)
        if pixel_difference > golden["pixel_tolerance"]:
            raise GoldenError(
                f"{sample['file']}: this machine's preprocessing gives other pixels (mean difference {pixel_difference:.1f} of "
                f"255, tolerated {golden['pixel_tolerance']}); {likely_fault(expected_HW3, pixels_HW3)}"
            )
        expected_K = sample["probabilities"]
        [observed_K], _ = answer(pixels_HW3[None])
        if observed_K.shape != expected_K.shape:
            raise GoldenError(f"{sample['file']}: the model gives {observed_K.size} classes, the sample has {expected_K.size}")
        label = artifact.manifest.labels[int(np.argmax(sample.get("reference", expected_K)))]
        if label != sample["label"]:
            raise GoldenError(
                f"{sample['file']} is {sample['label']!r}, the labels make it {label!r}: they are not in the model's order"
            )
        difference = float(np.abs(observed_K - expected_K).max())
        if not difference <= golden["tolerance"]:
            raise GoldenError(
                f"{sample['file']}: a probability differs by {difference:.2g}, tolerated {golden['tolerance']:.2g}, although "
                "the pixels agree; the model or the runtime computes something else here"
            )
        _, [logits_K] = answer(expected_HW3[None])
        logit_difference = float(np.abs(logits_K - sample["logits"]).max() / max(1.0, np.abs(sample["logits"]).max()))
        if not logit_difference <= golden["logit_tolerance"]:
            raise GoldenError(
                f"{sample['file']}: on the stored pixels a logit differs by {logit_difference:.2g} of the largest, tolerated "
                f"{golden['logit_tolerance']:.2g}; the model or the runtime computes something else here"
            )
        if evidence is not None:
            places_NKhw = evidence(expected_HW3[None])
            if places_NKhw.ndim != 4 or places_NKhw.shape[1] != logits_K.size:
                raise GoldenError(
                    f"{sample['file']}: the model's evidence has the shape {places_NKhw.shape}, expected (1, K, h, w)"
                )
            added_K = places_NKhw[0].mean((1, 2))
            off = float(np.abs(added_K - logits_K).max() / max(1.0, np.abs(logits_K).max()))
            if not off <= golden["logit_tolerance"]:
                raise GoldenError(
                    f"{sample['file']}: what the model says of places adds up to other logits than it gives (off by {off:.2g} "
                    f"of the largest, tolerated {golden['logit_tolerance']:.2g}); its explanations are not of its answers"
                )
        largest, largest_pixels = max(largest, difference), max(largest_pixels, pixel_difference)
        largest_logits = max(largest_logits, logit_difference)
    return Proof(
        len(golden["samples"]),
        largest,
        largest_logits,
        largest_pixels,
        golden["tolerance"],
        golden["logit_tolerance"],
        golden["pixel_tolerance"],
    )


def likely_fault(expected_HW3: np.ndarray, observed_HW3: np.ndarray) -> str:
    """Say what was done otherwise, where a simple guess explains most of the difference, else where to look."""
    if np.ptp(expected_HW3) and expected_HW3.shape == observed_HW3.shape:
        turned = [np.rot90(side_HW3, k) for side_HW3 in (observed_HW3, observed_HW3[:, ::-1]) for k in range(4)][1:]
        guesses = {
            "red and blue are exchanged": [observed_HW3[..., ::-1]],
            "it is turned or mirrored, as if its EXIF orientation were not read": turned,
        }
        unlike = EXPLAINS * _difference(expected_HW3, observed_HW3)
        for guess, tries in guesses.items():
            if any(t.shape == expected_HW3.shape and _difference(expected_HW3, t) < unlike for t in tries):
                return guess
    return "look at its image decoder, its crop and its filter"


def _read(artifact: Artifact, variant: str | None) -> dict[str, Any]:
    try:
        golden = json.loads(artifact.read(FILE_NAME))
        if (own := golden.get("variants", {}).get(variant)) is not None:
            golden |= own
            for sample in golden["samples"]:
                sample["reference"] = sample["probabilities"]
                sample |= sample["variants"][variant]
        golden.setdefault("logit_tolerance", golden["tolerance"])
        if not golden["samples"]:
            raise GoldenError(f"{FILE_NAME} holds no samples; an artifact that cannot prove itself is not used")
        for name in ("tolerance", "logit_tolerance", "pixel_tolerance"):
            golden[name] = float(golden[name])
            if not 0 <= golden[name] < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {golden[name]}")
        for sample in golden["samples"]:
            if not sample.keys() >= {"file", "pixels", "label", "probabilities", "logits"}:
                raise ValueError("a sample must have file, pixels, label, probabilities and logits")
            for name in ("probabilities", "logits"):
                sample[name] = np.asarray(sample[name], dtype=np.float32)
                if not np.isfinite(sample[name]).all():
                    raise ValueError(f"one of the {name} is not finite")
            if sample["logits"].shape != sample["probabilities"].shape:
                raise ValueError("a sample must have as many logits as probabilities")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GoldenError(f"{FILE_NAME} cannot be read: {error}; publish the artifact again") from error
    return dict(golden)


def _preprocess(artifact: Artifact, path: str) -> np.ndarray:
    try:
        return preprocess(artifact.read(path), artifact.manifest.preprocess)
    except ImageError as error:
        raise GoldenError(f"{path}: {error}; it decoded where the model was proven, look at this machine's decoder") from error


def _read_pixels(artifact: Artifact, path: str) -> np.ndarray:
    data = artifact.read(path)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.asarray(image)
    except Exception as error:  # see serve.preprocess.decode_image for what Pillow's decoders raise
        raise GoldenError(f"{path} is no PNG of a sample's pixels; publish the artifact again") from error


def _mean_difference(name: str, pixels_HW3: np.ndarray, expected_HW3: np.ndarray) -> float:
    if pixels_HW3.shape != expected_HW3.shape:
        raise GoldenError(f"{name}: preprocessing gives the shape {pixels_HW3.shape}, the sample has {expected_HW3.shape}")
    return _difference(expected_HW3, pixels_HW3)


def _difference(one_HW3: np.ndarray, other_HW3: np.ndarray) -> float:
    return float(np.abs(one_HW3.astype(np.int16) - other_HW3).mean())
