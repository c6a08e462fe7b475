"""The results of an experiment's cells, and the table that compares them.

All cells have the same test images, so settings are compared image by image: an image counts with the share of seeds that
classify it correctly.

Shapes: N test images.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeline.pipeline.evaluation.metrics import paired_drop, wilson_interval
from edgeline.pipeline.experiments.grid import Cell
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.runs.run_log import read_metrics
from edgeline.serve.errors import EdgelineError


@dataclass(frozen=True, slots=True)
class CellResult:
    """A cell that was run, or the reason why it was not."""

    cell: Cell
    run: Run | None = None
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    history: tuple[dict[str, float], ...] = ()
    """Losses and accuracy by epoch."""
    correct_N: np.ndarray = field(default_factory=lambda: np.empty(0, bool))


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of accuracies on the same images, as shares, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


@dataclass(frozen=True, slots=True)
class Row:
    """A setting: the mean over its seeds."""

    setting: str
    seeds: int
    """Cells that were run; 0 if all of them failed."""
    errors: tuple[str, ...]
    accuracy: float | None = None
    low: float | None = None
    """Bounds of the 95 % Wilson score interval, for the number of test images."""
    high: float | None = None
    difference: Difference | None = None
    """To the first row; None for that row itself."""
    train_s: float | None = None
    bytes: float | None = None
    p50_ms: float | None = None
    """Of the ONNX file, one image on one thread; None if it was not exported."""
    int8_p50_ms: float | None = None


def read_cell(cell: Cell, run: Run) -> CellResult:
    """Read the results of a cell's finished run.

    Raises:
        EdgelineError: its evaluation is missing or damaged.
    """
    try:
        with np.load(run.step("evaluate") / "test.npz", allow_pickle=False) as test:
            correct_N = test["probabilities"].argmax(1) == test["targets"]
        history = json.loads((run.step("train") / "checkpoint.json").read_text(encoding="utf-8"))["history"]
        return CellResult(cell, run, metrics=read_metrics(run), history=tuple(history), correct_N=correct_N)
    except (OSError, ValueError, KeyError) as error:
        raise EdgelineError(f"{run.folder} has no complete evaluation ({error}); delete the folder and run again") from error


def make_rows(results: Sequence[CellResult]) -> list[Row]:
    """Return a row for each setting, in the order of the cells."""
    by_setting: dict[str, list[CellResult]] = {}
    for result in results:
        by_setting.setdefault(result.cell.setting, []).append(result)
    first = next(iter(by_setting.values()), [])
    return [_row(setting, cells, None if cells is first else first) for setting, cells in by_setting.items()]


def paired_difference(first_SN: np.ndarray, second_SN: np.ndarray) -> Difference:
    """Compare two classifiers on the same images.

    Args:
        first_SN: which images it classifies correctly, a row for each seed.
        second_SN: likewise; the seeds need not be as many.

    Returns:
        Accuracy of the second minus that of the first. With several seeds the interval is wider than it need be.
    """
    gain_N = second_SN.mean(0) - first_SN.mean(0)
    lost, gained = float(-gain_N[gain_N < 0].sum()), float(gain_N[gain_N > 0].sum())
    value, low, high = paired_drop(gained, lost, len(gain_N))  # what the first one lacks
    return Difference(value, low, high)


def write_csv(path: Path, results: Sequence[CellResult]) -> None:
    """Write one line for each cell: its setting, seed, run, figures and error."""
    names = sorted({name for result in results for name in result.metrics})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["setting", "seed", "run", *names, "error"], restval="")
        writer.writeheader()
        for result in results:
            run = result.run.folder.name if result.run else ""
            cell = {"setting": result.cell.setting, "seed": result.cell.seed, "run": run, "error": result.error}
            writer.writerow(cell | result.metrics)


def rows_to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table as plain values."""
    return [asdict(row) for row in rows]


def _row(setting: str, cells: Sequence[CellResult], first: Sequence[CellResult] | None) -> Row:
    done = [cell for cell in cells if not cell.error]
    errors = tuple(cell.error for cell in cells if cell.error)
    if not done:
        return Row(setting, 0, errors)
    correct_SN = np.stack([cell.correct_N for cell in done])
    accuracy, images = float(correct_SN.mean()), correct_SN.shape[1]
    low, high = wilson_interval(accuracy * images, images)
    compared = [cell.correct_N for cell in first or () if not cell.error]
    return Row(
        setting=setting,
        seeds=len(done),
        errors=errors,
        accuracy=accuracy,
        low=low,
        high=high,
        difference=paired_difference(np.stack(compared), correct_SN) if compared else None,
        train_s=_mean(done, "train_s"),
        bytes=_mean(done, "bytes"),
        p50_ms=_mean(done, "p50_ms"),
        int8_p50_ms=_mean(done, "int8_p50_ms"),
    )


def _mean(cells: Sequence[CellResult], name: str) -> float | None:
    """Mean over the seeds that were measured."""
    found = [cell.metrics[name] for cell in cells if name in cell.metrics]
    return sum(found) / len(found) if found else None
