"""What a finished run leaves in the Prefect UI: tables of its figures and of its variants, its confusion matrix, an event."""

import base64
import json
import re
from pathlib import Path

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.events import emit_event

from edgeline.export.publishing.variant_table import CAPTION, remarks, rows
from edgeline.flows.summary import read_verification, summarize, summary_rows
from edgeline.pipeline.runs.run import Run, StepResult

MAX_CLASSES = 30
"""A larger matrix is shown as its picture only."""
PUBLISHED = "edgeline.model.published"


def report(run: Run, steps: list[StepResult]) -> None:
    """Show a finished run in the UI, and announce what it published.

    Artifacts of one name share a key, so the UI lines up their versions. The event is the one to trigger on: it is emitted
    only where something new was published, not where a run found it published already.

    Args:
        run: finished up to its last step.
        steps: what each left behind, `publish` last.
    """
    summary = summarize(run, steps)
    key = artifact_key(summary["name"])
    figures = [{"what": what, "how much": how_much} for what, how_much in summary_rows(summary)]
    create_table_artifact(
        figures, key=key, description=f"{summary['name']} version {summary['version']}: {summary['artifact']}"
    )
    verification = read_verification(summary)
    create_table_artifact(
        [*rows(verification), *({"Variant": line} for line in remarks(verification))],
        key=f"{key}-variants",
        description=f"The model, float32 and its variants. {CAPTION}",
    )
    _report_confusion(key, run.step("evaluate"))
    if not steps[-1].reused:
        emit_event(
            PUBLISHED,
            resource={"prefect.resource.id": f"edgeline.model.{summary['name']}", "prefect.resource.name": summary["name"]},
            payload={field: summary[field] for field in ("version", "artifact", "shipped_top1", "model_bytes")},
        )


def artifact_key(name: str) -> str:
    """The key of a name's artifacts: Prefect takes lower-case letters, digits and dashes."""
    return "edgeline-" + re.sub(r"[^a-z0-9]+", "-", name.lower())


def confusion_table(confusion: list[list[int]], labels: list[str]) -> str:
    """A confusion matrix in Markdown, a row a true class."""
    cells = [_cell(label) for label in labels]
    lines = [["true \\ predicted", *cells], ["---", *["--:"] * len(cells)]]
    for label, counts in zip(cells, confusion, strict=True):
        lines.append([f"**{label}**", *(str(count) if count else "·" for count in counts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _report_confusion(key: str, folder: Path) -> None:
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    picture = base64.b64encode((folder / "confusion.png").read_bytes()).decode()
    create_image_artifact(
        key=f"{key}-confusion-image",
        image_url=f"data:image/png;base64,{picture}",
        description="Confusion matrix of the test split: shares of each true class.",
    )
    if len(evaluation["labels"]) <= MAX_CLASSES:
        create_markdown_artifact(
            key=f"{key}-confusion",
            markdown=confusion_table(evaluation["confusion"], evaluation["labels"]),
            description="Confusion matrix of the test split: counts, a row a true class.",
        )


def _cell(label: str) -> str:
    """A class name as Markdown text: no table border, no markup, no HTML."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~-])", r"\\\1", label)
