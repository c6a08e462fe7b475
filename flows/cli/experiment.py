"""`edgeline experiment`: train a grid of settings on the same split, and compare them.

Nothing heavy is imported here; the command imports what it needs when it runs.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeline.flows.cli.options import Artifacts, Config, Data, Json, Layout, Name, RunOptions, Weights, load_settings
from edgeline.serve.errors import EdgelineError

if TYPE_CHECKING:
    from edgeline.flows.experiment import Outcome
    from edgeline.pipeline.config import PipelineConfig
    from edgeline.pipeline.experiments.grid import Cell
    from edgeline.pipeline.experiments.results import CellResult, Row


def experiment(
    data: Data = None,
    layout: Layout = None,
    config: Config = None,
    name: Name = None,
    weights: Weights = None,
    artifacts: Artifacts = None,
    strategies: Annotated[
        str | None, typer.Option(help="Strategies to compare, separated by commas; by default the configured one.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Backbones to compare, separated by commas; by default the configured one.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting with values to compare: `--set train.learning_rate=1e-3,3e-4`; may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of training for each combination, on the same split.", min=1)] = 1,
    processes: Annotated[int, typer.Option(help="Combinations that are trained at the same time.", min=1)] = 1,
    int8: Annotated[
        bool,
        typer.Option(help="Also export, verify and time the first seed of each combination, in float32 and int8."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train every combination of settings on the same split, and compare accuracy, time, size and latency.

    Every cell is an ordinary run: finished ones are reused, so a command that was stopped continues, and a longer list computes
    only what is new. A cell that fails costs that cell; the exit code is then 1. The folder of the experiment has the table
    (`cells.csv`), the plots and `experiment.html`.

        edgeline experiment --data photos/ --strategies head,lp-ft --models mobilenet_v2,efficientnet_lite0

        edgeline experiment --data photos/ --set train.learning_rate=1e-3,3e-4 --set train.batch_size=16,64 --seeds 3
    """
    from edgeline.flows.experiment import Experiment, run_experiment
    from edgeline.pipeline.experiments.grid import base_values, make_cells, read_axes

    axes = read_axes(overrides or [])
    for option, setting in ((strategies, "train.strategy"), (models, "model")):
        if option:
            axes = {**read_axes([f"{setting}={option}"]), **axes}
    options = RunOptions(
        data=data, layout=layout, name=name, model=None, weights=weights, strategy=None, seed=None, artifacts=artifacts
    )
    settings = load_settings(config, None, options)
    cells = make_cells(base_values(settings), axes, seeds)
    folder = _folder(settings, cells)
    outcomes = run_experiment(
        Experiment(
            name=folder.name,
            folder=folder,
            cells=cells,
            measure=int8,
            processes=processes,
            report=lambda outcome, done: _report(outcome, done, len(cells)),
        )
    )
    _finish(folder, outcomes, as_json)


def _folder(settings: "PipelineConfig", cells: "list[Cell]") -> Path:
    """The folder of an experiment: the same one for the same cells."""
    from edgeline.pipeline.runs.atomic_files import digest_of

    return Path(settings.artifacts) / "experiments" / f"{settings.artifact_name}-{digest_of([cell.key for cell in cells])[:8]}"


def _report(outcome: "Outcome", done: int, total: int) -> None:
    state = "failed: " + outcome.error if outcome.error else "reused" if outcome.reused else "done"
    print(f"{done}/{total} {outcome.cell.setting}, seed {outcome.cell.seed}: {state}", file=sys.stderr)


def _finish(folder: Path, outcomes: "list[Outcome]", as_json: bool) -> None:
    from edgeline.pipeline.experiments.page import best_command, write_page
    from edgeline.pipeline.experiments.results import CellResult, make_rows, read_cell, rows_to_json, write_csv
    from edgeline.pipeline.runs.atomic_files import write_json

    results = [
        read_cell(outcome.cell, outcome.run) if outcome.run else CellResult(outcome.cell, error=outcome.error)
        for outcome in outcomes
    ]
    rows = make_rows(results)
    write_csv(folder / "cells.csv", results)
    write_json(folder / "experiment.json", rows_to_json(rows))
    page = write_page(folder, folder.name, results)
    if as_json:
        print(json.dumps({"folder": str(folder), "rows": rows_to_json(rows)}))
    else:
        _print_rows(results, rows)
        print(f"\n{page}")
        if command := best_command(results, rows):
            print(f"publish the most accurate: {command}")
    failed = [result for result in results if result.error]
    if failed:
        raise EdgelineError(
            f"{len(failed)} of {len(results)} cells failed; the first: {failed[0].cell.setting}, seed {failed[0].cell.seed}: "
            f"{failed[0].error}; correct it and run the command again, the others are reused",
            code="cells_failed",
        )


def _print_rows(results: "list[CellResult]", rows: "list[Row]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from edgeline.pipeline.experiments.page import HEADINGS, cells_of, introduction

    shown = [cells_of(row) for row in rows]
    used = [index for index in range(len(HEADINGS)) if any(row[index] for row in shown)]
    table = Table(box=None, pad_edge=False)
    for index in used:
        table.add_column(HEADINGS[index], overflow="fold", no_wrap=index == 0)
    for row in shown:
        table.add_row(*(escape(row[index]) for index in used))
    console = Console(highlight=False)
    console.print(introduction(results))
    console.print(table)
