"""The training step: from prepared samples to a checkpoint, by one of four strategies with one result.

Shapes: N images, D features, K classes.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeline.pipeline.config import TrainConfig
from edgeline.pipeline.data.samples import Prepared, read_prepared
from edgeline.pipeline.data.stress_images import WITNESS, write_preprocessing_fingerprint
from edgeline.pipeline.models.backbones import Network, build
from edgeline.pipeline.models.checkpoint import Checkpoint, save_checkpoint
from edgeline.pipeline.models.devices import choose_device, describe_device
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.training import fine_tune, linear_probe
from edgeline.pipeline.training.history import Fit
from edgeline.serve.errors import DataError
from edgeline.serve.preprocess import PreprocessSpec

CALIBRATION = "calibration.npz"
"""Validation logits from before the network learned from those images, for `evaluate` to fit the temperature on."""
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")


def build_checkpoint(run: Run, folder: Path) -> None:
    """Train as a run asks, and write the checkpoint into the step's folder.

    `preprocessing_fingerprint.npz` goes with it: the pixels that the hard set has at this moment, for the gate to compare with.

    Raises:
        ConfigError, WeightsError, DataError, TrainingError: see there.
    """
    config = run.config
    prepared = read_prepared(run.step("prepare"))
    device = choose_device(config.train.device)
    network, spec = build(
        config.model,
        config.weights,
        classes=len(prepared.labels),
        dropout=config.train.dropout,
        preprocess=config.preprocess,
    )
    fit = train(network, spec, prepared, config.train, seed=config.seed, folder=folder, cache=config.cache, device=device)
    checkpoint = Checkpoint(
        model=config.model,
        weights=config.weights,
        labels=prepared.labels,
        preprocess=spec,
        dropout=config.train.dropout,
        strategy=config.train.strategy,
        seed=config.seed,
        device=describe_device(device),
        history=tuple(fit.history),
        best_epoch=fit.best_epoch,
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
    )
    save_checkpoint(folder, network, checkpoint)
    targets_N = np.array([sample.index for sample in prepared.of("val")])
    np.savez_compressed(folder / CALIBRATION, logits=fit.val_logits_NK, targets=targets_N)
    write_preprocessing_fingerprint(folder / WITNESS, spec)


def train(
    network: Network,
    spec: PreprocessSpec,
    prepared: Prepared,
    config: TrainConfig,
    *,
    seed: int,
    folder: Path,
    cache: Path,
    device: torch.device,
) -> Fit:
    """Train a network in place; it ends on the CPU with the weights that validation chose.

    Args:
        network: as `build` made it.
        spec: its preprocessing.
        prepared: the samples; only the train and val splits are read.
        config: strategy and settings.
        seed: the same seed, data and machine give the same weights.
        folder: for working files, which survive a kill and are found again.
        cache: folder of what is kept over runs.
        device: where to compute.

    Returns:
        The course of the training.

    Raises:
        DataError: a class has no training image.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    weights_K = class_weights(prepared, config)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if config.strategy == "head":
        features = ContentCache(cache / "features.sqlite")
        fit = linear_probe.fit(
            network, spec, prepared, config, weights_K, seed=seed, folder=folder, cache=features, device=device
        )
    else:
        fit = fine_tune.fit(network, spec, prepared, config, weights_K, seed=seed, folder=folder, device=device)
    network.to("cpu").eval()
    return fit


def class_weights(prepared: Prepared, config: TrainConfig) -> Tensor:
    """The loss weight of each class, float32 (K,): 1 on average over the images.

    Raises:
        DataError: a class has no image in train, or validation has images of one class only.
    """
    counts = np.bincount([s.index for s in prepared.of("train")], minlength=len(prepared.labels))
    if absent := [label for label, count in zip(prepared.labels, counts, strict=True) if not count]:
        raise DataError(f"no training image of {', '.join(absent)}; every class needs one", code="empty_class")
    if len({s.index for s in prepared.of("val")}) < 2:
        raise DataError(
            "the validation split has images of fewer than two classes, so nothing can be chosen on it; "
            "give more images or a larger prepare.val_share",
            code="one_class_fold",
        )
    exponent = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[config.class_weights]
    weights_K = (1 / counts) ** exponent
    return torch.from_numpy(weights_K * counts.sum() / (weights_K * counts).sum()).float()
