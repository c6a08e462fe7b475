"""`edgeline teach`: add photos to a published model's data, train, verify, publish, and compare with the version before.

Nothing heavy is imported here; the command imports what it needs when it runs.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeline.flows.cli.options import Artifacts, Json
from edgeline.flows.cli.run import step_lines_on_stderr

if TYPE_CHECKING:
    from edgeline.export.publishing.comparison import ClassAccuracy, Compared, Comparison, Interval


def teach(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The artifact's name.")],
    classes: Annotated[
        list[str], typer.Argument(metavar="CLASS=DIR...", help="A class, known or new, and a folder with photos of it.")
    ],
    artifacts: Artifacts = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be added.")] = False,
    as_json: Json = False,
) -> None:
    """Add photos, or a class, to a published model and publish the next version.

    The photos are copied into the folders of the model's data, into `train/` if it has splits; if the data is a CSV file, it
    gets a row for each. Then the steps run as in `edgeline run`, with the same settings and the whole release gate; what a
    frozen backbone has computed before is reused. If nothing is published, the data is left as before.

    Finally both versions are compared on the test images that neither has learned from.

        edgeline teach birds wren=new-wrens/

        edgeline teach birds wren=new-wrens/ owl=owls/ --dry-run
    """
    from edgeline.flows.teach import teach as teach_model
    from edgeline.pipeline.runs.home import ensure_home
    from edgeline.pipeline.sources.additions import parse_classes

    folder = Path(artifacts or "artifacts")
    ensure_home(folder)
    with step_lines_on_stderr():
        taught = teach_model(
            name, parse_classes(classes), artifacts=folder, show=lambda line: print(line, file=sys.stderr), dry_run=dry_run
        )
    if taught is None:
        return
    if as_json:
        steps = [{"name": s.name, "reused": s.reused, "seconds": s.seconds} for s in taught.steps]
        print(json.dumps({"artifact": str(taught.steps[-1].folder), "steps": steps, **taught.comparison.to_dict()}))
        return
    print(f"published {taught.steps[-1].folder}")
    for line in comparison_lines(taught.comparison):
        print(line)


def comparison_lines(comparison: "Comparison") -> list[str]:
    """A comparison as lines for the terminal."""
    lines = [f"version {comparison.after} against {comparison.before}, on test images that neither has learned from:"]
    if comparison.other_classes is not None:
        lines.append(f"  other classes: {_compared(comparison.other_classes)}")
    return lines + [line for entry in comparison.taught for line in _class_lines(entry)]


def _class_lines(entry: "ClassAccuracy") -> list[str]:
    if entry.accuracy is None:
        return [f"  {entry.label}: not measured, it has no test images"]
    if entry.before is not None:
        lines = [f"  {entry.label}: {_compared(entry.before)}"]
    else:
        lines = [f"  {entry.label}, new: {_share(entry.accuracy)} of {entry.images} images"]
    for title, found in (("taken for", entry.predicted_as), ("mistaken for it", entry.mistaken_for_it)):
        if found:
            lines.append(f"    {title}: {', '.join(f'{label} {count}' for label, count in found.items())}")
    return lines


def _compared(entry: "Compared") -> str:
    gain = entry.gain
    return (
        f"{entry.after:.2%}, before {entry.before:.2%}; difference {100 * gain.value:+.2f} points (95 % interval "
        f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f}), {entry.images} images"
    )


def _share(interval: "Interval") -> str:
    return f"{interval.value:.2%} (95 % interval {interval.low:.2%} to {interval.high:.2%})"
