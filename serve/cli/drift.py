"""`edgeline drift`: production images compared with an artifact's held-out images. Imports its dependencies when it runs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeline.serve.cli.options import Json


def drift(
    snapshots: Annotated[
        list[Path],
        typer.Argument(metavar="SNAPSHOT...", help="Files written by `edgeline predict --drift` on one or more devices."),
    ],
    artifact: Annotated[
        Path,
        typer.Option(help="The artifact that produced them: its folder, or a name's folder in a store for the stable version."),
    ],
    fail_over: Annotated[
        float | None, typer.Option(min=0, help="Exit code 1 if the PSI of a statistic exceeds both this and `by chance`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare production images and predictions with the artifact's held-out images.

    For brightness, contrast, sizes, confidence, predicted classes and, if the artifact has it, the distance of the features:
    the population stability index (PSI), the PSI that images of the same distribution exceed in one of a hundred cases, and
    the Jensen-Shannon distance. Rule of thumb for PSI: below 0.1 no change, above 0.25 a large change. docs/drift.md defines
    the statistics.

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
