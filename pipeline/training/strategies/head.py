"""Strategy `head`: the backbone stays frozen and only a linear layer is trained, on features that are computed once.

Shapes: M training and validation images, D features, K classes.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.models.devices import one_thread
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.augment import augment
from edgeline.pipeline.training.context import HeldOutLogits, TrainingContext, TrainingResult
from edgeline.pipeline.training.features import FeatureExtractor
from edgeline.pipeline.training.fine_tuning.distributed import fit_once
from edgeline.pipeline.training.folds import NEVER, assign_folds
from edgeline.pipeline.training.heads import HeadData, train_heads

VIEWS = ((500, 500, 4), (2000, 50, 2))
"""Views of each image where the configuration leaves the number open (ADR 0021): up to so many images, up to so many images a
class, and how many views. More images gain nothing from views, and pay for them with the time to compute their features."""


def fit(context: TrainingContext) -> TrainingResult:
    """Train a network's head in place on cached features.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    network, config = context.network, context.config
    samples = context.prepared.of("train") + context.prepared.of("val")
    folds_M = held_out_folds(samples, config)
    targets_M = np.array([sample.index for sample in samples])
    tables = feature_tables(context, samples, number_of_views(config, len(samples), len(context.prepared.labels)))
    with one_thread():
        trained = train_heads(
            HeadData(tables=tables, targets_M=targets_M, folds_M=folds_M), config, context.class_weights_K, context.seed
        )
    with torch.no_grad():
        network.classifier.weight.copy_(trained.weight_KD)
        network.classifier.bias.copy_(trained.bias_K)
    held_out = HeldOutLogits(
        logits_NK=trained.held_out_logits_NK,
        targets_N=targets_M[trained.held_out_rows],
        images=[samples[row].sha256 for row in trained.held_out_rows],
    )
    return TrainingResult(history=trained.history, calibration=held_out, out_of_fold=held_out)


def held_out_folds(samples: list[Sample], config: TrainConfig) -> np.ndarray:
    """Return the fold of each image: every image has one, or with `refit` off the validation images alone have fold 0."""
    if config.refit:
        return assign_folds(samples)
    return np.array([0 if sample.split == "val" else NEVER for sample in samples])


def fit_start(context: TrainingContext) -> TrainingResult:
    """Train the head that a strategy for the other layers starts with. The configured epochs and rate are those of the layers.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    config = context.config.model_copy(update={"epochs": 0, "learning_rate": 0.0})
    return fit_once(fit, replace(context, config=config))


def number_of_views(config: TrainConfig, images: int, classes: int) -> int:
    """Return the number of augmented views of each image: the configured one, or one that follows from the number of images."""
    if config.views != "auto":
        return config.views
    if config.augment == "none":
        return 0
    return next((views for most, most_a_class, views in VIEWS if images <= min(most, most_a_class * classes)), 0)


def feature_tables(context: TrainingContext, samples: list[Sample], views: int) -> list[np.ndarray]:
    """Return the features of samples, then of as many augmented views of them: float32 (M, D) each, memory-mapped.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: out of memory, or the features are not finite.
    """
    cache = ContentCache(context.cache / "features.sqlite")
    extractor = FeatureExtractor(context.network, context.spec, cache, context.device)
    folder, kind = context.folder, context.config.augment
    tables = [extractor.compute(samples, folder / "features.npy")]
    for view in range(1, views + 1):
        draw = partial(augment, kind=kind, view=view)
        tables.append(extractor.compute(samples, folder / f"features-{view}.npy", view=f"{kind}-{view}", augment=draw))
    for path in folder.glob("features*.npy"):
        path.unlink()  # the cache has them, and the tables stay readable while they are mapped
    return tables
