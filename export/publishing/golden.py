"""Choose and write the golden samples of an artifact.

They are held-out photos of the user's own, encoded again at most 1,024 pixels wide and without metadata (a photo's EXIF has the
place where it was taken). One of them is stored a second time, turned on its side, with the EXIF tag for it: ignoring that tag
is the most common fault of new devices. It is the photo whose pixels change most when it is turned. If it is large enough, it
is stored up to twice as wide, so that a device decodes it scaled. PyTorch's outputs are computed from exactly these bytes.
"""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from edgeline.export.converters.environments import FOLDER, opened
from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.publishing.report import write_golden_page
from edgeline.export.variant_registry import VariantSpec
from edgeline.pipeline.config import PublishConfig
from edgeline.pipeline.data.samples import ADMITTED, Sample, map_ahead, read_image
from edgeline.pipeline.models.devices import one_thread
from edgeline.pipeline.runs.atomic_files import write_json
from edgeline.serve.artifact.golden import FILE_NAME
from edgeline.serve.preprocess import EXIF_ORIENTATION, PreprocessSpec, crop_box, decode_image, fit, jpeg_scale, preprocess

MAX_SIDE = 1024
CLEAR_MARGIN = 0.05
"""Margin between the best two classes that a golden sample should have, so that no rounding can flip it."""


@dataclass(frozen=True, kw_only=True)
class _GoldenSample:
    """An encoded photo, and PyTorch's outputs for it."""

    data: bytes
    suffix: str
    pixels_HW3: np.ndarray
    label: str
    margin: float
    probabilities: list[float]
    logits: list[float]


@dataclass(frozen=True, kw_only=True)
class GoldenSource:
    """What golden samples are made from."""

    deployed: CalibratedModel
    """The network, whose outputs become the expected ones."""
    spec: PreprocessSpec
    labels: Sequence[str]
    """Class names in index order."""
    samples: Sequence[Sample]
    """Held-out images to choose from."""


def write_golden(
    folder: Path,
    source: GoldenSource,
    config: PublishConfig,
    *,
    variants: Sequence[VariantSpec] = (),
    environments: Path = FOLDER,
) -> None:
    """Write `golden/` below an artifact's folder.

    The reference's expected outputs are PyTorch's. `export.tolerances.PRECISIONS` determines which other variants have their
    own expected outputs, and with which tolerances.

    Args:
        folder: of the artifact.
        source: the network and the images.
        config: how many, and the tolerances.
        variants: those whose files are in the folder.
        environments: where the runtimes of other formats are installed.
    """
    (folder / FILE_NAME).parent.mkdir()
    source.deployed.eval()
    chosen: list[_GoldenSample] = []
    turned: Sample | None = None
    most = -1.0
    candidates = choose(source.samples, config.golden * 3, source.spec)
    for position, sample in enumerate(candidates):
        image, suffix = _shrunk(sample)
        golden_sample = _run_sample(source, _encode(image, suffix), suffix)
        # Towards the end all candidates count, so that there are not too few.
        if golden_sample.margin < CLEAR_MARGIN and len(candidates) - position >= config.golden - len(chosen):
            continue
        chosen.append(golden_sample)
        if (change := _change_by_turning(image, source.spec)) > most:
            turned, most = sample, change
        if len(chosen) + 1 >= config.golden:
            break
    assert turned is not None, "there is at least one held-out image"
    data = _encode(_scaled(turned, source.spec).transpose(Image.Transpose.ROTATE_90), ".jpg", orientation=6)
    chosen.insert(0, _run_sample(source, data, ".turned.jpg"))
    written = [_write_sample(folder, index, golden_sample) for index, golden_sample in enumerate(chosen)]
    golden: dict[str, Any] = {
        "tolerance": config.golden_tolerance,
        "pixel_tolerance": config.golden_pixel_tolerance,
        "samples": written,
    }
    pixels_NHW3 = np.stack([golden_sample.pixels_HW3 for golden_sample in chosen])
    for variant in variants:
        thresholds = variant.thresholds
        if thresholds.golden_outputs == "reference":
            continue
        golden.setdefault("variants", {})[variant.name] = _tolerances(variant, config)
        if thresholds.golden_outputs == "PyTorch":
            outputs = [(entry["probabilities"], entry["logits"]) for entry in written]
        else:
            with opened(variant.format, folder / variant.file, environments) as session:
                arrays = session.run(["probabilities", "logits"], {"image": pixels_NHW3})
            outputs = list(zip(*(array_NK.astype(float).tolist() for array_NK in arrays), strict=True))
        for entry, (probabilities, logits) in zip(written, outputs, strict=True):
            entry.setdefault("variants", {})[variant.name] = {"probabilities": probabilities, "logits": logits}
    write_json(folder / FILE_NAME, golden)
    write_golden_page((folder / FILE_NAME).with_name("README.md"), golden)


def _tolerances(variant: VariantSpec, config: PublishConfig) -> dict[str, float]:
    probability, logit = variant.thresholds.golden_tolerance, variant.thresholds.golden_logit_tolerance
    tolerances = {"tolerance": config.golden_tolerance if probability is None else probability}
    return tolerances if logit is None else tolerances | {"logit_tolerance": logit}


