"""The training step: from prepared samples to a checkpoint.

To add a strategy, write a module in `strategies/` with a function of type `Strategy`, enter it in `STRATEGIES`, add its name to
`pipeline/names.py` and describe it in `train.strategy` of `pipeline/train_config.py`.

Shapes: N images, D features, K classes.
"""

import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch

from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.data.samples import Prepared, read_prepared
from edgeline.pipeline.data.stress_images import FINGERPRINT_NAME, write_preprocessing_fingerprint
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.checkpoint import CALIBRATION, OUT_OF_FOLD, Checkpoint, save_checkpoint
from edgeline.pipeline.models.devices import choose_device, describe_device
from edgeline.pipeline.models.weights_file import LoadedWeights
from edgeline.pipeline.names import StrategyName
from edgeline.pipeline.runs.findings import Finding, write_findings
from edgeline.pipeline.runs.run import Run, open_run
from edgeline.pipeline.training.context import Strategy, TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning import distributed
from edgeline.pipeline.training.strategies import (
    auto,
    differential,
    distill,
    few_shot,
    full,
    gradual,
    head,
    lp_ft,
    partial,
    scratch,
)

STRATEGIES: Mapping[StrategyName, Strategy] = {
    "auto": auto.fit,
    "head": head.fit,
    "few-shot": few_shot.fit,
    "lp-ft": lp_ft.fit,
    "full": full.fit,
    "partial": partial.fit,
    "differential": differential.fit,
    "gradual": gradual.fit,
    "distill": distill.fit,
    "scratch": scratch.fit,
}
"""By the name in the configuration."""

if STRATEGIES.keys() != set(get_args(StrategyName)):
    raise TypeError(f"STRATEGIES has {sorted(STRATEGIES)}, train.strategy allows {sorted(get_args(StrategyName))}")

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")


def build_checkpoint(run: Run, folder: Path) -> None:
    """Train with a run's configuration and write the checkpoint into the step's folder.

    The preprocessing fingerprint is written alongside it, for verification to compare with. With `train.processes`, torchrun
    starts this module, and so this function, in as many processes.

    Raises:
        ConfigError: the configured model or device is not available.
        WeightsError: the pretrained weights are absent or do not fit.
        DataError: the data cannot be trained on.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    config = run.config
    prepared = read_prepared(run.step("prepare"))
    device = choose_device(config.train.device)
    if distributed.world_size() == 1 and (processes := distributed.process_count(config.train, device)) > 1:
        distributed.launch(processes, __name__, [str(run.folder.resolve()), str(folder.resolve())], folder)
        return
    context = build_context(config, prepared, folder)
    result = train(context)
    if distributed.rank() > 0:
        return
    network, spec = context.network, context.spec
    checkpoint = Checkpoint(
        model=config.model,
        weights=config.weights if context.pretrained else "none",
        labels=prepared.labels,
        preprocess=spec,
        dropout=config.train.dropout,
        strategy=result.strategy or config.train.strategy,
        seed=config.seed,
        device=describe_device(device, distributed.world_size()),
        history=tuple(result.history.epochs),
        best_epoch=result.history.best_epoch,
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
    )
    save_checkpoint(folder, network, checkpoint)
    result.calibration.save(folder / CALIBRATION)
    if result.out_of_fold is not None:
        result.out_of_fold.save(folder / OUT_OF_FOLD)
    write_preprocessing_fingerprint(folder / FINGERPRINT_NAME, spec)
    write_findings(folder, [*find_in_weights(network.loaded), *result.findings])


def build_context(config: PipelineConfig, prepared: Prepared, folder: Path) -> TrainingContext:
    """Build the network of a configuration and everything else that a strategy needs.

    Args:
        config: model, weights, preprocessing, seed and the settings of the training.
        prepared: the samples.
        folder: for working files.

    Raises:
        ConfigError: the configured model or device is not available.
        WeightsError: the pretrained weights are absent or do not fit.
        DataError: the data cannot be trained on.
    """
    weights = "none" if config.train.strategy == "scratch" else config.weights
    device = choose_device(config.train.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of the weights that are not loaded: all with `weights = "none"`, else the head's
        network, spec = build(
            config.model,
            weights,
            classes=len(prepared.labels),
            dropout=config.train.dropout,
            preprocess=config.preprocess,
        )
    return TrainingContext(
        network=network,
        spec=spec,
        prepared=prepared,
        config=config.train,
        seed=config.seed,
        folder=folder,
        cache=config.cache,
        device=device,
        pretrained=weights != "none",
    )


def find_in_weights(loaded: LoadedWeights | None) -> list[Finding]:
    """What of a local weights file was loaded: a warning if wrappings were undone or a choice was made."""
    if loaded is None:
        return []
    guessed = bool(loaded.container or loaded.prefix or loaded.others)
    message = f"{str(loaded)[:1].upper()}{str(loaded)[1:]}."
    return [Finding(code="weights_loaded", message=message, level="warning" if guessed else "note")]


def train(context: TrainingContext) -> TrainingResult:
    """Train the context's network in place. It ends on the CPU, with the weights chosen on validation.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    result = STRATEGIES[context.config.strategy](context)
    context.network.to("cpu").eval()
    return result


if __name__ == "__main__":
    with distributed.worker(Path(sys.argv[2]) if len(sys.argv) > 2 else None) as shared_folder:
        build_checkpoint(open_run(Path(sys.argv[1])), shared_folder)
