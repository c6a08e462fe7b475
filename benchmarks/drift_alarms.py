"""False alarms of `edgeline monitor`, and how soon it finds a change, on real photos through a published artifact.

    python benchmarks/drift_alarms.py artifacts/store/flowers --photos FOLDER --new FOLDER

Every photo is classified once as it is, once dimmed to 60 %, once blurred (Gaussian, 2 pixels at the model's size); photos of
`--new` show what the artifact does not know. A quiet window and its reference are drawn from the same photos without overlap, a
fresh division each time: an alarm is false. For the delay, windows of `--window` changed photos follow ten quiet ones, and the
images until the alarm of the series are counted.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import photos, report
from PIL import Image, ImageEnhance, ImageFilter

from edgeline.pipeline.monitoring.series import ALPHA, monitor_window
from edgeline.pipeline.monitoring.windows import compare_window
from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.collector import Origin, drift_of
from edgeline.serve.drift.snapshot import merge
from edgeline.serve.preprocess import preprocess

QUIET_BEFORE = 10
MOST = 40
"""Windows after which a change counts as not found."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--photos", type=Path, default=Path(photos("flowers17")))
    parser.add_argument("--new", type=Path, default=Path(photos("hymenoptera")), help="photos of other things")
    parser.add_argument("--images", type=int, default=400, help="photos of each kind that are classified")
    parser.add_argument("--windows", type=int, default=2000, help="quiet windows")
    parser.add_argument("--window", type=int, default=50, help="photos of a window")
    parser.add_argument("--series", type=int, default=20, help="series for each delay")
    arguments = parser.parse_args()
    classifier, rng = Classifier.open(arguments.artifact), np.random.default_rng(0)
    plain = seen(classifier, pick(arguments.photos, arguments.images, rng), lambda image: image)
    half = len(plain) // 2
    alarms = 0
    for _ in range(arguments.windows):
        order = rng.permutation(len(plain))
        reference, window = (merge([plain[i] for i in part]) for part in (order[:half], order[half : half + arguments.window]))
        alarms += bool(compare_window(window, reference, ALPHA).drifted)
    share = alarms / arguments.windows
    print(f"{arguments.windows:,} quiet windows of {arguments.window} photos: {share:.1%} alarms at a rate of {ALPHA:.0%}")
    changes = {
        "dimmed to 60 %": (arguments.photos, lambda image: ImageEnhance.Brightness(image).enhance(0.6)),
        "blurred": (arguments.photos, lambda image: image.filter(ImageFilter.GaussianBlur(2))),
        "new things": (arguments.new, lambda image: image),
    }
    delays = {}
    for name, (folder, change) in changes.items():
        changed = seen(classifier, pick(folder, arguments.images, rng), change)
        found = [delay(plain, changed, arguments.window, rng) for _ in range(arguments.series)]
        delays[name] = found
        print(f"{name:16} alarm after {np.median(found):.0f} photos (median of {len(found)} series, at most {max(found):.0f})")
    report("drift_alarms", windows=arguments.windows, window=arguments.window, alarms=share, alpha=ALPHA, delays=delays)


def pick(folder: Path, count: int, rng: np.random.Generator) -> list[Path]:
    """Photos of a folder, at most so many."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    return [paths[i] for i in rng.permutation(len(paths))[:count]]


def seen(classifier: Classifier, paths: list[Path], change: Any) -> list[dict[str, Any]]:
    """A snapshot for each photo."""
    spec, found = classifier.manifest.preprocess, []
    for path in paths:
        drift = drift_of(classifier)
        data = path.read_bytes()
        pixels_HW3 = np.asarray(change(Image.fromarray(preprocess(data, spec, classifier.limits))))
        with Image.open(path) as image:
            width, height = image.size
        drift.observe(pixels_HW3, classifier.probabilities(pixels_HW3[None])[0], Origin(width, height, len(data)))
        found.append(drift.snapshot())
    return found


def delay(plain: list[dict[str, Any]], changed: list[dict[str, Any]], size: int, rng: np.random.Generator) -> float:
    """Changed photos until the alarm, after quiet windows."""
    order = rng.permutation(len(plain))
    reference, rest = merge([plain[i] for i in order[: len(plain) // 2]]), order[len(plain) // 2 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "series.json")
        for number in range(QUIET_BEFORE):
            monitor_window(path, {f"quiet {number}": merge([plain[i] for i in rng.choice(rest, size)])}, reference)
        for number in range(1, MOST + 1):
            window = merge([changed[i] for i in rng.choice(len(changed), size)])
            found = monitor_window(path, {f"{number}": window}, reference)
            if found is not None and found.alarm:
                return float(number * size)
    return float("inf")


if __name__ == "__main__":
    main()
