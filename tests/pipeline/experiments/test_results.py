"""The comparison of an experiment's cells, and its page."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from edgeline.pipeline.evaluation.metrics import paired_drop
from edgeline.pipeline.experiments.grid import Cell, make_cells, read_axes
from edgeline.pipeline.experiments.page import write_page
from edgeline.pipeline.experiments.results import CellResult, make_rows, paired_difference, read_cell, write_csv
from edgeline.pipeline.runs.run import Run

IMAGES = 50
HISTORY = ({"train_loss": 1.0, "val_loss": 1.1, "val_accuracy": 0.5}, {"train_loss": 0.5, "val_loss": 0.8, "val_accuracy": 0.7})


def correct(*wrong: int) -> np.ndarray:
    right_N = np.ones(IMAGES, bool)
    right_N[list(wrong)] = False
    return right_N


@pytest.fixture
def results() -> list[CellResult]:
    """Two settings with two seeds; one seed of the second failed. The third setting failed as a whole."""
    cells = make_cells({"data": "photos"}, read_axes(["train.epochs=1,2,3"]), seeds=2)
    metrics = {"train_s": 4.0, "bytes": 2e6}
    return [
        CellResult(cells[0], metrics=metrics, history=HISTORY, correct_N=correct(*range(10))),
        CellResult(cells[1], metrics=metrics | {"train_s": 6.0}, history=HISTORY, correct_N=correct(*range(8))),
        CellResult(cells[2], metrics=metrics, history=HISTORY, correct_N=correct(1, 2)),
        CellResult(cells[3], error="the loss became <nan> in epoch 2"),
        CellResult(cells[4], error="out of memory"),
        CellResult(cells[5], error="out of memory"),
    ]


def test_a_row_has_the_mean_over_seeds_and_the_paired_difference_to_the_first_row(results: list[CellResult]) -> None:
    first, second, failed = make_rows(results)
    assert first.accuracy == pytest.approx(1 - 9 / IMAGES)
    assert first.low is not None
    assert first.high is not None
    assert first.low < 0.82 < first.high
    assert (first.seeds, first.difference, first.train_s) == (2, None, 5.0)
    assert second.difference is not None
    assert second.difference.value == pytest.approx(7 / IMAGES)
    assert 0 < second.difference.low < 7 / IMAGES < second.difference.high
    assert (second.seeds, len(second.errors)) == (1, 1)
    assert (failed.seeds, failed.accuracy, failed.errors) == (0, None, ("out of memory",) * 2)


def test_with_one_seed_the_difference_is_that_of_a_paired_drop() -> None:
    better, worse = correct(1, 2)[None], correct(2, 3, 4, 5)[None]
    difference = paired_difference(worse, better)
    drop = paired_drop(lost=3, gained=1, total=IMAGES)
    assert (difference.value, difference.low, difference.high) == pytest.approx(drop)


def test_a_classifier_does_not_differ_from_itself_but_the_interval_is_not_empty() -> None:
    difference = paired_difference(correct(1)[None], correct(1)[None])
    assert difference.low < difference.value == 0 < difference.high


def test_the_page_has_the_table_the_plots_and_the_failures_and_requests_nothing(
    results: list[CellResult], tmp_path: Path
) -> None:
    text = write_page(tmp_path, "photos <1>", results).read_text()
    assert "Experiment photos &lt;1&gt;" in text
    assert text.count('src="data:image/png;base64,') == 3
    assert "3 of 6 runs finished on the same 50 test images" in text
    assert "the loss became &lt;nan&gt; in epoch 2" in text
    assert "edgeline run --data photos --set train.epochs=2" in text
    assert not re.search(r"(src|href)=.?(https?:)?//", text)


def test_an_experiment_of_which_every_cell_failed_has_a_page_too(results: list[CellResult], tmp_path: Path) -> None:
    assert "0 of 2 runs finished" in write_page(tmp_path, "photos", results[4:]).read_text()


def test_the_table_has_a_line_for_each_cell(results: list[CellResult], tmp_path: Path) -> None:
    write_csv(tmp_path / "cells.csv", results)
    rows = list(csv.DictReader((tmp_path / "cells.csv").read_text().splitlines()))
    assert [(row["seed"], row["train_s"]) for row in rows[:2]] == [("0", "4.0"), ("1", "6.0")]
    assert [row["setting"] for row in rows[1:3]] == ["epochs 1", "epochs 2"]
    assert rows[5]["error"] == "out of memory"


def test_a_cell_is_read_from_the_results_of_its_run(evaluated_run: Run) -> None:
    result = read_cell(Cell("as configured", 0, evaluated_run.config), evaluated_run)
    assert result.metrics["accuracy"] == result.correct_N.mean()
    assert len(result.history) == result.metrics["epochs"]
