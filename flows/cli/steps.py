"""The steps of a run as commands of their own: `edgeline prepare` to `edgeline publish`, but for `verify`.

Nothing heavy is imported here; a command imports what it needs when it runs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    RunFolder,
    RunOptions,
    Seed,
    Strategy,
    Weights,
    load_settings,
)

if TYPE_CHECKING:
    from edgeline.pipeline.runs.run import Run, StepResult


def prepare(
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
    as_json: Json = False,
) -> None:
    """Find, check, deduplicate and split the images; print the run folder, which the other steps take.

    The run stores the settings of all its steps, so they are given here. What was left out and why is in the run's
    `prepare/rejected.csv`, `duplicates.csv` and `conflicts.csv`. Your own files are never changed.

        edgeline prepare --data photos/

        edgeline prepare --data labels.csv --set prepare.test_share=0.25
    """
    from edgeline.pipeline.data.prepare import prepare as prepare_data

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
    run, result = prepare_data(load_settings(config, overrides, options))
    summary = json.loads((result.folder / "summary.json").read_text(encoding="utf-8"))
    report_step(run, result, summary, [], as_json)
    if not as_json:
        print(run.folder)


def train(folder: RunFolder, as_json: Json = False) -> None:
    """Train the checkpoint of a run.

    edgeline train artifacts/runs/photos-0123456789ab
    """
    run, result = execute_step(folder, "train")
    settings = json.loads((result.folder / "checkpoint.json").read_text(encoding="utf-8"))
    best = settings["history"][settings["best_epoch"] - 1]
    report = {key: settings[key] for key in ("model", "strategy", "seed", "device", "best_epoch")} | best
    line = (
        f"{settings['model']} on {settings['device']}: best of {len(settings['history'])} epochs is {settings['best_epoch']}, "
        f"validation accuracy {best['val_accuracy']:.2%}"
    )
    report_step(run, result, report, [line], as_json)


def evaluate(folder: RunFolder, as_json: Json = False) -> None:
    """Evaluate a run's checkpoint on its test split, and fit its temperature on the validation split.

    edgeline evaluate artifacts/runs/photos-0123456789ab
    """
    run, result = execute_step(folder, "evaluate")
    report = json.loads((result.folder / "evaluation.json").read_text(encoding="utf-8"))
    top1, calibration = report["top1"], report["calibration"]
    lines = [
        f"accuracy {top1['value']:.2%} (95 % interval {top1['low']:.2%} to {top1['high']:.2%}), {top1['total']} test images",
        f"macro F1 {report['macro']['f1']:.3f}",
        f"calibration error {calibration['ece_after']:.3f}, {calibration['ece_before']:.3f} before temperature "
        f"{calibration['temperature']:.2f}",
    ]
    report_step(run, result, report, lines, as_json)


def export(folder: RunFolder, as_json: Json = False) -> None:
    """Export a run's checkpoint to ONNX.

    edgeline export artifacts/runs/photos-0123456789ab
    """
    run, result = execute_step(folder, "export")
    path = result.folder / "model.onnx"
    size = path.stat().st_size
    report_step(run, result, {"model": str(path), "bytes": size}, [f"{path}: {size:,} bytes"], as_json)


def variants(folder: RunFolder, as_json: Json = False) -> None:
    """Make further variants of a run's ONNX file: int8, half precision, ONNX Runtime's format, other runtimes' formats.

    The setting `export.variants` lists them. For int8 on ONNX Runtime several recipes are tried; the variant is made only if
    one of them computes nearly what the float32 file does and is faster, and the reasons are printed.

    edgeline variants artifacts/runs/photos-0123456789ab
    """
    run, result = execute_step(folder, "variants")
    from edgeline.export.variants_report import VariantsReport

    report = VariantsReport.read(result.folder / "variants.json")
    lines = [
        f"int8 {entry.recipe}: SQNR {entry.similarity.sqnr_db:.1f} dB, same best class on "
        f"{entry.similarity.top1_agreement:.2%} of {entry.similarity.images} validation images, "
        f"{entry.integer_share:.0%} of the multiply-adds in integers"
        for entry in (report.int8.tried if report.int8 else ())
    ]
    lines += [f"{v.name}: {v.file}" if v.made else f"{v.name}: {v.why}" for v in report.variants]
    report_step(run, result, report.to_dict(), lines or ["export.variants lists none"], as_json)


def publish(folder: RunFolder, as_json: Json = False) -> None:
    """Publish a run's verified artifact to the store.

    edgeline publish artifacts/runs/photos-0123456789ab
    """
    run, result = execute_step(folder, "publish")
    state = "was already published" if result.reused else "is published"
    report = {"artifact": str(result.folder), "version": int(result.folder.name)}
    report_step(run, result, report, [f"{result.folder} {state}"], as_json)


def execute_step(folder: Path, name: str) -> "tuple[Run, StepResult]":
    """Execute one step of the run in a folder.

    Raises:
        ConfigError: it is not a run folder.
        EdgelineError: the step failed, or one that it reads has not been executed.
    """
    from edgeline.flows.steps import execute
    from edgeline.pipeline.runs.home import ensure_home
    from edgeline.pipeline.runs.run import open_run
    from edgeline.pipeline.runs.run_log import recorded

    run = open_run(folder)
    ensure_home(Path(run.config.artifacts))
    with recorded(run):
        return run, execute(name, run)


def report_step(run: "Run", result: "StepResult", report: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """Print what a step did and found: as JSON, or as lines for people."""
    from edgeline.flows.step_lines import step_lines
    from edgeline.pipeline.runs.findings import read_findings

    if as_json:
        step = {"name": result.name, "folder": str(result.folder), "reused": result.reused, "seconds": result.seconds}
        findings = [finding.model_dump() for finding in read_findings([result.folder])]
        print(json.dumps({"run": str(run.folder), "step": step, "report": report, "findings": findings}))
        return
    for line in (*lines, *step_lines(result)):
        print(line)
    print("reused, nothing it depends on has changed" if result.reused else f"done in {result.seconds:.1f} s")
