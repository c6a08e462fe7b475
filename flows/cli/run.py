"""`edgeline run`: the whole pipeline, and the tables printed at its end.

Nothing heavy is imported here; the command imports what it needs when it runs.
"""

import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    Seed,
    Strategy,
    Weights,
    load_settings,
)

if TYPE_CHECKING:
    from rich.console import Console

    from edgeline.export.verification.report import VerificationReport
    from edgeline.flows.summary import Summary
    from edgeline.pipeline.config import PipelineConfig
    from edgeline.pipeline.runs.run import Run, StepResult

LABEL_WIDTH, VARIANT_WIDTH = 20, 24
"""Characters of a column in the table of variants."""


def run(
    data: Data = None,
    labels: Labels = None,
    layout: Layout = None,
    config: Config = None,
    name: Name = None,
    model: Model = None,
    weights: Weights = None,
    strategy: Strategy = None,
    seed: Seed = None,
    artifacts: Artifacts = None,
    overrides: Overrides = None,
    prefect: Annotated[
        bool, typer.Option(help="Run as a Prefect flow, on the configured or an embedded server; or as plain functions.")
    ] = True,
    demo: Annotated[bool, typer.Option(hidden=True, help="Finally classify a few held-out images.")] = False,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline: prepare, train, evaluate, export, make variants, verify, publish.

    Steps whose inputs, settings and code have not changed are reused, so a second run takes seconds, and a run that was
    stopped resumes. Only a verified model is published.

        edgeline run --data photos/

        edgeline run --data photos/ --model mobilenet_v2 --name birds --set train.epochs=50

        edgeline run --config edgeline.toml --seed 1 --json
    """
    from edgeline.flows.summary import summarize

    options = RunOptions(
        data=data,
        layout=layout,
        name=name,
        model=model,
        weights=weights,
        strategy=strategy,
        seed=seed,
        artifacts=artifacts,
        labels=labels,
    )
    settings = load_settings(config, overrides, options)
    with step_lines_on_stderr():
        finished, steps = _run_pipeline(settings, prefect)
    summary = summarize(finished, steps)
    if as_json:
        print(json.dumps(summary.to_dict()))
        return
    _show(summary, finished, demo)


@contextmanager
def step_lines_on_stderr() -> Iterator[None]:
    """Print what each step finds, when it is done."""
    from edgeline.flows.steps import LOG

    handler = logging.StreamHandler()
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(handler)


def _run_pipeline(settings: "PipelineConfig", prefect: bool) -> "tuple[Run, list[StepResult]]":
    from edgeline.flows.steps import is_up_to_date, run_pipeline

    if not prefect:
        return run_pipeline(settings)
    from edgeline.flows.orchestration.server import configured_url

    # With nothing to do, starting an embedded server would take longer than the whole pipeline.
    if configured_url() is None and is_up_to_date(settings):
        return run_pipeline(settings)
    from edgeline.flows.orchestration.server import run_with_prefect

    return run_with_prefect(settings)


def _show(summary: "Summary", finished: "Run", demo: bool) -> None:
    """Print the closing table, a few predictions of the published artifact for the demo, and what to do next."""
    from rich.console import Console
    from rich.markup import escape

    from edgeline.flows.summary import next_commands, read_verification, summary_table
    from edgeline.pipeline.data.samples import read_prepared

    console = Console(highlight=False)
    console.print(summary_table(summary))
    _show_variants(console, read_verification(summary.artifact))
    held_out = read_prepared(finished.step("prepare")).of("test")
    if demo:
        from edgeline.serve.classifier import Classifier

        console.print("\n[bold]the published artifact on held-out images[/]")
        classifier = Classifier.open(Path(summary.artifact))
        for sample in random.Random(0).sample(held_out, 5):
            [[best]] = classifier.predict([Path(sample.path).read_bytes()], top_k=1)
            console.print(
                f"  {escape(sample.name)}: {escape(best.label)} ({best.probability:.1%}), truly {escape(sample.label)}"
            )
    console.print("\n[bold]next[/]")
    image = held_out[0].path
    shown = str(Path(image).relative_to(Path.cwd())) if Path(image).is_relative_to(Path.cwd()) else image
    commands = next_commands(summary, shown, finished)
    width = max(len(command) for command, _ in commands)
    for command, purpose in commands:
        console.print(f"  {escape(command):{width}}  [dim]{purpose}[/]", soft_wrap=True)


def _show_variants(console: "Console", verification: "VerificationReport") -> None:
    """Print a table with one column per variant, as many side by side as fit."""
    from rich.markup import escape
    from rich.table import Table

    from edgeline.export.publishing.variant_table import rows

    variants = rows(verification)
    per_table = max(1, (console.width - LABEL_WIDTH) // VARIANT_WIDTH)
    for start in range(0, len(variants), per_table):
        shown = variants[start : start + per_table]
        table = Table("", *(escape(variant["Variant"]) for variant in shown), box=None, pad_edge=False)
        for heading in list(variants[0])[1:]:
            table.add_row(f"[bold]{heading}[/]", *(escape(variant[heading]) for variant in shown))
        console.print()
        console.print(table)
