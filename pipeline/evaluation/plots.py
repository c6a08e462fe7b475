"""Plots for the report: confusion matrix, reliability diagram, learning curve, training history, sweep, divergence by layer.

Equal numbers give equal bytes.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edgeline.pipeline.evaluation.learning_curve import LearningCurve
from edgeline.pipeline.training.search.rate_curve import RateCurve
from edgeline.pipeline.training.search.report import Sweep, describe_setting

METADATA = {"Software": None}  # matplotlib's version in the file would make equal plots differ


def write_confusion_png(path: Path, confusion_KK: np.ndarray, labels: Sequence[str]) -> None:
    """Draw a confusion matrix: the share of each true class as a shade, the count as a number if there is room."""
    classes = len(labels)
    side = min(4 + 0.35 * classes, 24)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion_KK / np.maximum(confusion_KK.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if classes <= 60:
        ticks = [label if len(label) <= 24 else label[:23] + "…" for label in labels]
        axes.set_xticks(range(classes), ticks, rotation=90, parse_math=False)
        axes.set_yticks(range(classes), ticks, parse_math=False)
    if classes <= 30:
        for row, column in zip(*np.nonzero(confusion_KK), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion_KK[row, column]), ha="center", va="center", color=color, fontsize=8)
    save_figure(figure, path)


def write_reliability_png(path: Path, probabilities_NK: np.ndarray, targets_N: np.ndarray, bins: int) -> None:
    """Draw a reliability diagram: accuracy by confidence, and the number of images in each bin."""
    confidence_N, correct_N = probabilities_NK.max(1), probabilities_NK.argmax(1) == targets_N
    edges = np.linspace(0, 1, bins + 1)
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    counts = np.bincount(bin_N, minlength=bins)
    accuracy = np.bincount(bin_N, weights=correct_N, minlength=bins) / np.maximum(counts, 1)
    figure = Figure(figsize=(5, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color="0.7", linestyle="--")
    upper.bar(edges[:-1], accuracy, width=1 / bins, align="edge", edgecolor="white")
    upper.set(ylabel="accuracy", ylim=(0, 1))
    lower.bar(edges[:-1], counts, width=1 / bins, align="edge", edgecolor="white", color="0.5")
    lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    save_figure(figure, path)


def write_history_png(path: Path, history: Sequence[Mapping[str, float]], best_epoch: int) -> None:
    """Draw loss and accuracy by epoch, with a line at the epoch whose weights were chosen."""
    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label in (("train_loss", "training"), ("val_loss", "held out")):
        left.plot(epochs, [epoch[name] for epoch in history], label=label)
    right.plot(epochs, [epoch["val_accuracy"] for epoch in history], color="C1", label="held out")
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="accuracy")
    for axes in (left, right):
        axes.axvline(best_epoch, color="0.6", linestyle="--", linewidth=1, label="chosen epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def write_learning_curve_png(path: Path, curve: LearningCurve) -> None:
    """Draw accuracy by number of training images, with its interval."""
    images = [point.images for point in curve.points]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(images, [p.low for p in curve.points], [p.high for p in curve.points], alpha=0.2)
    axes.plot(images, [point.accuracy for point in curve.points], marker="o")
    axes.set(xlabel="training images", ylabel="accuracy", xscale="log")
    axes.set_xticks(images, [f"{count:,}" for count in images])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def write_sweep_png(path: Path, sweep: Sweep) -> None:
    """Draw a sweep: accuracy in closed form by strength of each penalty, and the trained settings against the configured."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    lines = list(dict.fromkeys((setting.views, setting.class_weights) for setting in sweep.scanned))
    for axes, penalty in zip(panels, ("dropout", "ridge"), strict=False):
        for views, weights in lines:
            own = [s for s in sweep.scanned if (s.penalty, s.views, s.class_weights) == (penalty, views, weights)]
            label = f"{views} views, class weights {weights}"
            axes.plot([s.strength for s in own], [100 * s.accuracy for s in own], label=label, linewidth=1.2)
        axes.set(xlabel=f"{penalty}, in closed form", ylabel="held-out accuracy, %")
        axes.grid(alpha=0.3)
    panels[0].axvline(sweep.trained[0].dropout, color="0.6", linestyle="--", linewidth=1)
    panels[0].legend(frameon=False, fontsize=7)
    panels[1].set_xscale("log")
    for row, setting in enumerate(sweep.trained):
        color = "C3" if row == sweep.chosen else "#1f5f8b"
        panels[2].errorbar(100 * setting.difference, row, xerr=100 * setting.error, fmt="o", color=color, capsize=3)
    panels[2].axvline(0, color="0.6", linestyle="--", linewidth=1)
    names = [describe_setting(setting, sweep.trained[0]) for setting in sweep.trained]
    panels[2].set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    panels[2].invert_yaxis()
    panels[2].set(xlabel="trained: points to the configured setting,\nwith standard error")
    panels[2].grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def write_rates_png(path: Path, curve: RateCurve) -> None:
    """Draw the loss by learning rate: of each step, smoothed, and the suggested rate."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.rates, curve.losses, color="0.8", linewidth=1, label="each step")
    axes.plot(curve.rates, curve.smoothed, label="smoothed")
    axes.axvline(curve.suggested, color="C3", linestyle="--", linewidth=1, label=f"suggested: {curve.suggested:.1e}")
    low, high = min(curve.smoothed), max(curve.smoothed[: curve.smoothed.index(min(curve.smoothed)) + 1])
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", ylim=(0.8 * low, 2 * high))
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def write_divergence_png(path: Path, sqnr_db: Sequence[float], layers: Sequence[str]) -> None:
    """Draw the signal-to-noise ratio of each layer's output against PyTorch, in decibels."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(len(layers)), sqnr_db, marker=".")
    axes.set(xlabel="layer, from the input", ylabel="SQNR (dB)", title="Layer outputs of the file compared with PyTorch")
    every = max(1, len(layers) // 12)
    axes.set_xticks(range(0, len(layers), every), layers[::every], rotation=60, ha="right", fontsize=6, parse_math=False)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; characters that the font lacks are drawn as boxes."""
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # matplotlib's font has Latin, Greek and Cyrillic letters only; other labels are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, dpi=110, metadata=METADATA)
