"""`experiment.html`: one page with the table, the plots and the failures of an experiment. It works offline."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from edgeline.pipeline.experiments.grid import command_of
from edgeline.pipeline.experiments.plots import write_accuracy_png, write_costs_png, write_curves_png
from edgeline.pipeline.experiments.results import CellResult, Row, make_rows

STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;white-space:nowrap}
th,td{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #8884}
th:first-child,td:first-child{text-align:left}
img{max-width:100%;background:#fff;border-radius:6px}
code{white-space:pre-wrap;overflow-wrap:anywhere}
"""
HEADINGS = (
    "Setting",
    "Seeds",
    "Accuracy, %",
    "95 % interval",
    "To the first, points",
    "Train, s",
    "MB",
    "float32, ms",
    "int8, ms",
)
PLOTS = (
    ("accuracy.png", "Accuracy, and the difference to the first setting, with 95 % intervals"),
    ("costs.png", "Cost of each setting"),
    ("curves.png", "Learning curves, one line for each seed"),
)


def write_page(folder: Path, name: str, results: Sequence[CellResult]) -> Path:
    """Write the plots and `experiment.html` into a folder.

    Args:
        folder: existing.
        name: of the experiment, for the title.
        results: of every cell, in order.

    Returns:
        The page.
    """
    rows = make_rows(results)
    write_accuracy_png(folder / "accuracy.png", rows)
    write_costs_png(folder / "costs.png", rows)
    write_curves_png(folder / "curves.png", results)
    figures = "".join(f'<h2>{title}</h2><img alt="{title}" src="{_data_uri(folder / file)}">' for file, title in PLOTS)
    title = f"Experiment {html.escape(name)}"
    path = folder / "experiment.html"
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1><p>{html.escape(introduction(results))}</p>"
        f'<div class="wide">{_table(rows)}</div>{figures}{_failures(results)}{_best(results, rows)}</html>\n',
        encoding="utf-8",
    )
    return path


def introduction(results: Sequence[CellResult]) -> str:
    """One sentence: how many runs there are, and of how many test images the figures are."""
    done = [result for result in results if not result.error]
    images = f" on the same {len(done[0].correct_N)} test images" if done else ""
    return f"{len(done)} of {len(results)} runs finished{images}. Accuracies are means over seeds."


def cells_of(row: Row) -> list[str]:
    """The cells of a row, under `HEADINGS`."""
    if row.accuracy is None or row.low is None or row.high is None:
        return [row.setting, "0", "failed", *[""] * 6]
    return [
        row.setting,
        f"{row.seeds}" + (f" ({len(row.errors)} failed)" if row.errors else ""),
        f"{100 * row.accuracy:.1f}",
        f"{100 * row.low:.1f} to {100 * row.high:.1f}",
        str(row.difference) if row.difference else "",
        _number(row.train_s),
        _number(row.bytes, 1e6),
        _number(row.p50_ms),
        _number(row.int8_p50_ms),
    ]


def _number(value: float | None, unit: float = 1) -> str:
    return "" if value is None else f"{value / unit:.1f}"


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{heading}" for heading in HEADINGS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells_of(row)) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _failures(results: Sequence[CellResult]) -> str:
    failed = [result for result in results if result.error]
    if not failed:
        return ""
    items = "".join(
        f"<li>{html.escape(result.cell.setting)}, seed {result.cell.seed}: {html.escape(result.error)}" for result in failed
    )
    return f"<h2>Failed</h2><ul>{items}</ul>"


def _best(results: Sequence[CellResult], rows: Sequence[Row]) -> str:
    command = best_command(results, rows)
    if not command:
        return ""
    return f"<h2>Publish the most accurate setting</h2><p>What is trained is reused: <code>{html.escape(command)}</code></p>"


def best_command(results: Sequence[CellResult], rows: Sequence[Row]) -> str:
    """The command that publishes the most accurate setting; empty if all have failed."""
    measured = [row for row in rows if row.accuracy is not None]
    if not measured:
        return ""
    best = max(measured, key=lambda row: row.accuracy or 0)
    return command_of(next(result.cell for result in results if result.cell.setting == best.setting and not result.error))


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
