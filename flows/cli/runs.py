"""`edgeline runs`: list, filter, export and send the runs in the run log.

Nothing heavy is imported here; the command imports what it needs when it runs.
"""

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeline.flows.cli.options import Json
from edgeline.serve.errors import ConfigError

if TYPE_CHECKING:
    from edgeline.pipeline.runs.run_log import RunEntry

COLUMNS = "name,model,train.strategy,seed,accuracy,train_s,experiment,state"


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
    entries.sort(key=lambda entry: _sort_key(entry, sort))
    if export is not None:
        _export(entries, export)
    if send is not None:
        from edgeline.pipeline.experiments.trackers import send as send_run

        for entry in entries:
            send_run(entry, artifacts, send)
        print(f"{len(entries)} runs sent to {send}", file=sys.stderr)
    if as_json:
        print(json.dumps([entry.values() for entry in entries]))
    elif export is None and send is None:
        _print(entries, columns.split(","))


def _sort_key(entry: "RunEntry", name: str) -> tuple[bool, float, str]:
    """Numbers by size, before texts; runs without the value first."""
    value = entry.values().get(name)
    if isinstance(value, bool | int | float):
        return True, float(value), ""
    return value is not None, 0.0, str(value)


def _export(entries: "list[RunEntry]", path: Path) -> None:
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


def _print(entries: "list[RunEntry]", columns: list[str]) -> None:
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
