"""`edgeline experiment`, `find-rate` and `runs`: train a grid of settings, find a learning rate, look at what has been run.

Nothing heavy is imported here; the command imports what it needs when it runs.
"""

import csv
import json
import sys
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from edgeline.flows.cli.options import (
    Artifacts,
    Config,
    Data,
    Json,
    Layout,
    Model,
    Name,
    Overrides,
    RunOptions,
    Seed,
    Strategy,
    Weights,
    load_settings,
)
from edgeline.serve.errors import ConfigError, EdgelineError

if TYPE_CHECKING:
    from edgeline.flows.experiment import Outcome
    from edgeline.pipeline.config import PipelineConfig
    from edgeline.pipeline.experiments.grid import Cell
    from edgeline.pipeline.experiments.results import CellResult, Row
    from edgeline.pipeline.runs.run_log import RunEntry

COLUMNS = "name,model,train.strategy,seed,accuracy,train_s,experiment,state"


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


def runs(
    artifacts: Annotated[Path, typer.Option(help="Folder of runs, caches and the store.")] = Path("artifacts"),
    where: Annotated[
        list[str] | None,
        typer.Option(help="A condition on the runs: `model=mobilenet_v2`, `accuracy>=0.9`, `state!=failed`; may be repeated."),
    ] = None,
    sort: Annotated[str, typer.Option(help="Sort by this setting or figure, the largest last.")] = "time",
    columns: Annotated[str, typer.Option(help="Settings and figures to list, separated by commas.")] = COLUMNS,
    export: Annotated[
        Path | None,
        typer.Option(help="Write all settings and figures of the runs to this file, `.csv` or `.json`."),
    ] = None,
    send: Annotated[str | None, typer.Option(help="Copy the runs to `mlflow`, `wandb` or `tensorboard`.")] = None,
    as_json: Json = False,
) -> None:
    """List the runs of an artifacts folder with their settings, figures and errors, the newest last.

    The log is one SQLite file, `runs.sqlite`, which every run writes to. A deleted log is filled again from the run folders.

        edgeline runs --where model=mobilenet_v2 --where "accuracy>=0.9" --sort accuracy

        edgeline runs --where experiment=photos-1a2b3c4d --export runs.csv
    """
    from edgeline.pipeline.runs.run_log import RunLog

    log = RunLog(artifacts)
    log.refresh()
    entries = log.select(where or [])
    if entries:
        known = sorted({"time", *COLUMNS.split(","), *(name for entry in entries for name in entry.values())})
        for option, names in (("--sort", [sort]), ("--columns", columns.split(","))):
            check_names_of(option, names, known)
    entries.sort(key=lambda entry: _sort_key(entry, sort))
    if export is not None:
        _export_runs(entries, export)
    if send is not None:
        from edgeline.pipeline.experiments.trackers import send as send_run

        for entry in entries:
            send_run(entry, artifacts, send)
        print(f"{len(entries)} runs sent to {send}", file=sys.stderr)
    if as_json:
        print(json.dumps([entry.values() for entry in entries]))
    elif export is None and send is None:
        _print_runs(entries, columns.split(","))


def find_rate(
    folder: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run folder, for its data and settings.")] = None,
    data: Data = None,
    layout: Layout = None,
    config: Config = None,
    name: Name = None,
    model: Model = None,
    weights: Weights = None,
    strategy: Strategy = None,
    seed: Seed = None,
    artifacts: Artifacts = None,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=20, max=1000, help="Training steps.")] = 100,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; by default `learning_rate` in the run's folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find a learning rate for a strategy that trains layers: `lp-ft` unless another is set.

    The rate rises exponentially from 1e-6 to 1 over the steps, until the loss diverges. The suggested rate is half-way down the
    longest stretch on which the smoothed loss falls (Smith 2017; the "valley" of fastai's `lr_find`). From a trained head the
    loss may not fall by more than noise; then it is a third of the rate at which the loss begins to rise. The trained weights
    are not kept; the loss by rate is written as `learning_rate.png` and `learning_rate.json`.

        edgeline find-rate --data photos/ --strategy full

        edgeline find-rate artifacts/runs/photos-0123456789ab --set train.batch_size=64
    """
    if folder is not None:
        if given := [option for option, value in (("--data", data), ("--config", config)) if value]:
            raise ConfigError(f"RUN and {' and '.join(given)} both give the data; use one of them")
        from edgeline.pipeline.runs.run import open_run

        open_run(folder)  # or an error that it is none
        config = folder / "config.json"
        artifacts = artifacts or str(folder.resolve().parent.parent)
    options = RunOptions(
        data=data, layout=layout, name=name, model=model, weights=weights, strategy=strategy, seed=seed, artifacts=artifacts
    )
    settings = load_settings(config, overrides, options)
    from edgeline.flows.find_rate import PLOT_NAME, find_learning_rate

    found = find_learning_rate(settings, steps, out)
    curve = found.curve
    following = f"edgeline run --config {quote(str(found.run.folder / 'config.json'))} --strategy {curve.strategy}"
    following += f" --set train.learning_rate={curve.suggested:.1e}"
    if as_json:
        figures = curve.model_dump(include={"strategy", "suggested", "falls", "rises", "lowest", "diverged"})
        print(json.dumps({"run": str(found.run.folder), "folder": str(found.folder), **figures, "command": following}))
        return
    end = f"diverged at {curve.diverged:.1e}" if curve.diverged else "did not diverge"
    print(f"suggested learning rate for {curve.strategy}: {curve.suggested:.1e}")
    course = "falls clearly" if curve.falls else "does not fall by more than noise, because the head is trained already"
    print(f"the loss {course}; it rises above {curve.rises:.1e} and {end} ({len(curve.rates)} steps)")
    print(f"{found.folder / PLOT_NAME} shows the loss by rate")
    print(f"next: {following}")


def check_names_of(option: str, names: list[str], known: list[str]) -> None:
    """Reject names of settings and figures that no run has.

    Raises:
        ConfigError: with the nearest name.
    """
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known[:12])} and others (see --json)"
            raise ConfigError(f"{option}: no run has a setting or figure {name!r}; {hint}")


def _sort_key(entry: "RunEntry", name: str) -> tuple[bool, float, str]:
    """Numbers by size, before texts; runs without the value first."""
    value = entry.values().get(name)
    if isinstance(value, bool | int | float):
        return True, float(value), ""
    return value is not None, 0.0, str(value)


def _export_runs(entries: "list[RunEntry]", path: Path) -> None:
    rows = [entry.values() for entry in entries]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        names = list(dict.fromkeys(name for row in rows for name in row))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(rows)
    else:
        raise ConfigError(f"--export {path}: the name must end in .csv or .json")
    print(f"{len(rows)} runs written to {path}", file=sys.stderr)


def _print_runs(entries: "list[RunEntry]", columns: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix("train."), overflow="fold")
    for entry in entries:
        values = entry.values()
        table.add_row(*(escape(_text(values.get(column))) for column in columns))
    console.print(table)
    for entry in entries:
        if entry.error:
            console.print(f"{entry.run}: {escape(entry.error)}", markup=False, soft_wrap=True)
    console.print(f"{len(entries)} runs")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
