"""Plots of an experiment: accuracies and differences with their intervals, costs, learning curves."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from edgeline.pipeline.evaluation.plots import save_figure
from edgeline.pipeline.experiments.results import CellResult, Row

COSTS = (("train_s", "training, seconds"), ("bytes", "checkpoint, MB"), ("p50_ms", "float32, ms"), ("int8_p50_ms", "int8, ms"))
CURVES = (("train_loss", "training loss"), ("val_loss", "validation loss"), ("val_accuracy", "validation accuracy"))
MEGABYTE = 1e6
MAX_CURVES = 12
"""Settings whose curves are drawn; the colors of more are too much alike."""


def write_accuracy_png(path: Path, rows: Sequence[Row]) -> None:
    """Draw the accuracy of each setting, and its difference to the first, with their 95 % intervals."""
    shown = [row for row in rows if row.accuracy is not None]
    figure = Figure(figsize=(11, 1.5 + 0.35 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for position, row in enumerate(shown):
        assert row.accuracy is not None
        assert row.low is not None
        assert row.high is not None
        _interval(left, position, 100 * row.accuracy, 100 * row.low, 100 * row.high)
        if row.difference is not None:
            difference = row.difference
            _interval(right, position, 100 * difference.value, 100 * difference.low, 100 * difference.high)
    left.set_yticks(range(len(shown)), [_short(row.setting) for row in shown], parse_math=False)
    left.invert_yaxis()
    left.set(xlabel="test accuracy, %")
    right.axvline(0, color="0.7", linestyle="--")
    right.set(xlabel=f"difference to the first, points\n({_short(shown[0].setting) if shown else ''})")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def write_costs_png(path: Path, rows: Sequence[Row]) -> None:
    """Draw what each setting costs: training time, size, time for an image."""
    shown = [row for row in rows if row.accuracy is not None]
    measured = [(name, title) for name, title in COSTS if any(getattr(row, name) is not None for row in shown)]
    figure = Figure(figsize=(3.2 * len(measured) + 2, 1.5 + 0.35 * len(shown)), layout="constrained")
    panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0] if measured else ()
    for axes, (name, title) in zip(panels, measured, strict=True):
        values = [(getattr(row, name) or 0) / (MEGABYTE if name == "bytes" else 1) for row in shown]
        bars = axes.barh(range(len(shown)), values, color="#5b8db8")
        axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        axes.set(xlabel=title)
        axes.margins(x=0.2)
    for axes in panels[:1]:
        axes.set_yticks(range(len(shown)), [_short(row.setting) for row in shown], parse_math=False)
        axes.invert_yaxis()
    save_figure(figure, path)


def write_curves_png(path: Path, results: Sequence[CellResult]) -> None:
    """Draw loss and accuracy by epoch, a line for each cell and a color for each setting, of strategies that have epochs."""
    settings = list(dict.fromkeys(result.cell.setting for result in results if result.history))[:MAX_CURVES]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, len(CURVES))
    for axes, (name, title) in zip(panels, CURVES, strict=True):
        for result in results:
            if result.history and result.cell.setting in settings and all(name in epoch for epoch in result.history):
                color = f"C{settings.index(result.cell.setting) % 10}"
                epochs = range(1, len(result.history) + 1)
                axes.plot(epochs, [epoch[name] for epoch in result.history], color=color, alpha=0.7, linewidth=1.2)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
    for index, setting in enumerate(settings):
        panels[0].plot([], [], color=f"C{index % 10}", label=_short(setting))
    if settings:
        figure.legend(loc="outside lower center", ncols=min(3, len(settings)), fontsize=8)
    save_figure(figure, path)


def _interval(axes: object, position: int, value: float, low: float, high: float) -> None:
    axes.errorbar(value, position, xerr=[[value - low], [high - value]], fmt="o", color="#1f5f8b", capsize=3)  # type: ignore[attr-defined]


def _short(setting: str) -> str:
    return setting if len(setting) <= 60 else setting[:59] + "…"
