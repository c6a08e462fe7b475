"""`edgeline drift`: what a model met in the field, against what it was judged on.

Nothing heavy is imported here: it imports what it needs when it runs.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeline.serve.cli.options import Json


def drift(
    snapshots: Annotated[
        list[Path],
        typer.Argument(metavar="SNAPSHOT...", help="Files that `edgeline predict --drift` wrote, of one device or of many."),
    ],
    artifact: Annotated[
        Path,
        typer.Option(
            help="The artifact they were taken with: its folder, or a name's folder in a store for the newest version."
        ),
    ],
    fail_over: Annotated[
        float | None, typer.Option(min=0, help="End with exit code 1 if a statistic's PSI is over this, and over chance.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell how far images and answers in the field are from those the artifact was judged on.

    For brightness, contrast, sizes, confidence, predicted classes and, of artifacts that tell it, the distance of the
    features: the population stability index (PSI), the PSI that images of the very same kind exceed once in a hundred
    times, and the Jensen-Shannon distance. A rule of thumb for PSI: under 0.1 nothing changed, over 0.25 much did.
    docs/drift.md says what is counted.

        edgeline drift drift.json --artifact artifacts/store/flowers

        edgeline drift devices/*.json --artifact artifacts/store/flowers/3 --fail-over 0.25 --json
    """
    from edgeline.serve.drift.report import LIMIT, compare

    report = compare(snapshots, artifact, LIMIT if fail_over is None else fail_over)
    if as_json:
        print(json.dumps(report))
    else:
        _show(report, len(snapshots))
    if fail_over is not None and report["drifted"]:
        raise typer.Exit(1)


def _show(report: dict[str, Any], files: int) -> None:
    snapshots = f"{files} snapshot" + ("s" if files > 1 else "")
    print(
        f"{report['model']} {report['version']}: {report['count']:,} images of {snapshots}, {report['since']} to "
        f"{report['until']}, against {report['reference_count']:,} held-out images"
    )
    print(f"{'':12}{'PSI':>8}{'by chance':>11}{'JS':>7}{'mean':>12}{'held-out':>12}")
    for name, found in report["statistics"].items():
        means = "".join(f"{found[key]:>12.4g}" for key in ("mean", "reference_mean") if key in found)
        line = f"{name:12}{found['psi']:>8.3f}{found['psi_by_chance']:>11.3f}{found['js']:>7.3f}{means:24}"
        print(f"{line}  drifted" if name in report["drifted"] else line.rstrip())
