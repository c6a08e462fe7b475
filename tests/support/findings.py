"""A run whose verification has other findings."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from edgeline.pipeline.runs.findings import Finding, write_findings
from edgeline.pipeline.runs.run import Run


def run_with_findings(run: Run, folder: Path, findings: Iterable[Finding]) -> Run:
    """A run in a new folder: the results of `run`, and these findings of its verification."""
    folder.mkdir()
    for step in run.folder.iterdir():
        if step.name != "verify":
            (folder / step.name).symlink_to(step)
    (folder / "verify").mkdir()
    write_findings(folder / "verify", findings)
    return replace(run, folder=folder)
