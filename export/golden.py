"""Choose and write the golden samples of an artifact.

They are held-out photos of the user's own, encoded again at most 1,024 pixels wide without any metadata (a photo's EXIF
tells where it was taken), and one of them a second time turned on its side with an EXIF tag that says so, because ignoring
that tag is the commonest fault of new devices; it is the one whose turning changes its pixels most. PyTorch's answers are
computed from exactly these bytes.
"""

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from export.to_onnx import Deployed
from pipeline.config import PublishConfig
from pipeline.samples import ADMITTED, Sample, read_image
from pipeline.steps import write_json
from serve.golden import FILE_NAME
from serve.preprocess import EXIF_ORIENTATION, PreprocessSpec, decode_image, fit, preprocess

MAX_SIDE = 1024
CLEAR = 0.05
"""Margin between the best two classes that a golden sample should have, so that no rounding can flip it."""


def write_golden(
    folder: Path,
    deployed: Deployed,
    spec: PreprocessSpec,
    labels: Sequence[str],
    samples: Sequence[Sample],
    config: PublishConfig,
) -> None:
    """Write `golden/` below an artifact's folder.

    Args:
        folder: of the artifact.
        deployed: the network; its answers become the expected ones.
        spec: its preprocessing.
        labels: class names in index order.
        samples: held-out images to choose from, best ones first.
        config: how many, and the tolerances.
    """
    (folder / FILE_NAME).parent.mkdir()
    deployed.eval()
    answers: list[dict[str, Any]] = []
    turned, most = None, -1.0
    candidates = choose(samples, config.golden * 3)
    for position, sample in enumerate(candidates):
        image, suffix = _shrunk(sample)
        answer = _answer(deployed, spec, labels, _encode(image, suffix), suffix)
        # Towards the end candidates are taken as they are, rather than to have too few.
        if answer["margin"] < CLEAR and len(candidates) - position >= config.golden - len(answers):
            continue
        answers.append(answer)
        if (change := _change_by_turning(image, spec)) > most:
            turned, most = image, change
        if len(answers) + 1 >= config.golden:
            break
    assert turned is not None, "there is at least one held-out image"
    data = _encode(turned.transpose(Image.Transpose.ROTATE_90), ".jpg", orientation=6)
    answers.insert(0, _answer(deployed, spec, labels, data, ".turned.jpg"))
    golden = {
        "tolerance": config.golden_tolerance,
        "pixel_tolerance": config.golden_pixel_tolerance,
        "samples": [_write_sample(folder, index, answer) for index, answer in enumerate(answers)],
    }
    write_json(folder / FILE_NAME, golden)


def choose(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Take samples in turn from every class, so that as many classes as possible are seen."""
    by_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_class[sample.index].append(sample)
    rounds = max(len(group) for group in by_class.values())
    in_turn = [group[r] for r in range(rounds) for _, group in sorted(by_class.items()) if r < len(group)]
    return in_turn[:count]


def _shrunk(sample: Sample) -> tuple[Image.Image, str]:
    data = read_image(sample)
    image = decode_image(data, limits=ADMITTED)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image, ".jpg" if data.startswith(b"\xff\xd8") else ".png"


def _change_by_turning(image: Image.Image, spec: PreprocessSpec) -> float:
    """Mean difference of the pixels, of 255, that a quarter turn makes: what ignoring the EXIF tag would show as."""
    upright_HW3, turned_HW3 = fit(image, spec), fit(image.transpose(Image.Transpose.ROTATE_90), spec)
    return float(np.abs(upright_HW3.astype(np.int16) - turned_HW3).mean())


def _encode(image: Image.Image, suffix: str, *, orientation: int | None = None) -> bytes:
    plain = Image.frombytes(image.mode, image.size, image.tobytes())  # no metadata of the original comes along
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


def _answer(deployed: Deployed, spec: PreprocessSpec, labels: Sequence[str], data: bytes, suffix: str) -> dict[str, Any]:
    pixels_HW3 = preprocess(data, spec)
    with torch.inference_mode():
        [probabilities_K], [logits_K] = (output.numpy() for output in deployed(torch.from_numpy(np.stack([pixels_HW3]))))
    second, first = np.sort(probabilities_K)[-2:]
    return {
        "data": data,
        "suffix": suffix,
        "pixels": pixels_HW3,
        "label": labels[int(probabilities_K.argmax())],
        "margin": float(first - second),
        "probabilities": [float(p) for p in probabilities_K],
        "logits": [float(logit) for logit in logits_K],
    }


def _write_sample(folder: Path, index: int, answer: dict[str, Any]) -> dict[str, Any]:
    """Write a sample's two files, and return what `golden.json` says of it."""
    stem = f"golden/{index}"
    (folder / (stem + answer["suffix"])).write_bytes(answer["data"])
    Image.fromarray(answer["pixels"]).save(folder / f"{stem}.pixels.png", optimize=True)
    kept = {name: answer[name] for name in ("label", "probabilities", "logits")}
    return {"file": stem + answer["suffix"], "pixels": f"{stem}.pixels.png", **kept}
