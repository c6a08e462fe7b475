"""What a finished step shows in terminals, notebooks and logs, the same lines everywhere."""

import json

from edgeline.pipeline.data.report import describe_data
from edgeline.pipeline.runs.findings import read_findings
from edgeline.pipeline.runs.run import StepResult


def step_lines(result: StepResult) -> list[str]:
    """The lines of a step: for `prepare` how the data was understood, then its findings."""
    lines = []
    if result.name == "prepare":
        lines += describe_data(json.loads((result.folder / "summary.json").read_text(encoding="utf-8")))
    return lines + [f"{finding.level}: {finding.message}" for finding in read_findings([result.folder])]
