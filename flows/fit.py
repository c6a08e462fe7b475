"""Train a classifier from Python, with the same steps and settings as `edgeline run`.

    import edgeline

    result = edgeline.fit("photos/", name="birds", model="mobilenet_v2", settings={"train.epochs": 5})
    result.accuracy                             # on the test split, with its 95 % interval
    result.artifact                             # folder of the published artifact
    result.classifier.predict([open("photo.jpg", "rb").read()])

Runs as plain functions, without Prefect. Nothing heavy is imported before `fit` is called.
"""

import html
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeline.flows.extras import missing_extra

if TYPE_CHECKING:
    from edgeline.flows.summary import Summary
    from edgeline.pipeline.config import PipelineConfig
    from edgeline.pipeline.runs.run import Run, StepResult
    from edgeline.serve.classifier import Classifier

LEFT = 'style="text-align: left"'


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Accuracy on the test split, with its 95 % Wilson score interval."""

    value: float
    low: float
    high: float
    correct: int
    total: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.2%} (95 % interval {self.low:.2%} to {self.high:.2%})"


@dataclass(frozen=True, repr=False)
class FitResult:
    """A finished run. Shows its summary in a terminal and in a notebook."""

    run: "Run"
    """Its folder and configuration."""
    steps: "tuple[StepResult, ...]"
    """The result of each step, in order."""

    @property
    def artifact(self) -> Path:
        """Folder of the published artifact."""
        return self.steps[-1].folder

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The figures of the run, as `edgeline run --json` prints them."""
        return self._summary.to_dict()

    @cached_property
    def _summary(self) -> "Summary":
        from edgeline.flows.summary import summarize

        return summarize(self.run, list(self.steps))

    @property
    def accuracy(self) -> Accuracy:
        """Accuracy on the test split."""
        return Accuracy(**dict(self._summary.top1))

    @cached_property
    def classifier(self) -> "Classifier":
        """The published artifact, opened on first use.

        Raises:
            ArtifactError: its files have been changed.
        """
        from edgeline.serve.classifier import Classifier

        return Classifier.open(self.artifact)

    def __repr__(self) -> str:
        rows = self._rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:{width}}  {value}" for label, value in rows)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th {LEFT}>{html.escape(label)}</th><td {LEFT}>{html.escape(value)}</td></tr>"
            for label, value in self._rows()
        )
        return f"<table>{rows}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        from edgeline.flows.summary import summary_rows

        return summary_rows(self._summary)


def fit(
    data: str | os.PathLike[str],
    *,
    name: str | None = None,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> FitResult:
    """Train, evaluate, export, verify and publish a classifier; reuse the results of steps that have not changed.

    Args:
        data: a folder with one folder per class, a CSV file, or `digits`, the embedded data; as `edgeline run --data`.
        name: the artifact's name; by default derived from the data's.
        model: the backbone: `efficientnet_lite0`, a torchvision classifier, or `timm:<name>`.
        settings: any settings by dotted name, like `--set`: `{"train.epochs": 5}`.
        options: other top-level settings: `weights`, `strategy`, `seed`, `artifacts`, or a section: `train={"epochs": 5}`.

    Returns:
        The finished run.

    Raises:
        ConfigError: a setting is unknown or invalid; the message lists every problem.
        DataError: the data cannot be trained on.
        EdgelineError: a step failed; the results of the steps before it are kept.
        MissingExtraError: the `export` extra is not installed.
    """
    # As for the command line: idle threads of PyTorch's OpenMP sleep instead of spin. Read when PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from edgeline.flows.steps import run_pipeline
        from edgeline.pipeline.runs.home import ensure_home

        config = _configure(data, {**(settings or {})}, {"name": name, "model": model, **options})
        ensure_home(Path(config.artifacts))
        progress = _Progress()
        run, steps = run_pipeline(config, call_prepare=progress.prepare, call_step=progress.execute)
        return FitResult(run, tuple(steps))
    except ModuleNotFoundError as error:
        missing = missing_extra(error, default="export")
        if missing is None:
            raise
        raise missing from error


class _Progress:
    """Runs each step and prints a line when it is done, in terminals and notebooks."""

    def __init__(self) -> None:
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        self._console = console if console.is_terminal or console.is_jupyter else None

    def prepare(self, config: "PipelineConfig") -> "tuple[Run, StepResult]":
        from edgeline.pipeline.data.prepare import prepare

        run, result = prepare(config)
        self._print(result)
        return run, result

    def execute(self, name: str, run: "Run") -> "StepResult":
        from edgeline.flows.steps import execute

        result = execute(name, run)
        self._print(result)
        return result

    def _print(self, result: "StepResult") -> None:
        from edgeline.flows.step_lines import step_lines

        if self._console is not None:
            how = "reused" if result.reused else f"done in {result.seconds:.1f} s"
            self._console.print(f"[bold]{result.name}[/] {how}")
            for line in step_lines(result):
                self._console.print(f"  {line}", markup=False)


def _configure(data: Any, settings: dict[str, Any], options: dict[str, Any]) -> "PipelineConfig":
    from edgeline.pipeline.config import load_config

    if (strategy := options.pop("strategy", None)) is not None:
        settings["train.strategy"] = strategy
    for section in [key for key, value in options.items() if isinstance(value, Mapping)]:
        settings |= {f"{section}.{key}": value for key, value in options.pop(section).items()}
    overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in settings.items()]
    return load_config(None, overrides, **{key: _plain(value) for key, value in {**options, "data": data}.items()})


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
