"""Options that several commands of the pipeline share, and the configuration made from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from edgeline.pipeline.names import StrategyName

if TYPE_CHECKING:
    from edgeline.pipeline.config import PipelineConfig

*_OTHERS, _LAST = (f"`{name}`" for name in get_args(StrategyName))
Data = Annotated[
    str | None,
    typer.Option(
        help="A folder with one folder per class; a folder with `train/`, `val/` and `test/` folders of these; a CSV file with "
        "`path,label[,split][,group]`; or `digits`, the embedded data."
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CSV", help="Photos labeled with `edgeline label` that join the data, as a CSV file; may be repeated."
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        help="How folders are read: `top`: each one in the data is a class; `leaf`: each that directly contains images is one; "
        "`splits`; `csv`. By default decided by their names."
    ),
]
Config = Annotated[Path | None, typer.Option(help="A TOML or YAML file of settings; see docs/config.md.")]
Name = Annotated[str | None, typer.Option(help="The artifact's name; by default derived from the data's.")]
Model = Annotated[
    str | None,
    typer.Option(help="`efficientnet_lite0` to `efficientnet_lite2`, a torchvision classifier, or `timm:<name>`."),
]
Weights = Annotated[str | None, typer.Option(help="`imagenet`, `none`, or a local file of `torch.save` or safetensors.")]
Strategy = Annotated[str | None, typer.Option(help=f"{', '.join(_OTHERS)} or {_LAST}.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the split and of training.")]
Artifacts = Annotated[str | None, typer.Option(help="Folder of runs, caches and the store.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Any setting: `--set train.epochs=5`; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder that `edgeline prepare` printed.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """The settings that have an option of their own."""

    data: str | None
    layout: str | None
    name: str | None
    model: str | None
    weights: str | None
    strategy: str | None
    seed: int | None
    artifacts: str | None
    labels: list[str] | None = None


def load_settings(config: Path | None, overrides: list[str] | None, options: RunOptions) -> "PipelineConfig":
    """Build the configuration: from the file, then `--set`, then the options, later ones winning.

    Its artifacts folder becomes the home of a user without one.

    Raises:
        ConfigError: with every problem found.
    """
    from edgeline.pipeline.config import load_config
    from edgeline.pipeline.models.catalog import BACKBONES
    from edgeline.pipeline.runs.home import ensure_home

    nested = {"train.strategy": options.strategy, "prepare.layout": options.layout}
    if options.labels:
        nested["prepare.labels"] = json.dumps(options.labels)
    overrides = [*(overrides or []), *(f"{name}={value}" for name, value in nested.items() if value)]
    settings = load_config(
        config,
        overrides,
        data=options.data,
        name=options.name,
        model=options.model,
        weights=options.weights,
        seed=options.seed,
        artifacts=options.artifacts,
    )
    if settings.model not in {backbone.name for backbone in BACKBONES}:
        from edgeline.pipeline.models.pretrained import check_model  # imports torch

        check_model(settings.model)
    ensure_home(Path(settings.artifacts))
    return settings
