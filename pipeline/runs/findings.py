"""What a step noticed, as data: the terminal, reports, the model card, `--json` and Prefect all show the same list.

    write_findings(folder, [Finding(code="duplicates", message="Left out, as copies of other images: 3 files.")])

Every step may write `findings.json` into its folder. A reused step has the findings of the time when it was built.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

FILE_NAME = "findings.json"


class Finding(BaseModel):
    """One thing that a step noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    """Stable name of the kind of finding."""
    message: str
    """One sentence for people: what was seen, and what to do if anything."""
    level: Literal["note", "warning"] = "warning"
    """A `note` describes how the data was understood; a `warning` may need action."""


class StepFinding(Finding):
    """A finding with the step that noticed it."""

    step: str


def write_findings(folder: Path, findings: Iterable[Finding]) -> None:
    """Write a step's findings into its folder."""
    entries = [finding.model_dump() for finding in findings]
    (folder / FILE_NAME).write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_findings(folders: Sequence[Path]) -> tuple[StepFinding, ...]:
    """Read the findings of finished steps, in order; a step without the file, such as one of an older version, has none.

    Args:
        folders: the steps' folders, each with the step's name.
    """
    found = []
    for folder in folders:
        path = folder / FILE_NAME
        if path.exists():
            entries = json.loads(path.read_text(encoding="utf-8"))
            found += [StepFinding(step=folder.name, **entry) for entry in entries]
    return tuple(found)