def choose(samples: Sequence[Sample], count: int, spec: PreprocessSpec) -> list[Sample]:
    """Choose samples in turn from every class, for as many classes as possible, those that reveal most faults first."""
    # Large ones first: a photo that is not shrunk cannot show whether a device uses antialiasing.
    candidates = _in_turn(sorted(samples, key=lambda s: -min(MAX_SIDE, s.width, s.height)))[:count]
    scores = list(map_ahead(lambda sample: _sensitivity(_shrunk(sample)[0], spec), candidates, ahead=16))
    order = sorted(range(len(candidates)), key=lambda i: scores[i], reverse=True)
    return _in_turn([candidates[i] for i in order])


def _in_turn(samples: Sequence[Sample]) -> list[Sample]:
    by_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_class[sample.index].append(sample)
    rounds = max(len(group) for group in by_class.values())
    return [group[r] for r in range(rounds) for _, group in sorted(by_class.items()) if r < len(group)]


def _sensitivity(image: Image.Image, spec: PreprocessSpec) -> tuple[float, float]:
    """How much the two most common faults of resizing, no antialiasing and another filter, change an image; the smaller first.

    Mean differences of pixels, of 255. Flat or blurred images hardly change.
    """
    other = "bicubic" if spec.interpolation == "bilinear" else "bilinear"
    filtered = fit(image, replace(spec, interpolation=other))
    right = fit(image, spec)
    left, _, right_edge, _ = box = crop_box(image.width, image.height, spec)
    smoothing = 0.0
    if right_edge - left > spec.width:  # enlarging needs none
        kind = Image.Resampling.BILINEAR if spec.interpolation == "bilinear" else Image.Resampling.BICUBIC
        unsmoothed = np.asarray(image.transform((spec.width, spec.height), Image.Transform.EXTENT, box, kind))
        smoothing = _mean_difference(right, unsmoothed)
    less, more = sorted((_mean_difference(right, filtered), smoothing))
    return less, more


def _scaled(sample: Sample, spec: PreprocessSpec) -> Image.Image:
    """The photo at the size of a golden sample, or up to twice that if only then its JPEG is decoded scaled."""
    usual, larger = (_shrunk(sample, side)[0] for side in (MAX_SIDE, 2 * MAX_SIDE))
    return larger if jpeg_scale(*usual.size, spec) == 1 < jpeg_scale(*larger.size, spec) else usual


def _shrunk(sample: Sample, side: int = MAX_SIDE) -> tuple[Image.Image, str]:
    data = read_image(sample)
    image = decode_image(data, limits=ADMITTED)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image, ".jpg" if data.startswith(b"\xff\xd8") else ".png"


def _change_by_turning(image: Image.Image, spec: PreprocessSpec) -> float:
    """Mean difference of the pixels, of 255, after a quarter turn: the effect of ignoring the EXIF tag."""
    return _mean_difference(fit(image, spec), fit(image.transpose(Image.Transpose.ROTATE_90), spec))


def _mean_difference(one_HW3: np.ndarray, other_HW3: np.ndarray) -> float:
    return float(np.abs(one_HW3.astype(np.int16) - other_HW3).mean())


def _encode(image: Image.Image, suffix: str, *, orientation: int | None = None) -> bytes:
    plain = Image.frombytes(image.mode, image.size, image.tobytes())  # without the metadata of the original
    buffer = io.BytesIO()
    if suffix == ".png":
        plain.save(buffer, "PNG", optimize=True)
    elif orientation is None:
        plain.save(buffer, "JPEG", quality=92)
    else:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        plain.save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


def _run_sample(source: GoldenSource, data: bytes, suffix: str) -> _GoldenSample:
    pixels_HW3 = preprocess(data, source.spec)
    # Rounding depends on the number of threads, and publishing the same run again must write the same bytes.
    with torch.inference_mode(), one_thread():
        [probabilities_K], [logits_K] = (output.numpy() for output in source.deployed(torch.from_numpy(np.stack([pixels_HW3]))))
    second, first = np.sort(probabilities_K)[-2:]
    return _GoldenSample(
        data=data,
        suffix=suffix,
        pixels_HW3=pixels_HW3,
        label=source.labels[int(probabilities_K.argmax())],
        margin=float(first - second),
        probabilities=[float(p) for p in probabilities_K],
        logits=[float(logit) for logit in logits_K],
    )


def _write_sample(folder: Path, index: int, sample: _GoldenSample) -> dict[str, Any]:
    """Write a sample's two files, and return its entry in `golden.json`."""
    file, pixels = f"golden/{index}{sample.suffix}", f"golden/{index}.pixels.png"
    (folder / file).write_bytes(sample.data)
    Image.fromarray(sample.pixels_HW3).save(folder / pixels, optimize=True)
    outputs = {"label": sample.label, "probabilities": sample.probabilities, "logits": sample.logits}
    return {"file": file, "pixels": pixels, **outputs}
