"""The commands of the line: `edgeline run`, and one for each of its steps.

Nothing heavy is imported here; a command imports what it needs when it runs.
"""

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeline.serve.errors import ConfigError, VerificationError

if TYPE_CHECKING:
    from rich.console import Console

    from edgeline.export.verification.report import VerificationReport
    from edgeline.pipeline.config import PipelineConfig
    from edgeline.pipeline.runs.run import Run, StepResult

Data = Annotated[
    str | None,
    typer.Option(
        help="A folder of class folders; or one with `train/`, `val/`, `test/` folders of class folders; or a CSV file with "
        "`path,label[,split][,group]`; or `digits`, the embedded data."
    ),
]
Config = Annotated[Path | None, typer.Option(help="A TOML or YAML file of settings; see docs/config.md.")]
Name = Annotated[str | None, typer.Option(help="The artifact's name; by default made from the data's.")]
Model = Annotated[
    str | None, typer.Option(help="`efficientnet_lite0` to `_lite2`, a torchvision classifier, or `timm:<name>`.")
]
Weights = Annotated[str | None, typer.Option(help="`imagenet`, `none`, or a local .pth or .safetensors file.")]
Strategy = Annotated[str | None, typer.Option(help="`head`, `full`, `differential` or `gradual`.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the split and of training.")]
Artifacts = Annotated[str | None, typer.Option(help="Folder of runs, caches and the store.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Any setting: `--set train.epochs=5`; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LABEL_WIDTH, FORM_WIDTH = 20, 24
"""Characters of a column in the table of the model's forms."""
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, as `edgeline prepare` printed it.")]


def register(app: typer.Typer) -> None:
    """Add the commands of the line to a command line."""
    app.command("run")(run)
    for command in (prepare, train, evaluate, export, variants, verify, publish):
        app.command()(command)


def run(
    data: Data = None,
    config: Config = None,
    name: Name = None,
    model: Model = None,
    weights: Weights = None,
    strategy: Strategy = None,
    seed: Seed = None,
    artifacts: Artifacts = None,
    overrides: Overrides = None,
    prefect: Annotated[
        bool, typer.Option(help="Run as a Prefect flow, on the configured server or an embedded one; or as plain functions.")
    ] = True,
    demo: Annotated[bool, typer.Option(hidden=True, help="End by classifying a few held-out images.")] = False,
    as_json: Json = False,
) -> None:
    """Run the whole line: prepare, train, evaluate, export, make variants, verify, publish.

    Steps whose inputs, settings and code have not changed are reused, so running it again costs seconds, and a run that
    was stopped goes on where it was. Nothing is published that was not verified.

        edgeline run --data photos/

        edgeline run --data photos/ --model mobilenet_v2 --name birds --set train.epochs=50

        edgeline run --config edgeline.toml --seed 1 --json
    """
    from edgeline.flows.summary import summarize

    settings = _load(config, overrides, data, name, model, weights, strategy, seed, artifacts)
    finished, steps = _run_line(settings, prefect)
    summary = summarize(finished, steps)
    if as_json:
        print(json.dumps(summary))
        return
    _show(summary, finished, demo)


def prepare(
    data: Data = None,
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
    """Find, open, compare and split the images; print the run's folder, which the other steps take.

    The run keeps the settings of all its steps, so they are given here. What was left out and why is in the run's
    `prepare/rejected.csv`, `duplicates.csv` and `conflicts.csv`; your own files are only read.

        edgeline prepare --data photos/

        edgeline prepare --data labels.csv --set prepare.test_share=0.25
    """
    from edgeline.pipeline.data.prepare import prepare as prepare_data

    made, result = prepare_data(_load(config, overrides, data, name, model, weights, strategy, seed, artifacts))
    summary = json.loads((result.folder / "summary.json").read_text(encoding="utf-8"))
    rejected = f"{summary['rejected']} rejected, {summary['duplicates']} duplicates, {summary['conflicts']} conflicts"
    lines = [
        f"{summary['kept']} images of {len(summary['labels'])} classes; {rejected}",
        *summary["warnings"],
        str(made.folder),
    ]
    _report(made, result, summary, lines, as_json)


def train(folder: RunFolder, as_json: Json = False) -> None:
    """Train the checkpoint of a run.

    edgeline train artifacts/runs/photos-0123456789ab
    """
    made, result = _do(folder, "train")
    settings = json.loads((result.folder / "checkpoint.json").read_text(encoding="utf-8"))
    best = settings["history"][settings["best_epoch"] - 1]
    report = {key: settings[key] for key in ("model", "strategy", "seed", "device", "best_epoch")} | best
    line = (
        f"{settings['model']} on {settings['device']}: best of {len(settings['history'])} epochs is {settings['best_epoch']}, "
        f"validation accuracy {best['val_accuracy']:.2%}"
    )
    _report(made, result, report, [line], as_json)


def evaluate(folder: RunFolder, as_json: Json = False) -> None:
    """Evaluate a run's checkpoint on its test split, and fit its temperature on validation.

    edgeline evaluate artifacts/runs/photos-0123456789ab
    """
    made, result = _do(folder, "evaluate")
    report = json.loads((result.folder / "evaluation.json").read_text(encoding="utf-8"))
    top1, calibration = report["top1"], report["calibration"]
    lines = [
        f"accuracy {top1['value']:.2%} (95 % interval {top1['low']:.2%} to {top1['high']:.2%}), {top1['total']} test images",
        f"macro F1 {report['macro']['f1']:.3f}",
        f"calibration error {calibration['ece_after']:.3f}, {calibration['ece_before']:.3f} before temperature "
        f"{calibration['temperature']:.2f}",
    ]
    _report(made, result, report, lines, as_json)


def export(folder: RunFolder, as_json: Json = False) -> None:
    """Export a run's checkpoint to ONNX.

    edgeline export artifacts/runs/photos-0123456789ab
    """
    made, result = _do(folder, "export")
    path = result.folder / "model.onnx"
    size = path.stat().st_size
    _report(made, result, {"model": str(path), "bytes": size}, [f"{path}: {size:,} bytes"], as_json)


def variants(folder: RunFolder, as_json: Json = False) -> None:
    """Make the further variants of a run's ONNX file: int8, half precision, ONNX Runtime's format, other runtimes'.

    Which ones, the run's settings say (`export.variants`). int8 for ONNX Runtime is tried in several ways, and made only
    where one of them loses next to nothing and is faster; the reasons are told.

    edgeline variants artifacts/runs/photos-0123456789ab
    """
    made, result = _do(folder, "variants")
    from edgeline.export.variants_report import VariantsReport

    report = VariantsReport.read(result.folder / "variants.json")
    lines = [
        f"int8 {entry.recipe}: accuracy drop {entry.accuracy.drop_points:.2f} points, SQNR {entry.similarity.sqnr_db:.1f} dB, "
        f"{entry.integer_share:.0%} of the multiply-adds in integers"
        for entry in (report.int8.tried if report.int8 else ())
    ]
    lines += [f"{v.name}: {v.file}" if v.made else f"{v.name}: {v.why}" for v in report.variants]
    _report(made, result, report.to_dict(), lines or ["no variants are asked for"], as_json)


def verify(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]", help="The run's folder; with `--target`, a published artifact's folder; not with `--onnx`."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="`arm64` or `x86-avx2`: have a published artifact prove itself on an emulated processor of that kind."
        ),
    ] = None,
    artifacts: Annotated[
        str, typer.Option(help="With `--target`: the folder whose cache keeps the emulated machine.")
    ] = "artifacts",
    onnx: Annotated[Path | None, typer.Option(help="Judge this ONNX classifier from elsewhere instead of a run.")] = None,
    data: Annotated[Path | None, typer.Option(help="With `--onnx`: a folder of photos; no labels are needed.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="With `--onnx`: what it must equal: TorchScript, a program of torch.export, or another ONNX file."),
    ] = None,
    trust_program: Annotated[
        bool, typer.Option("--trust-program", help="Let the code of a TorchScript or torch.export file run, with your rights.")
    ] = False,
    mean: Annotated[
        str | None, typer.Option(help="With `--onnx`: of the values 0 to 1, one number or three; by default ImageNet's.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="With `--onnx`: as `--mean`.")] = None,
    size: Annotated[str | None, typer.Option(help="With `--onnx`: `224` or `HEIGHTxWIDTH`, where the file says none.")] = None,
    crop_fraction: Annotated[
        float | None, typer.Option(help="With `--onnx`: share of the shorter side that is kept; by default 0.875.")
    ] = None,
    interpolation: Annotated[
        str | None, typer.Option(help="With `--onnx`: `bilinear`, `bicubic` (the default) or `lanczos`.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="With `--onnx`: most photos to look at, spread over the folder; by default 512.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hold a run's ONNX file and its variants against PyTorch, from image bytes to probabilities.

    Exit code 0 only if all thresholds are held. With `--target` a published artifact answers its golden samples under qemu:
    `arm64` with the ARM build of ONNX Runtime, `x86-avx2` as on x86 without VNNI, whose int8 products saturate; int8 is then
    also tried without the setting that makes them exact, which decides nothing. That takes `qemu-user-static` and some minutes.

    With `--onnx` any classifier's ONNX file is held against the program it was made from, on photos of yours: float must
    equal it, int8 and half precision must be like it, and every batch size, thread count and level of optimization must give
    the same. What is wrong is named: the order of channels or classes, the normalization, the first layer that differs.

        edgeline verify artifacts/runs/photos-0123456789ab

        edgeline verify artifacts/store/photos --target arm64

        edgeline verify artifacts/store/photos --target x86-avx2

        edgeline verify --onnx model.onnx --data photos/ --against model.pt2 --trust-program

        edgeline verify --onnx model.int8.onnx --data photos/ --against model.onnx --mean 0.5 --std 0.5
    """
    options = {
        "data": data,
        "against": against,
        "trust_program": trust_program or None,
        "mean": mean,
        "std": std,
        "size": size,
        "crop_fraction": crop_fraction,
        "interpolation": interpolation,
        "images": images,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if onnx is not None:
        from edgeline.flows.cli.verify_onnx import verify_file

        if folder is not None or target is not None:
            raise ConfigError("--onnx judges a file alone: leave out RUN and --target, or leave out --onnx")
        verify_file(onnx, given, as_json)
        return
    if given:
        raise ConfigError(f"--{next(iter(given)).replace('_', '-')} belongs to --onnx; say which file with --onnx FILE")
    if folder is None:
        raise typer.BadParameter("say which RUN, or which file with --onnx", param_hint="RUN")
    if target is not None:
        _verify_on(target, folder, Path(artifacts), as_json)
        return
    try:
        made, result = _do(folder, "verify")
    except VerificationError as error:
        failed = folder / "verify.partial" / "verification.json"
        if as_json and error.code == VerificationError.code and failed.is_file():
            print(failed.read_text(encoding="utf-8"), end="")
            raise typer.Exit(1) from None
        raise
    from edgeline.export.publishing.variant_table import remarks
    from edgeline.export.verification.report import VerificationReport

    report = VerificationReport.read(result.folder / "verification.json")
    lines = [
        f"passed: {report.images.total} images, batches {', '.join(str(c.batch) for c in report.comparisons)}",
        f"max difference {report.max_difference:.2g} (at most {report.thresholds.max_difference:g} allowed)",
        f"same best class {report.top1_agreement:.2%}",
        *remarks(report),
    ]
    _report(made, result, report.to_dict(), lines, as_json)


def publish(folder: RunFolder, as_json: Json = False) -> None:
    """Publish a run's verified artifact to the store.

    edgeline publish artifacts/runs/photos-0123456789ab
    """
    made, result = _do(folder, "publish")
    said = "was published before" if result.reused else "is published"
    report = {"artifact": str(result.folder), "version": int(result.folder.name)}
    _report(made, result, report, [f"{result.folder} {said}"], as_json)


def _verify_on(target: str, artifact: Path, artifacts: Path, as_json: bool) -> None:
    from edgeline.export.emulation import arm64, avx2
    from edgeline.export.emulation.machine import check

    machines = {machine.TARGET: machine.prepare_machine for machine in (arm64, avx2)}
    if target not in machines:
        raise ConfigError(f"--target must be {' or '.join(machines)}, got {target!r}")
    machine = machines[target](artifacts / "cache" / target)
    entries = check(artifact, machine)
    exact = [entry["variant"] for entry in entries if entry["exact_setting"]]
    # What the setting is for: told, but no device runs it so.
    told = check(artifact, machine, variants=exact, saturating=True) if exact else []
    for entry in (*entries, *told):
        print(json.dumps({"target": target, **entry}) if as_json else _proof_line(target, entry, told=entry in told))
    if not all(entry["proven"] for entry in entries):
        raise typer.Exit(1)


def _proof_line(target: str, entry: dict[str, Any], *, told: bool) -> str:
    setting = "the exact setting" if entry["exact_setting"] else "no exact setting"
    where = f"{target}, {setting}" + (", only to see what it is for" if told else "")
    if not entry["proven"]:
        return f"{entry['variant']}: not proven on {where}: {entry['error']}"
    return (
        f"{entry['variant']}: proven on {where}; {entry['samples']} golden samples: probabilities differ by at most "
        f"{entry['max_difference']:.2g}, logits by {entry['max_logit_difference']:.2g} of the largest (tolerated "
        f"{entry['logit_tolerance']:.2g}), {entry['sample_s']:g} s a sample"
    )


def _load(
    config: Path | None,
    overrides: list[str] | None,
    data: str | None,
    name: str | None,
    model: str | None,
    weights: str | None,
    strategy: str | None,
    seed: int | None,
    artifacts: str | None,
) -> "PipelineConfig":
    from edgeline.pipeline.config import load_config

    overrides = [*(overrides or []), *([f"train.strategy={strategy}"] if strategy else [])]
    options = {"data": data, "name": name, "model": model, "weights": weights, "seed": seed, "artifacts": artifacts}
    return load_config(config, overrides, **options)


def _run_line(settings: "PipelineConfig", prefect: bool) -> "tuple[Run, list[StepResult]]":
    from edgeline.flows.steps import is_up_to_date, run_pipeline

    if not prefect:
        return run_pipeline(settings)
    from edgeline.flows.orchestration.server import configured_url

    # With nothing to do, an embedded server would take longer to start than the whole line, and be gone at once.
    if configured_url() is None and is_up_to_date(settings):
        return run_pipeline(settings)
    from edgeline.flows.orchestration.server import run_with_prefect

    return run_with_prefect(settings)


def _do(folder: Path, name: str) -> "tuple[Run, StepResult]":
    from edgeline.flows.steps import AFTER_PREPARE
    from edgeline.pipeline.runs.run import open_run

    made = open_run(folder)
    return made, AFTER_PREPARE[name](made)


def _report(made: "Run", result: "StepResult", report: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        step = {"name": result.name, "folder": str(result.folder), "reused": result.reused, "seconds": result.seconds}
        print(json.dumps({"run": str(made.folder), "step": step, "report": report}))
        return
    for line in lines:
        print(line)
    print("reused, nothing it depends on has changed" if result.reused else f"done in {result.seconds:.1f} s")


def _show(summary: dict[str, Any], finished: "Run", demo: bool) -> None:
    """Print the closing table, a few answers of the published artifact for the demo, and what to do next."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from edgeline.flows.summary import next_commands, read_verification, summary_rows
    from edgeline.pipeline.data.samples import read_prepared

    console = Console(highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    for what, how_much in summary_rows(summary):
        table.add_row(f"[bold]{what}[/]", escape(how_much))
    console.print(table)
    _show_variants(console, read_verification(summary))
    held_out = read_prepared(finished.step("prepare")).of("test")
    if demo:
        from edgeline.serve.classifier import Classifier

        console.print("\n[bold]the published artifact on held-out images[/]")
        classifier = Classifier.open(Path(summary["artifact"]))
        for sample in random.Random(0).sample(held_out, 5):
            [[best]] = classifier.predict([Path(sample.path).read_bytes()], top_k=1)
            console.print(
                f"  {escape(sample.name)}: {escape(best.label)} ({best.probability:.1%}), truly {escape(sample.label)}"
            )
    console.print("\n[bold]next[/]")
    image = held_out[0].path
    commands = next_commands(
        summary, str(Path(image).relative_to(Path.cwd())) if Path(image).is_relative_to(Path.cwd()) else image
    )
    width = max(len(command) for command, _ in commands)
    for command, purpose in commands:
        console.print(f"  {escape(command):{width}}  [dim]{purpose}[/]", soft_wrap=True)


def _show_variants(console: "Console", verification: "VerificationReport") -> None:
    """Print the table of the model's forms, a column a form, as many beside each other as fit; then what is left out."""
    from rich.markup import escape
    from rich.table import Table

    from edgeline.export.publishing.variant_table import remarks, rows

    forms = rows(verification)
    beside = max(1, (console.width - LABEL_WIDTH) // FORM_WIDTH)
    for start in range(0, len(forms), beside):
        table = Table("", *(escape(form["Variant"]) for form in forms[start : start + beside]), box=None, pad_edge=False)
        for heading in list(forms[0])[1:]:
            table.add_row(f"[bold]{heading}[/]", *(escape(form[heading]) for form in forms[start : start + beside]))
        console.print()
        console.print(table)
    for line in remarks(verification):
        console.print(escape(line))
