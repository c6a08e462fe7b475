"""Labels that it takes to reach an accuracy: photos in the order of `edgeline label`, by margin alone, and at random.

On cached features of the frozen backbone, with logistic regression as the head. A third of the images (of whole smears for the
blood cells) are the test. A model that knows a few images of each class orders the others; a block of them is labeled and the
model trained again, as often as `--rounds`. Every seed draws another test set and other first images, the same for each order.

Labels to reach the same accuracy: where a seed's curve first reaches what random order reaches with all of its labels, as a
share of these, or all of them if it never does; with a 95 % interval of the mean over the seeds (Student's t). A gain is
significant if the interval is below 1.

With `--page` also the time of the labeling page itself: 100 photos are labeled by a script in Chromium.
"""

import argparse
import csv
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHARED, Clock, report, without_spinning
from scipy.stats import t
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.devices import CPU_BATCH
from edgeline.pipeline.sources.digits import write_digits
from edgeline.serve.labeling.order import label_order
from edgeline.serve.preprocess import preprocess

ORDERS = ("random", "margin", "edgeline")


@dataclass(frozen=True, slots=True)
class Setting:
    """How few images the first model knows, and how many are labeled before it is trained again."""

    first: int
    """Images of each class."""
    block: int


SETTINGS = {"flowers17": Setting(3, 50), "xsdd_steel": Setting(2, 15), "blood_cells": Setting(2, 6), "digits": Setting(1, 15)}


@dataclass(frozen=True, slots=True)
class Data:
    """Features, classes and groups of N images."""

    features_NC: np.ndarray
    labels_N: np.ndarray
    groups_N: np.ndarray


def load(name: str, cache: Path) -> Data:
    """Compute the features of a data set, or read those of an earlier call."""
    path = cache / f"{name}.npz"
    if not path.exists():
        if name == "blood_cells":
            with (SHARED / name / "labels.csv").open(newline="") as file:
                rows = [(SHARED / name / row["path"], row["label"], row["group"]) for row in csv.DictReader(file)]
        else:
            root = write_digits(cache / "digits") if name == "digits" else SHARED / name
            found = sorted(each for each in root.glob("*/*") if each.suffix.lower() in (".jpg", ".jpeg", ".png"))
            rows = [(each, each.parent.name, str(number)) for number, each in enumerate(found)]
        features_NC = features_of([row[0] for row in rows])
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, features=features_NC, labels=[row[1] for row in rows], groups=[row[2] for row in rows])
    held = np.load(path)
    return Data(held["features"], held["labels"], held["groups"])


def features_of(paths: list[Path]) -> np.ndarray:
    """Features of image files, float32 (N, C)."""
    network, spec = build("efficientnet_lite0", "imagenet", classes=2)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(paths), CPU_BATCH):
            pixels_NHW3 = np.stack([preprocess(path.read_bytes(), spec) for path in paths[start : start + CPU_BATCH]])
            parts.append(network.features(torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).float()).numpy())
    return np.concatenate(parts)


def probabilities(features_NC: np.ndarray, labels_N: np.ndarray, others_MC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Train on N images: the classes, and the probabilities of M others."""
    mean_C, std_C = features_NC.mean(0), features_NC.std(0) + 1e-3
    model = LogisticRegression(C=0.01, max_iter=60).fit((features_NC - mean_C) / std_C, labels_N)
    return model.classes_, model.predict_proba((others_MC - mean_C) / std_C)


def choose(order: str, probabilities_NK: np.ndarray, features_NC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All images in one of `ORDERS`."""
    if order == "random":
        return rng.permutation(len(features_NC))
    two_N2 = np.sort(probabilities_NK, 1)[:, -2:]
    uncertainty_N = 1 - (two_N2[:, 1] - two_N2[:, 0])
    return np.array(label_order(uncertainty_N, features_NC if order == "edgeline" else None))


def curves(data: Data, setting: Setting, seed: int, rounds: int) -> dict[str, list[float]]:
    """The accuracy of each order after 0, 1, ... blocks of labels."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.unique(data.groups_N))
    is_test = np.isin(data.groups_N, groups[: len(groups) // 3])
    pool = rng.permutation(np.flatnonzero(~is_test))
    first = np.concatenate([pool[data.labels_N[pool] == each][: setting.first] for each in np.unique(data.labels_N)])
    test_MC, found = data.features_NC[is_test], {}
    for order in ORDERS:
        known, left, accuracy = first, np.setdiff1d(pool, first), []
        for _ in range(rounds + 1):
            others_NC = np.concatenate([test_MC, data.features_NC[left]])
            classes, answers = probabilities(data.features_NC[known], data.labels_N[known], others_NC)
            accuracy.append(float((classes[answers[: len(test_MC)].argmax(1)] == data.labels_N[is_test]).mean()))
            ordered = choose(order, answers[len(test_MC) :], data.features_NC[left], rng)[: setting.block]
            known, left = np.concatenate([known, left[ordered]]), np.delete(left, ordered)
        found[order] = accuracy
    return found


def labels_to_reach(curve: list[float], goal: float, block: int) -> float:
    """Labels at which a curve first reaches an accuracy, interpolated within a block; all of them if it does not."""
    for at, (before, after) in enumerate(zip(curve, curve[1:], strict=False)):
        if after >= goal:
            return block * (at + (1.0 if after == before else max(0.0, min(1.0, (goal - before) / (after - before)))))
    return block * (len(curve) - 1)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval of the mean."""
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()), float(values.mean()) - half, float(values.mean()) + half


