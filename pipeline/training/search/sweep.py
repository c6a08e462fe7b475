"""The sweep of the head (`train.sweep`): which settings classify more held-out images, and by more than noise?

A scan in closed form shows what matters, in seconds: the strength of two penalties, the number of views, the class weights.
Then heads are trained as usual, side by side: with the configured settings, with the most promising settings of the scan, and
with those that only training shows (learning rate, weight decay, label smoothing). The configured settings stay, unless others
are better by more than the best of so many would be by chance. Class weights are shown and not chosen: which mistakes cost more
is not a question of accuracy.

Shapes: N held-out images, S strengths, K classes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from torch import Tensor

from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.class_weights import EXPONENTS, class_weights
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.training.folds import NEVER
from edgeline.pipeline.training.heads import LEARNING_RATE, HeadData, TrainedHead, train_side_by_side
from edgeline.pipeline.training.search.report import (
    FILE_NAME,
    ScannedSetting,
    Sweep,
    TrainedSetting,
    describe_sweep,
)
from edgeline.pipeline.training.search.scan import STRENGTHS, sample_images, scan_penalty

SCANNED = 3
"""Settings of the scan that are trained."""
APART = 0.15
"""Least difference of dropout between two of them with the same number of views."""
RATE_FACTOR = 3.0
SMOOTHING = 0.1
WEIGHT_DECAY = 1.0
"""At which decay and gradients balance within the usual number of steps; the usual 0.01 does next to nothing here."""
ALIKE = 0.2
"""Relative difference up to which class weights are not tried separately."""
CHANCE = 0.05
"""Probability of choosing other settings if all are equally good."""


@dataclass(frozen=True, kw_only=True)
class SweptHead:
    """The head that ships after a sweep."""

    trained: TrainedHead
    finding: Finding
    """What the sweep found, in one sentence."""


def sweep_head(context: TrainingContext, data: HeadData, samples: Sequence[Sample]) -> SweptHead:
    """Try settings of the head, write `sweep.json` into the context's folder, and return the head that ships.

    Args:
        context: its configuration is what others are compared with.
        data: with as many views as are configured; at least one image has a fold.
        samples: the images of the data.

    Raises:
        TrainingError: a loss is not finite.
    """
    scanned = list(scan(context, data))
    views = len(data.tables) - 1
    configs = candidates(context.config, views, scanned)
    trained: dict[int, TrainedHead] = {}
    for number in sorted({config.views for config in configs}, key=str):
        same = [index for index, config in enumerate(configs) if config.views == number]
        part = _with_views(data, int(number))
        heads = train_side_by_side(part, [configs[index] for index in same], context.class_weights_K, context.seed)
        trained |= dict(zip(same, heads, strict=True))
    sweep = compare(configs, [trained[index] for index in range(len(configs))], data, samples)
    sweep = sweep.model_copy(update={"scanned": scanned})
    (context.folder / FILE_NAME).write_text(sweep.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return SweptHead(trained=trained[sweep.chosen], finding=Finding(code="sweep", message=describe_sweep(sweep), level="note"))


def scan(context: TrainingContext, data: HeadData) -> Iterator[ScannedSetting]:
    """Try all strengths, numbers of views and class weights in closed form."""
    sampled = sample_images(data, context.seed)
    views = len(sampled.tables) - 1
    weights = _different_weights(context)
    targets_N = sampled.targets_M[sampled.folds_M != NEVER]
    for number in sorted({0, views // 2, views}):
        for penalty, strengths in STRENGTHS.items():
            for name, predicted_SN in scan_penalty(_with_views(sampled, number), penalty, weights).items():
                for strength, predicted_N in zip(strengths.tolist(), predicted_SN, strict=True):
                    accuracy, recall = _accuracy(predicted_N == targets_N, targets_N)
                    yield ScannedSetting(
                        penalty=penalty,
                        strength=strength,
                        class_weights=name,
                        views=number,
                        accuracy=accuracy,
                        macro_recall=recall,
                    )


def candidates(config: TrainConfig, views: int, scanned: Sequence[ScannedSetting]) -> list[TrainConfig]:
    """Return the settings to train, the configured ones first."""
    rate = config.learning_rate or LEARNING_RATE
    found = [config.model_copy(update={"learning_rate": rate, "views": views})]
    ours = [each for each in scanned if each.penalty == "dropout" and each.class_weights == config.class_weights]
    for setting in sorted(ours, key=lambda each: (-each.accuracy, abs(each.strength - config.dropout))):
        if all(setting.views != other.views or abs(setting.strength - other.dropout) >= APART for other in found):
            found.append(found[0].model_copy(update={"dropout": setting.strength, "views": setting.views}))
        if len(found) > SCANNED:
            break
    changes: list[dict[str, float]] = [
        {"learning_rate": rate / RATE_FACTOR},
        {"learning_rate": rate * RATE_FACTOR},
        {"weight_decay": 0.01 if config.weight_decay >= WEIGHT_DECAY else WEIGHT_DECAY},
        {"label_smoothing": 0.0 if config.label_smoothing else SMOOTHING},
    ]
    return found + [found[0].model_copy(update=change) for change in changes]


def compare(configs: Sequence[TrainConfig], trained: Sequence[TrainedHead], data: HeadData, samples: Sequence[Sample]) -> Sweep:
    """Compare trained heads with the first on the same held-out images, and choose one. Nothing is listed as scanned."""
    rows_N = trained[0].held_out_rows
    targets_N, groups_N = data.targets_M[rows_N], [samples[row].group or samples[row].sha256 for row in rows_N]
    settings = []
    correct = [head.held_out_logits_NK.argmax(1) == targets_N for head in trained]
    for config, head, correct_N in zip(configs, trained, correct, strict=True):
        difference, error = paired_difference(correct_N, correct[0], groups_N)
        accuracy, recall = _accuracy(correct_N, targets_N)
        settings.append(
            TrainedSetting(
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                dropout=config.dropout,
                label_smoothing=config.label_smoothing,
                views=int(config.views),
                epoch=head.history.best_epoch,
                loss=head.history.best_loss,
                accuracy=accuracy,
                macro_recall=recall,
                difference=difference,
                error=error,
            )
        )
    deviations = NormalDist().inv_cdf(1 - CHANCE / (len(settings) - 1))
    better = [index for index, each in enumerate(settings) if each.difference > deviations * each.error]
    chosen = min(better, key=lambda index: (-settings[index].accuracy, settings[index].loss), default=0)
    return Sweep(
        images=len(rows_N),
        folds=int(data.folds_M.max()) + 1,
        scanned=[],
        trained=settings,
        chosen=chosen,
        deviations=deviations,
    )


def paired_difference(one_N: np.ndarray, other_N: np.ndarray, groups_N: Sequence[str]) -> tuple[float, float]:
    """Return by which share more images the first is correct on, and the standard error of that, over groups of images."""
    _, group_of_N = np.unique(groups_N, return_inverse=True)
    gained_G = np.bincount(group_of_N, weights=one_N.astype(float) - other_N)
    return float(gained_G.sum()) / len(one_N), math.sqrt(float((gained_G**2).sum())) / len(one_N)


def _with_views(data: HeadData, views: int) -> HeadData:
    return HeadData(tables=data.tables[: views + 1], targets_M=data.targets_M, folds_M=data.folds_M)


def _different_weights(context: TrainingContext) -> dict[str, Tensor]:
    """The class weights by name, the configured ones first; those that are alike once."""
    found: dict[str, Tensor] = {context.config.class_weights: context.class_weights_K}
    for name in EXPONENTS:
        weights_K = class_weights(context.prepared, context.config.model_copy(update={"class_weights": name}))
        if all(not np.allclose(weights_K, other_K, rtol=ALIKE, atol=0) for other_K in found.values()):
            found[name] = weights_K
    return found


def _accuracy(correct_N: np.ndarray, targets_N: np.ndarray) -> tuple[float, float]:
    """Accuracy, and the mean recall of the classes with held-out images."""
    support_K, correct_K = np.bincount(targets_N), np.bincount(targets_N, weights=correct_N)
    return float(correct_N.mean()), float((correct_K[support_K > 0] / support_K[support_K > 0]).mean())
