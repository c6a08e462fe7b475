"""`edgeline backbones`, `inspect` and `explain`: what can be trained, what of it is trained, and what a network looks at.

Nothing heavy is imported here; a command imports what it needs when it runs.
"""

import enum
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeline.flows.cli.options import Json, RunFolder

if TYPE_CHECKING:
    from edgeline.pipeline.models.catalog import Backbone
    from edgeline.pipeline.models.inspection import NetworkSummary, StageSummary

MEASURE_HELP = "Networks to measure instead: any torchvision classifier, or `timm:NAME`."
HEAD_ONLY = ("head", "few-shot")
"""Strategies that change the last layer only."""


def backbones(
    names: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help=MEASURE_HELP)] = None,
    as_json: Json = False,
) -> None:
    """List backbones: parameters, multiply-adds, input, licence and place of their weights, and whether int8 pays.

    Without names, the ones that are listed are known by name; any other torchvision classifier and any network of timm can be
    trained too.

        edgeline backbones

        edgeline backbones timm:resnet26d regnet_y_400mf
    """
    from edgeline.pipeline.models.catalog import BACKBONES

    found = BACKBONES if not names else _measure(names)
    if as_json:
        listed = [asdict(each) | {"licence": each.licence, "weights": each.availability()} for each in found]
        print(json.dumps([{key: value for key, value in each.items() if key not in ("timm", "file")} for each in listed]))
        return
    _print_backbones(found)


def _measure(names: list[str]) -> "tuple[Backbone, ...]":
    from edgeline.pipeline.models.inspection import measure

    return tuple(measure(name) for name in names)


def _print_backbones(found: "tuple[Backbone, ...]") -> None:
    width = max(len(each.name) for each in found)
    print(f"{'backbone':{width}}  parameters     MACs  input  licence       weights                  int8")
    for each in found:
        print(
            f"{each.name:{width}}  {each.parameters / 1e6:8.1f} M  {each.macs / 1e9:5.2f} G  {each.size:5}  {each.licence:12}  "
            f"{each.availability():23}  {each.int8}"
        )
    reasons = {each.why: [other.name for other in found if other.why == each.why] for each in found if each.why}
    for why, names in reasons.items():
        print(f"\nint8 of {', '.join(names)}: {why}.")


def inspect(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, or a backbone's name.")],
    unfreeze: Annotated[
        list[str] | None, typer.Option(help="Only these stages are trained, besides the head; may be repeated.")
    ] = None,
    classes: Annotated[int, typer.Option(help="Classes of the head; a run has its own.", min=2)] = 2,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer with parameters.")] = False,
    as_json: Json = False,
) -> None:
    """Show a network's layers by stage, which stages are frozen, and the trainable parameters after each unfreezing.

    Stages are listed from the head to the input. A frozen stage also keeps the statistics of its batch norms.

        edgeline inspect mobilenet_v2

        edgeline inspect mobilenet_v2 --unfreeze features.17 --unfreeze features.18 --layers

        edgeline inspect artifacts/runs/photos-0123456789ab
    """
    from edgeline.pipeline.models.inspection import HEAD, describe

    model, strategy, trained = target, None, None
    if Path(target).is_dir():
        model, classes, strategy, trained = _read_run(Path(target))
    if unfreeze:
        trained = [HEAD, *unfreeze]
    summary = describe(model, classes=classes, trained=trained)
    if as_json:
        stages = [asdict(stage) | {"kinds": stage.kinds} for stage in summary.stages]
        report = {"model": model, "size": summary.size, "parameters": summary.parameters, "trainable": summary.trainable}
        print(json.dumps(report | {"strategy": strategy, "stages": stages}))
        return
    _print_network(summary, strategy, layers)


def _read_run(folder: Path) -> tuple[str, int, str, list[str] | None]:
    """Model, classes and strategy of a run, and the stages that the strategy trains; None for all."""
    from edgeline.pipeline.data.samples import read_prepared
    from edgeline.pipeline.models.inspection import HEAD
    from edgeline.pipeline.runs.run import open_run

    run = open_run(folder)
    checkpoint = run.step("train") / "checkpoint.json"
    strategy: str = run.config.train.strategy
    if checkpoint.is_file():
        strategy = json.loads(checkpoint.read_text(encoding="utf-8"))["strategy"]
    trained = None
    if strategy in HEAD_ONLY:
        trained = [HEAD]
    elif strategy == "partial":
        trained = [HEAD, *run.config.train.unfreeze]
    return run.config.model, len(read_prepared(run.step("prepare")).labels), strategy, trained


def _print_network(summary: "NetworkSummary", strategy: str | None, layers: bool) -> None:
    how = f", trained by {strategy}" if strategy else ""
    print(f"{summary.model}, input {summary.size}x{summary.size}{how}: {summary.parameters:,} parameters")
    share = summary.trainable / summary.parameters
    print(f"trainable: {summary.trainable:,} ({share:.1%}), frozen: {summary.parameters - summary.trainable:,}\n")
    width = max(len(stage.name) for stage in summary.stages)
    print(f"{'stage':{width}}  state     parameters  trainable if unfrozen down to here  layers")
    for stage in summary.stages:
        state = "trained" if stage.trained else "frozen"
        print(f"{stage.name:{width}}  {state:7}  {stage.parameters:11,}  {stage.trainable_from_here:34,}  {stage.kinds}")
        if layers:
            _print_layers(stage)


def _print_layers(stage: "StageSummary") -> None:
    for layer in stage.layers:
        print(f"    {layer.name:40} {layer.kind:20} {layer.parameters:11,}  {'x'.join(map(str, layer.shape))}")


class Method(enum.StrEnum):
    """How the test images are placed on their map."""

    pca = "pca"
    umap = "umap"


def explain(
    folder: RunFolder,
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGE]...", help="Photos; by default the most confident mistakes in the test split."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; by default `explained` in the run's folder.")] = None,
    layer: Annotated[
        str | None, typer.Option(help="A layer whose feature maps are shown; by default the last that is not too coarse.")
    ] = None,
    embedding: Annotated[
        Method, typer.Option("--map", help="Map of the test images: principal components, or UMAP if it is installed.")
    ] = Method.pca,
    count: Annotated[int, typer.Option(min=1, help="Number of test images, if no photos are given.")] = 8,
    as_json: Json = False,
) -> None:
    """Show what a run's network looks at: heatmaps, the feature maps of a layer, and a map of its test images.

    For each photo: the class activation map and the input gradient of the predicted class, and the 16 channels of a layer that
    vary most. The map of the test images shows which of them the network finds alike. Everything is written as pictures, with
    `report.html` to look at them.

        edgeline explain artifacts/runs/photos-0123456789ab

        edgeline explain artifacts/runs/photos-0123456789ab photo.jpg --layer blocks.4 --map umap
    """
    from edgeline.pipeline.evaluation.explained import Request, explain_run
    from edgeline.pipeline.runs.run import open_run

    run = open_run(folder)
    target = out or run.folder / "explained"
    request = Request(images=tuple(images or ()), layer=layer, embedding=embedding.value, count=count)
    explained = explain_run(run, request, target)
    if as_json:
        print(json.dumps({"folder": str(target), "images": [each.to_dict() for each in explained]}))
        return
    for each in explained:
        truth = f", truly {each.label}" if each.label is not None else ""
        print(f"{each.image}: {each.predicted} {each.probability:.1%}{truth}")
    print(f"{target / 'report.html'} shows them")
