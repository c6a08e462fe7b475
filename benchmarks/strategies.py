"""Accuracy of the training strategies on the same splits, in cells that are kept and resumed.

A cell is a strategy on a data set with a seed. Finished cells are read from `--cells`; only those whose code, settings or data
have changed are computed again. A strategy is measured on the test images through its exported file in ONNX Runtime. Each
accuracy is compared with that of `head` without views on the same images, as a paired difference. Two rivals learn from the
same features of the frozen backbone: `course` is what courses write (Adam, rate 1e-3, 25 epochs, plain transforms), `logistic`
is scikit-learn's logistic regression with its penalty by cross-validation.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHARED, report, without_spinning
from subsets import SUBSETS, write_subset
from torch import nn
from torch.nn import functional

from edgeline.export.graph.to_onnx import GRAPHS, CalibratedModel, GraphOptions, export
from edgeline.flows.steps import execute
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared, stream_pixels
from edgeline.pipeline.evaluation.metrics import Z_95, best_temperature, calibration_error, paired_drop, softmax
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.checkpoint import CALIBRATION, load_checkpoint
from edgeline.pipeline.models.devices import CPU_BATCH, one_thread
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.content_cache import FEATURES, ContentCache
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.runs.step import step_key
from edgeline.pipeline.training.features import FeatureExtractor
from edgeline.serve.runtime.session import create_session

STRATEGIES: dict[str, list[str]] = {
    "head-plain": ["train.strategy=head", "train.views=0"],
    "head": ["train.strategy=head"],
    "few-shot": ["train.strategy=few-shot"],
    "auto": ["train.strategy=auto"],
    "lp-ft": ["train.strategy=lp-ft"],
    "full": ["train.strategy=full"],
    "partial": ["train.strategy=partial", 'train.unfreeze=["blocks.5","blocks.6"]'],
    "differential": ["train.strategy=differential"],
    "gradual": ["train.strategy=gradual"],
    "distill": ["train.strategy=distill", 'train.teacher=["efficientnet_lite2"]'],
    "scratch": ["train.strategy=scratch"],
}
"""By the name of a row: its settings."""
RIVALS = ("course", "logistic")
BASE = "head-plain"
QUICK = ["head-plain", "head", "few-shot", "auto", *RIVALS]
AUGMENT = {"flowers17": "flip", "flowers17-10": "flip", "blood_cells-5": "rotate"}
"""Data with pictures that may be mirrored or turned; the others get the default."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", default=[name for name in SUBSETS if "-" in name or name == "hymenoptera"])
    parser.add_argument("--strategies", nargs="*", default=QUICK, help="rows; the quick ones by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=Path, default=Path("build/strategies"), help="folder of finished cells and runs")
    arguments = parser.parse_args()
    if (SHARED / "weights" / "torch").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights" / "torch"))
    rows = []
    for data in arguments.data:
        names = list(dict.fromkeys([BASE, *arguments.strategies]))
        cells = {name: [cell(name, data, seed, arguments.cells) for seed in range(arguments.seeds)] for name in names}
        for name, found in cells.items():
            rows.append({"data": data, "strategy": name, **summarize(found, cells[BASE])})
            row = rows[-1]
            low, high = row["interval"]
            print(
                f"{data:14} {name:12} accuracy {row['accuracy']:.4f}  to {BASE} {100 * row['difference']:+5.1f} "
                f"[{100 * low:+5.1f}, {100 * high:+5.1f}]  ece {row['ece_before']:.3f} -> {row['ece_after']:.3f}  "
                f"{row['train_s']:6.1f} s",
                flush=True,
            )
    report("strategies", seeds=arguments.seeds, rows=rows)


def summarize(found: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and the paired difference to the base over the test images of all seeds."""
    correct, reference = (np.concatenate([cell["correct"] for cell in cells]) > 0 for cells in (found, base))
    lost, gained, total = int((reference & ~correct).sum()), int((correct & ~reference).sum()), len(correct)
    drop, low, high = paired_drop(lost, gained, total, Z_95)
    means = {key: float(np.mean([cell[key] for cell in found])) for key in ("ece_before", "ece_after", "train_s")}
    return {"accuracy": float(correct.mean()), "difference": -drop, "interval": (-high, -low), "images": total, **means}


def cell(name: str, data: str, seed: int, folder: Path) -> dict[str, Any]:
    """Compute a cell, or read it."""
    source = write_subset(data, seed, folder / "data")
    settings = [*STRATEGIES.get(name, STRATEGIES[BASE]), f"train.augment={AUGMENT.get(data, 'light')}"]
    run, _ = prepare(load_config(None, settings, data=str(source), name="cell", seed=seed, artifacts=str(folder / "artifacts")))
    inputs = {"rival": name if name in RIVALS else "", "train": run.config.train.model_dump(), "seed": seed}
    inputs["data"] = read_prepared(run.step("prepare")).fingerprint
    key = step_key(inputs, code_digest("edgeline.pipeline.training.train", "edgeline.export.graph.to_onnx"))
    path = folder / "cells" / f"{data}-{name}-{seed}-{key[:16]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = rival(name, run, folder) if name in RIVALS else train_and_export(run)
        path.write_text(json.dumps(found))
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def train_and_export(run: Run) -> dict[str, Any]:
    """Train a strategy: which test images its exported file classifies correctly, the calibration error, and the seconds."""
    start = time.perf_counter()
    execute("train", run)
    seconds = time.perf_counter() - start
    network, checkpoint = load_checkpoint(run.step("train"))
    with np.load(run.step("train") / CALIBRATION) as calibration:
        temperature = best_temperature(calibration["logits"], calibration["targets"])
    file, options = run.folder / "model.onnx", GraphOptions(classes=len(checkpoint.labels), opset=run.config.export.opset)
    cache = ContentCache(run.config.cache / GRAPHS) if checkpoint.has_frozen_backbone else None
    export(CalibratedModel(network, temperature), checkpoint.preprocess, file, options, cache)
    test, session = read_prepared(run.step("prepare")).of("test"), create_session(file.read_bytes())
    logits = [session.run(["logits"], {"image": pixels})[0] for pixels in stream_pixels(test, checkpoint.preprocess, CPU_BATCH)]
    logits_NK, targets_N = np.concatenate(logits), np.array([sample.index for sample in test])
    bins = run.config.evaluate.bins
    return {
        "correct": (logits_NK.argmax(1) == targets_N).astype(int).tolist(),
        "train_s": seconds,
        "ece_before": calibration_error(softmax(logits_NK), targets_N, bins),
        "ece_after": calibration_error(softmax(logits_NK / temperature), targets_N, bins),
    }


def rival(name: str, run: Run, folder: Path) -> dict[str, Any]:
    """Train a rival on the plain features of all training and validation images."""
    prepared = read_prepared(run.step("prepare"))
    network, spec = build(run.config.model, run.config.weights, classes=len(prepared.labels))
    extractor = FeatureExtractor(network, spec, ContentCache(run.config.cache / FEATURES), torch.device("cpu"))
    start = time.perf_counter()
    tables, targets = {}, {}
    for split, names in (("train", ("train", "val")), ("test", ("test",))):
        samples = prepared.of(*names)
        tables[split] = np.array(extractor.compute(samples, folder / f"{split}.npy"))
        targets[split] = np.array([sample.index for sample in samples])
    fits: dict[str, Callable[..., np.ndarray]] = {"course": partial(course, seed=run.config.seed), "logistic": logistic}
    with one_thread():
        predicted = fits[name](tables["train"], targets["train"], tables["test"])
    correct = (predicted == targets["test"]).astype(int).tolist()
    return {"correct": correct, "train_s": time.perf_counter() - start, "ece_before": float("nan"), "ece_after": float("nan")}


def course(features_ND: np.ndarray, targets_N: np.ndarray, test_TD: np.ndarray, *, seed: int) -> np.ndarray:
    """A linear layer with Adam, as courses train it on a frozen network."""
    torch.manual_seed(seed)
    layer = nn.Linear(features_ND.shape[1], int(targets_N.max()) + 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    features, targets = torch.from_numpy(features_ND), torch.from_numpy(targets_N)
    for _ in range(25):
        for rows in torch.randperm(len(targets)).split(32):
            optimizer.zero_grad()
            functional.cross_entropy(layer(features[rows]), targets[rows]).backward()
            optimizer.step()
    return np.asarray(layer(torch.from_numpy(test_TD)).argmax(1))


def logistic(features_ND: np.ndarray, targets_N: np.ndarray, test_TD: np.ndarray) -> np.ndarray:
    """Logistic regression on standardized features, its penalty by cross-validation."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        model = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=np.logspace(-5, 0, 8), cv=3, max_iter=300))
        return np.asarray(model.fit(features_ND, targets_N).predict(test_TD))


if __name__ == "__main__":
    without_spinning()
    main()
