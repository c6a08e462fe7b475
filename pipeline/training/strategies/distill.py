"""Strategy `distill`: all layers learn from the labels and from the answers of larger networks (Hinton et al. 2015).

It starts with the trained head as `lp-ft` does, or from random weights as `scratch` does where the network has none. Whether
the teachers were worth it is a question of the held-out images, and the answer is reported with its interval.
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeline.pipeline.data.unlabeled import find_unlabeled
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.checkpoint import load_checkpoint
from edgeline.pipeline.models.weights import teacher_folder
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.training.context import HeldOutLogits, TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning.distributed import fit_once
from edgeline.pipeline.training.fine_tuning.layers import train_layers
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan
from edgeline.pipeline.training.fine_tuning.teachers import Teacher, Teachers
from edgeline.pipeline.training.strategies import head, lp_ft, scratch
from edgeline.serve.errors import ConfigError

Z_95 = 1.96
"""Half the width of a 95 % interval, in standard errors."""


def fit(context: TrainingContext) -> TrainingResult:
    """Train a network in place.

    Raises:
        ConfigError: a teacher is unknown, or has other classes.
        DataError: a file is missing or has changed, or there are no photos without labels where they were announced.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    config, findings = context.config, []
    teachers = Teachers(
        teachers=[load_teacher(context, name) for name in config.teacher],
        temperature=config.teacher_temperature,
        alpha=config.teacher_share,
        unlabeled=[],
        student=context.spec,
        cache=ContentCache(context.cache / "teachers.sqlite"),
    )
    if config.unlabeled:
        samples, finding = find_unlabeled(
            Path(config.unlabeled), context.prepared, ContentCache(context.cache / "images.sqlite")
        )
        teachers = replace(teachers, unlabeled=samples)
        findings.append(finding)
    start = head.fit_start(context) if context.pretrained else None
    result = train_layers(context, plan(context), start, teachers)
    if start is not None:
        findings.append(compare_with_head(start.calibration, result.calibration))
    return replace(result, findings=[*result.findings, *findings])


def plan(context: TrainingContext) -> LayerPlan:
    """The plan of `lp-ft`, or that of `scratch` without pretrained weights."""
    return lp_ft.plan(context) if context.pretrained else scratch.plan(context)


def load_teacher(context: TrainingContext, name: str) -> Teacher:
    """Load a run's network, or build a backbone and train a head on its features.

    Raises:
        ConfigError: there is no such backbone, or the run has other classes.
        TrainingError: the run's checkpoint is damaged.
        WeightsError: the backbone's weights are absent.
    """
    labels = context.prepared.labels
    if (folder := teacher_folder(name)) is None:
        network, spec = build(name, "imagenet", classes=len(labels), dropout=context.config.dropout)
        folder = context.folder / "teacher"
        folder.mkdir(exist_ok=True)  # for working files
        config = context.config.model_copy(update={"epochs": 0, "learning_rate": 0.0})
        fit_once(head.fit, replace(context, network=network, spec=spec, folder=folder, config=config))
        shutil.rmtree(folder, ignore_errors=True)
        return Teacher(network=network.to(context.device).eval(), spec=spec)
    network, checkpoint = load_checkpoint(folder)
    if set(checkpoint.labels) != set(labels):
        differing = ", ".join(sorted(set(checkpoint.labels) ^ set(labels))[:3])
        raise ConfigError(
            f"train.teacher: {name} classifies {len(checkpoint.labels)} classes, the data has {len(labels)}; they differ in "
            f"{differing}; choose a teacher for the same classes",
            code="teacher_mismatch",
        )
    order = [checkpoint.labels.index(label) for label in labels]
    network.classifier.weight.data = network.classifier.weight.data[order]
    network.classifier.bias.data = network.classifier.bias.data[order]
    return Teacher(network=network.to(context.device), spec=checkpoint.preprocess)


def compare_with_head(before: HeldOutLogits, after: HeldOutLogits) -> Finding:
    """Compare with the head that the training started from, on the validation images, paired: a gain, a loss, or neither."""
    row = {image: number for number, image in enumerate(before.images)}
    rows = [(row[image], number) for number, image in enumerate(after.images) if image in row]
    head_N, student_N = (
        np.array([held.logits_NK[pair[which]].argmax() == held.targets_N[pair[which]] for pair in rows], bool)
        for which, held in enumerate((before, after))
    )
    difference, margin = paired_difference(head_N, student_N)
    verdict = "no clear difference" if abs(difference) <= margin else "a gain" if difference > 0 else "a loss"
    message = (
        f"Distillation classifies {student_N.mean():.1%} of {len(rows):,} validation images correctly, the head alone "
        f"{head_N.mean():.1%}: {100 * difference:+.1f} points, 95 % interval {100 * (difference - margin):+.1f} to "
        f"{100 * (difference + margin):+.1f}: {verdict}."
    )
    return Finding(code="distilled", message=message, level="note" if verdict == "a gain" else "warning")


def paired_difference(before_N: np.ndarray, after_N: np.ndarray) -> tuple[float, float]:
    """Difference of two accuracies on the same images, and half of the width of its 95 % interval (normal approximation)."""
    gained, lost, n = int((after_N & ~before_N).sum()), int((before_N & ~after_N).sum()), max(1, len(before_N))
    difference = (gained - lost) / n
    return difference, Z_95 * math.sqrt(max(1, gained + lost) - n * difference**2) / n
