"""Golden samples: real images in the artifact, with the pixels and outputs of the training environment.

If the outputs of a device are within tolerance, it decodes, preprocesses and computes like the machine that verified the model.
Pixels and probabilities are compared separately, so a failure shows which half differs. The model is also run on the stored
pixels, and there its logits are compared: the probabilities of a confident model are 0 and 1 to the last bit and hide changes
of its weights.

`golden/golden.json`:
    {"tolerance": 0.001, "pixel_tolerance": 2.0,
     "samples": [{"file": "golden/0.jpg", "pixels": "golden/0.pixels.png", "label": "ants",
                  "probabilities": [0.98, ...], "logits": [7.1, ...],
                  "variants": {"onnx-int8": {"probabilities": [0.97, ...], "logits": [6.9, ...]}}}, ...],
     "variants": {"onnx-int8": {"tolerance": 0.15, "logit_tolerance": 0.06}}}

A variant listed under `variants` has its own expected outputs and tolerances: those of its file on the machine that verified
it, or for float16 those of PyTorch with wider tolerances. Any other variant is compared with PyTorch's outputs.
"""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from edgeline.serve.artifact.pixel_difference import likely_cause, mean_difference
from edgeline.serve.artifact.reader import Artifact
from edgeline.serve.errors import GoldenError, ImageError
from edgeline.serve.preprocess import preprocess

FILE_NAME = "golden/golden.json"


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Result of the golden samples on this machine."""

    samples: int
    max_difference: float
    """Largest difference of a probability, from the file's bytes on."""
    max_logit_difference: float
    """Largest difference of a logit, from the stored pixels on, as a fraction of the sample's largest."""
    max_pixel_difference: float
    """Largest mean difference of an image's pixels, in levels of 0 to 255."""
    tolerance: float
    """Of probabilities."""
    logit_tolerance: float
    pixel_tolerance: float


def run_self_test(
    artifact: Artifact,
    answer: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    variant: str | None = None,
    evidence: Callable[[np.ndarray], np.ndarray] | None = None,
) -> SelfTest:
    """Run an artifact's golden samples on this machine.

    Args:
        artifact: opened with `open_artifact`.
        answer: uint8 (N, H, W, 3) to probabilities and logits, float32 (N, K): the model as this machine runs it.
        variant: the name of the variant that `answer` runs; by default the reference.
        evidence: uint8 (N, H, W, 3) to class activation maps, float32 (N, K, h, w), if the model has them.

    Returns:
        The measured differences; all are within tolerance.

    Raises:
        GoldenError: a sample's pixels, probabilities, logits or best class differ, or its maps do not add up to its logits.
    """
    golden = _read(artifact, variant)
    largest = largest_logits = largest_pixels = 0.0
    for sample in golden["samples"]:
        expected_HW3 = _read_pixels(artifact, sample["pixels"])
        pixels_HW3 = _preprocess(artifact, sample["file"])
        pixel_difference = _compare_pixels(sample["file"], expected_HW3, pixels_HW3, golden["pixel_tolerance"])
        difference = _compare_probabilities(artifact, sample, answer(pixels_HW3[None])[0][0], golden["tolerance"])
        _, [logits_K] = answer(expected_HW3[None])
        logit_difference = relative_difference(logits_K, sample["logits"])
        if not logit_difference <= golden["logit_tolerance"]:
            raise GoldenError(
                f"{sample['file']}: on the stored pixels a logit differs by {logit_difference:.2g} of the largest, tolerated "
                f"{golden['logit_tolerance']:.2g}; the model or the runtime computes something else on this machine"
            )
        if evidence is not None:
            _check_maps(sample["file"], evidence(expected_HW3[None]), logits_K, golden["logit_tolerance"])
        largest, largest_pixels = max(largest, difference), max(largest_pixels, pixel_difference)
        largest_logits = max(largest_logits, logit_difference)
    return SelfTest(
        len(golden["samples"]),
        largest,
        largest_logits,
        largest_pixels,
        golden["tolerance"],
        golden["logit_tolerance"],
        golden["pixel_tolerance"],
    )


def _compare_pixels(file: str, expected_HW3: np.ndarray, pixels_HW3: np.ndarray, tolerance: float) -> float:
    if pixels_HW3.shape != expected_HW3.shape:
        raise GoldenError(f"{file}: preprocessing produces the shape {pixels_HW3.shape}, the sample has {expected_HW3.shape}")
    difference = mean_difference(expected_HW3, pixels_HW3)
    if difference > tolerance:
        raise GoldenError(
            f"{file}: preprocessing on this machine produces different pixels (mean difference {difference:.1f} of 255, "
            f"tolerated {tolerance}); {likely_cause(expected_HW3, pixels_HW3)}"
        )
    return difference


def _compare_probabilities(artifact: Artifact, sample: dict[str, Any], observed_K: np.ndarray, tolerance: float) -> float:
    expected_K = sample["probabilities"]
    if observed_K.shape != expected_K.shape:
        raise GoldenError(f"{sample['file']}: the model has {observed_K.size} classes, the sample has {expected_K.size}")
    label = artifact.manifest.labels[int(np.argmax(sample.get("reference", expected_K)))]
    if label != sample["label"]:
        raise GoldenError(
            f"{sample['file']} is {sample['label']!r}, but its class is {label!r} in the list of labels: the labels are not in "
            "the model's order"
        )
    difference = float(np.abs(observed_K - expected_K).max())
    if not difference <= tolerance:
        raise GoldenError(
            f"{sample['file']}: a probability differs by {difference:.2g}, tolerated {tolerance:.2g}, although the pixels "
            "agree; the model or the runtime computes something else on this machine"
        )
    return difference


def _check_maps(file: str, maps_NKhw: np.ndarray, logits_K: np.ndarray, tolerance: float) -> None:
    if maps_NKhw.ndim != 4 or maps_NKhw.shape[1] != logits_K.size:
        raise GoldenError(f"{file}: the model's evidence has the shape {maps_NKhw.shape}, expected (1, K, h, w)")
    difference = relative_difference(maps_NKhw[0].mean((1, 2)), logits_K)
    if not difference <= tolerance:
        raise GoldenError(
            f"{file}: the class activation maps do not add up to the logits (off by {difference:.2g} of the largest, tolerated "
            f"{tolerance:.2g}), so they do not explain the predictions; publish the artifact again"
        )


def relative_difference(observed_K: np.ndarray, expected_K: np.ndarray) -> float:
    """Largest difference of a logit, as a fraction of the largest expected one (at least 1)."""
    return float(np.abs(observed_K - expected_K).max() / max(1.0, np.abs(expected_K).max()))


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
            raise GoldenError(f"{FILE_NAME} has no samples, so the artifact cannot be verified; publish it again")
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
                raise ValueError("a sample must have the same number of logits and probabilities")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GoldenError(f"{FILE_NAME} cannot be read: {error}; publish the artifact again") from error
    return dict(golden)


def _preprocess(artifact: Artifact, path: str) -> np.ndarray:
    try:
        return preprocess(artifact.read(path), artifact.manifest.preprocess)
    except ImageError as error:
        raise GoldenError(
            f"{path}: {error}; the machine that verified the model decoded it, check the decoder of this machine"
        ) from error


def _read_pixels(artifact: Artifact, path: str) -> np.ndarray:
    data = artifact.read(path)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.asarray(image)
    except Exception as error:  # see serve.preprocess.decode_image for what Pillow's decoders raise
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise GoldenError(f"{path} is not a PNG file{reason}; publish the artifact again") from error
