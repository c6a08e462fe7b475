"""Find a learning rate: prepare the data, train for about a hundred steps with a rising rate, draw the loss.

The network, the run's steps and their results stay as they are.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared
from edgeline.pipeline.evaluation.plots import write_rates_png
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.training.search.rate_curve import RateCurve
from edgeline.pipeline.training.search.rate_finder import find_rate, strategy_to_test
from edgeline.pipeline.training.train import build_context

FILE_NAME, PLOT_NAME = "learning_rate.json", "learning_rate.png"


class FoundRate(NamedTuple):
    """What the finder did."""

    run: Run
    """Its data and settings were used."""
    folder: Path
    """With `learning_rate.json` and `learning_rate.png`."""
    curve: RateCurve


def find_learning_rate(config: PipelineConfig, steps: int, out: Path | None = None) -> FoundRate:
    """Find a learning rate for the strategy of a configuration, or for `lp-ft` with `auto`.

    Args:
        config: the settings of a run.
        steps: number of training steps.
        out: folder to write to; by default `learning_rate` in the run's folder.

    Raises:
        ConfigError: the strategy trains no layers.
        DataError: the data cannot be trained on.
        TrainingError: the loss is not finite from the start, or a batch does not fit into memory.
    """
    strategy = strategy_to_test(config.train.strategy)  # before anything is computed
    run, _ = prepare(config)
    prepared = read_prepared(run.step("prepare"))
    tested = config.model_copy(update={"train": config.train.model_copy(update={"strategy": strategy})})
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        context = build_context(tested, prepared, Path(folder))
        torch.manual_seed(config.seed)
        curve = find_rate(context, steps)
    target = out or run.folder / "learning_rate"
    target.mkdir(parents=True, exist_ok=True)
    (target / FILE_NAME).write_text(curve.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_rates_png(target / PLOT_NAME, curve)
    return FoundRate(run, target, curve)