def measure(name: str, cache: Path, seeds: int, rounds: int) -> dict[str, Any]:
    """Compare the orders on one data set."""
    data, setting = load(name, cache), SETTINGS[name]
    with threadpool_limits(1):
        runs = [curves(data, setting, seed, rounds) for seed in range(seeds)]
    result: dict[str, Any] = {"first": setting.first, "block": setting.block, "seeds": seeds}
    for order in ORDERS:
        curve = np.mean([run[order] for run in runs], 0)
        print(f"{name:12} {order:9} accuracy {' '.join(f'{each:.3f}' for each in curve)}", flush=True)
        result[order] = {"accuracy": [round(float(each), 4) for each in curve]}
        if order != "random":
            labels = [labels_to_reach(run[order], run["random"][-1], setting.block) / (setting.block * rounds) for run in runs]
            points = [run[order][-1] - run["random"][-1] for run in runs]
            result[order] |= {"labels": interval(np.array(labels)), "points": interval(100 * np.array(points))}
            print(f"{'':12} {'':9} labels for the accuracy of random {_text(result[order]['labels'])}", flush=True)
            print(f"{'':12} {'':9} points more with the same labels {_text(result[order]['points'])}", flush=True)
    difference = np.array([100 * np.mean(np.subtract(run["edgeline"][1:], run["margin"][1:])) for run in runs])
    result["edgeline_over_margin_points"] = interval(difference)
    print(f"{'':12} edgeline over margin, points over the curve {_text(result['edgeline_over_margin_points'])}", flush=True)
    return result


def _text(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def time_page(photos: int) -> dict[str, float]:
    """Label photos with the page in Chromium, as fast as it accepts keys: milliseconds from a key to the next photo."""
    import re
    import subprocess
    import sys

    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        found = sorted((SHARED / "flowers17").glob("*/*.jpg")) or sorted(write_digits(Path(temporary, "all")).glob("*/*.png"))
        folder = Path(temporary, "photos")
        folder.mkdir()
        for number, path in enumerate(found[:photos]):
            shutil.copy(path, folder / f"{number:03}{path.suffix}")
        edgeline = Path(sys.executable).with_name("edgeline")
        command = [edgeline, "label", folder, "--classes", "robin,wren,owl"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert process.stdout is not None
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(address[0])
            times = []
            for number in range(photos):
                page.wait_for_function("number => document.body.dataset.photo === String(number)", arg=number)
                with Clock() as clock:
                    page.keyboard.press("1")
                    page.wait_for_function("number => document.body.dataset.photo !== String(number)", arg=number)
                times.append(1000 * clock.seconds)
            browser.close()
        finally:
            process.terminate()
            process.wait()
    figures = {"photos": photos, "median_ms": float(np.median(times)), "p95_ms": float(np.quantile(times, 0.95))}
    print("page: {photos} photos, {median_ms:.0f} ms from a key to the next photo (95 %: {p95_ms:.0f} ms)".format(**figures))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", default=["flowers17", "xsdd_steel", "blood_cells"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--cache", type=Path, default=Path("build/labeling"), help="folder for the features")
    parser.add_argument("--page", action="store_true", help="also time the page, in Chromium")
    arguments = parser.parse_args()
    without_spinning()
    warnings.filterwarnings("ignore", category=ConvergenceWarning)  # 60 steps order images as well as hundreds
    names = [name for name in arguments.data if name == "digits" or (SHARED / name).is_dir()] or ["digits"]
    results = {name: measure(name, arguments.cache, arguments.seeds, arguments.rounds) for name in names}
    if arguments.page:
        results["page"] = time_page(100)
    report("labeling", **results)


if __name__ == "__main__":
    main()
