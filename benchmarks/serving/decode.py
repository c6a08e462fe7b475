"""Compare scaled with full decoding of JPEGs: whether predictions stay the same, and how much time it saves.

Agreement: real photos are enlarged to the sizes of phone photos, saved as JPEG, preprocessed both ways, and classified by the
same float32 network. Three classifiers are used: EfficientNet-Lite0 with its own 1,000 ImageNet classes, which are so similar
that many photos are near ties, and two networks that the pipeline trained, on its test photos. A flip at a small margin between
the two best classes means little, so flips above a margin are counted separately. As a yardstick, the 1,000 classes are also
compared with full decoding of the same photo saved with the next lower quality.

Speed: preprocessing, and whole predictions of one thread (decode, preprocess, run), in turn, as medians over paired rounds. The
large photo gets a sensor's noise, so that it compresses like a phone's. `--classifiers` without a name measures the times only.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import SHARED, report
from int8 import export_with_own_classes

from edgeline.flows.steps import execute
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared
from edgeline.pipeline.evaluation.metrics import wilson_interval
from edgeline.pipeline.models.checkpoint import read_settings
from edgeline.serve.preprocess import PreprocessSpec, decode_image, jpeg_scale, preprocess
from edgeline.serve.runtime.session import create_session

SIDES = (2048, 3072, 4032)
"""Longer side of the enlarged photos, in pixels, in turn."""
QUALITIES = (88, 90, 92)
CLEAR = 0.05
"""Difference of the two best probabilities from which a prediction is not a near tie; golden samples need as much."""
TRAINED = {"flowers17": 0.5, "hymenoptera": 0.2}
"""Data of the trained classifiers, and the share of the test split where the data has none."""

Subject = tuple[str, bytes, PreprocessSpec, list[Path]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classifiers", nargs="*", default=["imagenet", *TRAINED])
    parser.add_argument("--each", type=int, default=3, help="how often each photo is enlarged")
    parser.add_argument("--sides", type=int, nargs="*", default=SIDES, help="longer sides of enlarged photos, in turn")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the time measurements")
    parser.add_argument("--artifacts", help="keep the trained classifiers in this folder instead of a temporary one")
    arguments = parser.parse_args()
    model, spec = export_with_own_classes("efficientnet_lite0")
    photos = sorted((SHARED / "imagenet_sample").glob("*.JPEG"))
    speed = times(model, spec, photos[5], arguments.rounds)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.classifiers:
            own = name == "imagenet"
            subject = ("imagenet, 1000 classes", model, spec, photos) if own else train(name, arguments.artifacts or temporary)
            rows.append(agreement(subject, arguments.sides, arguments.each, yardstick=own))
    report("serve_decode", agreement=rows, speed=speed)


def train(name: str, artifacts: str) -> Subject:
    """Train a classifier with the pipeline; return it with its test photos."""
    settings = [f"prepare.test_share={TRAINED[name]}"]
    run, _ = prepare(load_config(None, settings, data=str(SHARED / name), artifacts=artifacts))
    for step in ("train", "evaluate", "export"):
        execute(step, run)
    model = (run.step("export") / "model.onnx").read_bytes()
    samples = read_prepared(run.step("prepare")).of("test")
    classes, spec = len({sample.label for sample in samples}), read_settings(run.step("train")).preprocess
    return f"{name}, {classes} classes", model, spec, [Path(sample.path) for sample in samples]


def agreement(subject: Subject, sides: Sequence[int], each: int, *, yardstick: bool) -> dict[str, Any]:
    """Return how often the best class is the same with scaled and with full decoding."""
    name, model, spec, photos = subject
    full, answer = replace(spec, jpeg_decoding="full"), answering(model)
    same, differences, largest, flips, other_quality = [], [], 0, [], []
    for i, photo in ((i, photo) for i, photo in enumerate(photos) for _ in range(each)):
        side, quality = sides[len(same) % len(sides)], QUALITIES[i % 3]
        picture = enlarged(photo, side)
        data = encoded(picture, quality)
        before, after = preprocess(data, full), preprocess(data, spec)
        assert jpeg_scale(*picture.size, spec) > 1
        expected, observed = answer(before), answer(after)
        difference = np.abs(before.astype(int) - after)
        differences.append(float(difference.mean()))
        largest = max(largest, int(difference.max()))
        same.append(expected.argmax() == observed.argmax())
        if not same[-1]:
            second, first = np.sort(expected)[-2:]
            flips.append({"photo": photo.name, "side": side, "margin": float(first - second)})
        if yardstick and len(same) % each == 0:
            other = answer(preprocess(encoded(picture, quality - 1), full))
            other_quality.append(expected.argmax() == other.argmax())
    low, high = wilson_interval(sum(same), len(same))
    row = {
        "classifier": name,
        "comparisons": len(same),
        "photos": len(photos),
        "sides": sides,
        "agreement": sum(same) / len(same),
        "agreement_interval": [low, high],
        "flips": flips,
        "clear_flips": sum(flip["margin"] >= CLEAR for flip in flips),
        "largest_margin_flipped": max((flip["margin"] for flip in flips), default=0.0),
        "mean_pixel_difference": statistics.mean(differences),
        "worst_mean_pixel_difference": max(differences),
        "largest_pixel_difference": largest,
    }
    if yardstick:
        row["agreement_of_the_next_lower_quality"] = sum(other_quality) / len(other_quality)
    print(
        f"{name:24} same best class {row['agreement']:.4f} ({low:.4f} to {high:.4f}) of {len(same)}; {len(flips)} flips, the "
        f"largest margin {row['largest_margin_flipped']:.3f}; pixels differ by {row['mean_pixel_difference']:.2f} on average, "
        f"{row['worst_mean_pixel_difference']:.2f} in the worst photo, {largest} at most"
        + (f"; the next lower quality: {row['agreement_of_the_next_lower_quality']:.4f}" if yardstick else ""),
        flush=True,
    )
    return row


def times(model: bytes, spec: PreprocessSpec, photo: Path, rounds: int) -> list[dict[str, Any]]:
    """Return milliseconds of preprocessing and of whole predictions, full and scaled, and the ratios of each round."""
    picture = decode_image(photo.read_bytes())
    noise = np.random.default_rng(0).normal(0, 5, (3024, 4032, 3))
    phone = np.asarray(picture.resize((4032, 3024), Image.Resampling.BICUBIC)) + noise
    photos = {
        "500x375": encoded(picture.resize((500, 375), Image.Resampling.BICUBIC), 90),
        "4032x3024": encoded(Image.fromarray(phone.clip(0, 255).astype(np.uint8)), 90),
    }
    answer, full = answering(model), replace(spec, jpeg_decoding="full")
    rows = []
    for size, data in photos.items():
        ways: dict[str, Callable[[], object]] = {
            "preprocess full": lambda data=data: preprocess(data, full),
            "preprocess scaled": lambda data=data: preprocess(data, spec),
            "answer full": lambda data=data: answer(preprocess(data, full)),
            "answer scaled": lambda data=data: answer(preprocess(data, spec)),
        }
        rounds_ms = [dict(in_turn(ways, backwards=bool(i % 2))) for i in range(rounds + 1)][1:]  # the first warms up
        row: dict[str, Any] = {"photo": size, "bytes": len(data), "rounds": rounds}
        row |= {f"{name}, ms": statistics.median(t[name] for t in rounds_ms) for name in ways}
        for what in ("preprocess", "answer"):
            ratios = sorted(t[f"{what} full"] / t[f"{what} scaled"] for t in rounds_ms)
            row[f"{what} ratio"] = statistics.median(ratios)
            row[f"{what} ratios"] = [ratios[0], ratios[-1]]
        rows.append(row)
        print(
            f"{size:10} {len(data):9,} bytes  preprocess {row['preprocess full, ms']:6.1f} to "
            f"{row['preprocess scaled, ms']:6.1f} ms, ratio {row['preprocess ratio']:.2f}  whole answer "
            f"{row['answer full, ms']:6.1f} to {row['answer scaled, ms']:6.1f} ms, ratio {row['answer ratio']:.2f}",
            flush=True,
        )
    return rows


def in_turn(ways: dict[str, Callable[[], object]], *, backwards: bool) -> Iterator[tuple[str, float]]:
    """Yield milliseconds of each, the best of three: other work on the machine can only add."""
    for name in sorted(ways, reverse=backwards):
        measured = []
        for _ in range(3):
            start = time.perf_counter()
            ways[name]()
            measured.append(1000 * (time.perf_counter() - start))
        yield name, min(measured)


def answering(model: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from pixels to probabilities, with one thread."""
    session = create_session(model, threads=1)

    def answer(pixels_HW3: np.ndarray) -> np.ndarray:
        [[probabilities_K]] = session.run(["probabilities"], {"image": pixels_HW3[None]})
        return np.asarray(probabilities_K)

    return answer


def enlarged(photo: Path, side: int) -> Image.Image:
    picture = decode_image(photo.read_bytes())
    scale = side / max(picture.size)
    # At least as wide as images that are decoded scaled; panoramas are therefore enlarged further.
    scale = max(scale, 1025 / min(picture.size))
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


if __name__ == "__main__":
    main()
