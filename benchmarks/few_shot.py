"""The metrics of `few-shot` on 2 to 20 images of each class: as linear layers, and with the true cosine for comparison.

All use the same cached features of the frozen backbone, with four views. `cosine, true` divides by the norm of each image's
features, which a linear layer cannot; its answers are the same, its probabilities are not. `chosen` is what `few-shot` uses.
The calibration error is that on the test images, with the scale fitted on held-out images.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import SHARED, report
from subsets import write_subset

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared
from edgeline.pipeline.evaluation.metrics import Z_95, calibration_error, nll, paired_drop, softmax
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.devices import choose_device
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.training.strategies.few_shot import METRICS, Layer, fit_scale
from edgeline.pipeline.training.strategies.head import feature_tables, held_out_folds

DATA = ("flowers17-2", "flowers17-3", "flowers17-5", "flowers17-10", "blood_cells-5", "digits-20")
AUGMENT = {"flowers17": "flip", "blood_cells": "rotate"}
VIEWS, BINS = 4, 15
TRUE_COSINE = "cosine, true"

Logits = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From tables (V, M, D), their classes (M,) and other features (N, D) to logits (N, K)."""


def linear(metric: Callable[..., Layer], tables_VMD: np.ndarray, targets_M: np.ndarray, others_ND: np.ndarray) -> np.ndarray:
    """Logits of a linear layer."""
    weight_KD, bias_K = metric(tables_VMD, targets_M)
    return np.asarray(others_ND @ weight_KD.T + bias_K)


def true_cosine(tables_VMD: np.ndarray, targets_M: np.ndarray, others_ND: np.ndarray) -> np.ndarray:
    """Cosines to the mean direction of each class."""
    rows_RD = tables_VMD.reshape(-1, tables_VMD.shape[2]).astype(np.float64)
    targets_R = np.tile(targets_M, len(tables_VMD))
    center_D = np.mean([rows_RD[targets_R == k].mean(0) for k in range(int(targets_M.max()) + 1)], axis=0)
    norms_N = np.linalg.norm(others_ND - center_D, axis=1)
    return linear(METRICS["cosine"], tables_VMD, targets_M, others_ND) / np.maximum(norms_N, 1e-12)[:, None]


def features(data: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Compute the features of a data set's training and test images."""
    settings = [f"train.augment={AUGMENT.get(data.partition('-')[0], 'light')}"]
    source = str(write_subset(data, seed, folder / "data"))
    run, _ = prepare(load_config(None, settings, data=source, name="few", seed=seed, artifacts=str(folder / "artifacts")))
    prepared, config = read_prepared(run.step("prepare")), run.config
    network, spec = build(config.model, config.weights, classes=len(prepared.labels))
    context = TrainingContext(
        network=network,
        spec=spec,
        prepared=prepared,
        config=config.train,
        seed=seed,
        folder=folder,
        cache=config.cache,
        device=choose_device("cpu"),
    )
    learned, test = prepared.of("train") + prepared.of("val"), prepared.of("test")
    return {
        "tables_VMD": np.stack(feature_tables(context, learned, VIEWS)),
        "targets_M": np.array([sample.index for sample in learned]),
        "folds_M": held_out_folds(learned, config.train),
        "test_ND": np.array(feature_tables(context, test, 0)[0]),
        "test_targets_N": np.array([sample.index for sample in test]),
    }


def measure(found: dict[str, np.ndarray], logits_of: Logits) -> tuple[np.ndarray, float, float, float]:
    """Return which test images are correct, the held-out loss, and the loss and calibration error on the test images."""
    tables_VMD, targets_M, folds_M = found["tables_VMD"], found["targets_M"], found["folds_M"]
    held_MK = np.zeros((len(targets_M), int(targets_M.max()) + 1))
    for fold in range(folds_M.max() + 1):
        held_M = folds_M == fold
        held_MK[held_M] = logits_of(tables_VMD[:, ~held_M], targets_M[~held_M], tables_VMD[0, held_M])
    loss, scale = fit_scale(held_MK[folds_M >= 0], targets_M[folds_M >= 0])
    logits_NK = logits_of(tables_VMD, targets_M, found["test_ND"]) * scale
    test_loss, error = (
        nll(logits_NK, found["test_targets_N"]),
        calibration_error(softmax(logits_NK), found["test_targets_N"], BINS),
    )
    return logits_NK.argmax(1) == found["test_targets_N"], loss, test_loss, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", default=list(DATA))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/few_shot"), help="for data and features, which are kept")
    arguments = parser.parse_args()
    if (SHARED / "weights" / "torch").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights" / "torch"))
    torch.set_num_threads(1)
    ways: dict[str, Logits] = {name: partial(linear, metric) for name, metric in METRICS.items()} | {TRUE_COSINE: true_cosine}
    rows = []
    for data in arguments.data:
        measured = []
        for seed in range(arguments.seeds):
            found = features(data, seed, arguments.folder)
            by_way = {name: measure(found, logits_of) for name, logits_of in ways.items()}
            measured.append(by_way | {"chosen": min((by_way[name] for name in METRICS), key=lambda each: each[1])})
        reference = np.concatenate([by_way[TRUE_COSINE][0] for by_way in measured])
        for name in measured[0]:
            correct = np.concatenate([by_way[name][0] for by_way in measured])
            lost, gained = int((reference & ~correct).sum()), int((correct & ~reference).sum())
            drop, low, high = paired_drop(lost, gained, len(correct), Z_95)
            loss, error = (float(np.mean([by_way[name][index] for by_way in measured])) for index in (2, 3))
            rows.append({"data": data, "metric": name, "accuracy": float(correct.mean()), "loss": loss, "ece": error})
            rows[-1] |= {"difference": -drop, "interval": (-high, -low), "images": len(correct)}
            print(
                f"{data:14} {name:13} accuracy {correct.mean():.4f}  to the true cosine {-100 * drop:+5.1f} "
                f"[{-100 * high:+5.1f}, {-100 * low:+5.1f}]  loss {loss:.3f}  ece {error:.3f}",
                flush=True,
            )
    report("few_shot", seeds=arguments.seeds, rows=rows)


if __name__ == "__main__":
    main()
