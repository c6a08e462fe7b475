"""The artifacts and events of a finished run in Prefect: tables of figures and variants, plots, and the decision.

Artifacts of one name share a key, so the UI shows their history.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.events import emit_event

from edgeline.export.promotion.decision import Bound, Decision
from edgeline.export.publishing.variant_table import CAPTION, rows
from edgeline.flows.operations.retrain import Retrained, decision_lines
from edgeline.flows.summary import read_verification, summarize, summary_rows
from edgeline.pipeline.runs.run import Run, StepResult

MAX_CLASSES = 30
"""Larger confusion matrices are shown as an image only."""
PLOTS = {
    "confusion": "Confusion matrix of the test split: shares of each true class.",
    "history": "Loss and accuracy by epoch.",
    "sweep": "The settings of the head that were tried.",
    "learning_curve": "Accuracy by number of training images.",
    "reliability": "How often the model is right, by its stated probability.",
    "embedding": "Map of the test images; mistakes are marked.",
}
"""Pictures that the evaluation may have written, each with its description."""
PUBLISHED = "edgeline.model.published"
PROMOTED, REJECTED = "edgeline.model.promoted", "edgeline.model.rejected"


def report(run: Run, steps: list[StepResult]) -> None:
    """Create the artifacts of a finished run, and emit an event if it published a new version.

    The event is meant for triggers: it is not emitted by a run whose artifact was already published.

    Args:
        run: finished up to its last step.
        steps: the result of each step, `publish` last.
    """
    summary = summarize(run, steps)
    key = artifact_key(summary.name)
    figures = [{"figure": label, "value": value} for label, value in summary_rows(summary)]
    create_table_artifact(figures, key=key, description=f"{summary.name} version {summary.version}: {summary.artifact}")
    verification = read_verification(summary.artifact)
    create_table_artifact(
        rows(verification),
        key=f"{key}-variants",
        description=f"The model, float32 and its variants. {CAPTION}",
    )
    found = [{"step": finding.step, "finding": finding.message, "level": finding.level} for finding in summary.findings]
    create_table_artifact(
        found, key=f"{key}-findings", description="What the steps noticed: data left out, variants not shipped."
    )
    _report_evaluation(key, run.step("evaluate"))
    if not steps[-1].reused:
        emit_event(
            PUBLISHED,
            resource={"prefect.resource.id": resource_id(summary.name), "prefect.resource.name": summary.name},
            payload=summary.model_dump(mode="json", include={"version", "artifact", "shipped_top1", "model_bytes"}),
        )


def report_decision(name: str, done: Retrained) -> None:
    """Create the artifact of a decision about a new version, and emit an event of what was decided.

    Args:
        name: of the published artifact.
        done: what the retraining did.
    """
    if (decision := done.decision) is None:
        return
    moved = "promoted to stable" if decision.promoted else f"not promoted, stable stays at {done.stable}"
    message = f"Version {done.version} is {moved}: {decision.reason}"
    create_table_artifact(decision_rows(decision), key=f"{artifact_key(name)}-decision", description=message)
    document = "\n".join(f"    {line}" for line in decision_lines(decision))
    create_markdown_artifact(
        key=f"{artifact_key(name)}-promotion",
        markdown=f"{_cell(message)}\n\n{document}\n\nThe whole comparison: `{done.event.decision}` in the name's folder.",
        description="The last decision about a new version.",
    )
    emit_event(
        PROMOTED if decision.promoted else REJECTED,
        resource={"prefect.resource.id": resource_id(name), "prefect.resource.name": name},
        payload={"version": done.version, "before": done.event.before, "reason": decision.reason, "message": message},
    )


def decision_rows(decision: Decision) -> list[dict[str, Any]]:
    """A decision as a table, one row for each variant."""
    return [
        {
            "variant": each.variant,
            "images": each.images,
            "before": f"{each.before:.2%}",
            "after": f"{each.after:.2%}",
            "lost": each.lost,
            "gained": each.gained,
            "accuracy, points": _points(each.accuracy),
            "mean recall, points": _points(each.macro_recall),
            "result": each.verdict,
        }
        for each in decision.variants
    ]


def _points(bound: Bound) -> str:
    return f"{100 * bound.gain:+.2f} ({100 * bound.low:+.2f} to {100 * bound.high:+.2f})"


def resource_id(name: str) -> str:
    """What events about a published name are of."""
    return f"edgeline.model.{name}"


def artifact_key(name: str) -> str:
    """The key of a name's artifacts: Prefect allows lower-case letters, digits and dashes."""
    return "edgeline-" + re.sub(r"[^a-z0-9]+", "-", name.lower())


def confusion_table(confusion: list[list[int]], labels: list[str]) -> str:
    """A confusion matrix in Markdown, one row per true class."""
    cells = [_cell(label) for label in labels]
    lines = [["true \\ predicted", *cells], ["---", *["--:"] * len(cells)]]
    for label, counts in zip(cells, confusion, strict=True):
        lines.append([f"**{label}**", *(str(count) if count else "·" for count in counts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _report_evaluation(key: str, folder: Path) -> None:
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    for plot, description in PLOTS.items():
        if (path := folder / f"{plot}.png").is_file():
            image = base64.b64encode(path.read_bytes()).decode()
            create_image_artifact(
                key=f"{key}-{plot.replace('_', '-')}-image",
                image_url=f"data:image/png;base64,{image}",
                description=description,
            )
    if len(evaluation["labels"]) <= MAX_CLASSES:
        create_markdown_artifact(
            key=f"{key}-confusion",
            markdown=confusion_table(evaluation["confusion"], evaluation["labels"]),
            description="Confusion matrix of the test split: counts, one row per true class.",
        )


def _cell(label: str) -> str:
    """A class name escaped for a Markdown table."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~-])", r"\\\1", label)
