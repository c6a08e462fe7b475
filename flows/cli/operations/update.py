"""`edgeline teach` and `edgeline retrain`: the next version of a published model.

Nothing heavy is imported here; each command imports what it needs when it runs.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from edgeline.flows.cli.options import (
    Artifacts,
    Config,
    Data,
    Json,
    Labels,
    Layout,
    Model,
    Name,
    Overrides,
    RunOptions,
    load_settings,
)
from edgeline.flows.cli.run import step_lines_on_stderr

if TYPE_CHECKING:
    from edgeline.export.publishing.comparison import ClassAccuracy, Compared, Comparison, Interval
    from edgeline.flows.operations.retrain import Retrained


def retrain(
    data: Data = None,
    labels: Labels = None,
    layout: Layout = None,
    config: Config = None,
    name: Name = None,
    model: Model = None,
    artifacts: Artifacts = None,
    overrides: Overrides = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(help="Ignore a check of the new photos: `class_lost`, `photos_blank` or `labels_suspicious`."),
    ] = None,
    inbox: Annotated[
        Path | None, typer.Option(help="Folder of photos that wait for labels, which is reported if nothing has changed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train again if the data has changed, and promote the new version if it is not worse.

    The first version of a name becomes `stable`. Later, new photos are checked, images that a published version knows keep
    their splits, and the steps run as in `edgeline run`. Then the new version and the stable one answer the test images that
    neither has learned from, through their shipped files. The new one is promoted to `stable` if it loses at most
    `promote.margin` of accuracy and of mean recall at `promote.confidence`, in float32 and int8, and no class is worse by more
    than chance. Otherwise `stable` stays, and the reason is in its history (`edgeline show`).

        edgeline retrain --data photos/ --name birds

        edgeline retrain --data photos/ --name birds --labels inbox/labels.csv
    """
    from edgeline.flows.operations.retrain import Check, retrained_lines
    from edgeline.flows.operations.retrain import retrain as retrain_model

    if unknown := [code for code in accept or () if code not in get_args(Check)]:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(get_args(Check))}", param_hint="--accept")
    options = RunOptions(
        data=data,
        layout=layout,
        name=name,
        model=model,
        weights=None,
        strategy=None,
        seed=None,
        artifacts=artifacts,
        labels=labels,
    )
    settings = load_settings(config, overrides, options)
    with step_lines_on_stderr():
        done = retrain_model(settings, accepted=tuple(accept or ()), inbox=inbox)
    if as_json:
        print(json.dumps(to_dict(done)))
        return
    for line in retrained_lines(done, settings.store / settings.artifact_name):
        print(line)


def to_dict(done: "Retrained") -> dict[str, object]:
    """What `retrain` did, as JSON types."""
    return {
        "version": done.version,
        "stable": done.stable,
        "trained": done.trained,
        "promoted": done.event.action == "promote" and done.event.version == done.stable,
        "reason": done.event.why,
        "waiting": done.waiting,
        "decision": None if done.decision is None else done.decision.to_dict(),
    }


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
    from edgeline.flows.operations.teach import teach as teach_model
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
