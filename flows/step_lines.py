"""What a finished step shows in terminals, notebooks and logs, the same lines everywhere."""

import json

from edgeline.pipeline.data.report import describe_data
from edgeline.pipeline.runs.findings import read_findings
from edgeline.pipeline.runs.run import StepResult
from edgeline.pipeline.training.search.report import read_sweep, sweep_rows


def step_lines(result: StepResult) -> list[str]:
    """The lines of a step: for `prepare` how the data was understood, for `train` the table of a sweep; then its findings."""
    lines = []
    if result.name == "prepare":
        lines += describe_data(json.loads((result.folder / "summary.json").read_text(encoding="utf-8")))
    if result.name == "train" and (sweep := read_sweep(result.folder)) is not None:
        lines += _table(sweep_rows(sweep))
    return lines + [f"{finding.level}: {finding.message}" for finding in read_findings([result.folder])]


def _table(rows: list[dict[str, str]]) -> list[str]:
    """Rows by heading as aligned lines; all columns but the first to the right."""
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in table
    ]
