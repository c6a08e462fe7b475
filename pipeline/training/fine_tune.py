"""Strategies that train the backbone too: `full`, `differential` and `gradual`.

One loop: AdamW, warm-up then cosine, augmented views, best on validation kept. They differ in the learning rate of each
stage and in when a stage is released:
- `full`: every stage from the start, one rate;
- `differential`: every stage from the start, each at `layer_decay` times the rate of the next one towards the head
  (Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", discriminative fine-tuning);
- `gradual`: those rates, and the head alone first, then stage by stage from the top (the same paper).

After every epoch the state is on disk; a killed training goes on after the last whole epoch and ends with the very weights
it would have had, because each epoch draws from a seed of its own. The state of the epoch before is kept too: where the
newest is damaged, one epoch is trained again, and not all of them.

Shapes: N images, H x W the model's input, K classes.
"""

import hashlib
import io
import logging
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.config import TrainConfig
from edgeline.pipeline.data.samples import Prepared, Sample, stream_pixels
from edgeline.pipeline.models.backbones import Network, stages
from edgeline.pipeline.models.devices import autocast, memory_errors, to_device
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.atomic_files import replace_file
from edgeline.pipeline.training.augment import augment
from edgeline.pipeline.training.history import Fit, check_finite
from edgeline.serve.preprocess import PreprocessSpec

EPOCHS = 12
LEARNING_RATE = 5e-4
FULL_LEARNING_RATE = 2e-4
"""Of every layer alike; more of it, and what the first layers know is lost before the head has learned anything."""
HEAD_FACTOR = 4.0
"""How much faster the head learns than the top stage where rates differ: it starts from nothing."""
RESUME, PREVIOUS = "resume.pt", "resume.previous.pt"
LOG = logging.getLogger(__name__)


def fit(
    network: Network,
    spec: PreprocessSpec,
    prepared: Prepared,
    config: TrainConfig,
    weights_K: Tensor,
    *,
    seed: int,
    folder: Path,
    device: torch.device,
) -> Fit:
    """Train a network in place.

    Raises:
        DataError, TrainingError: see `pipeline.training.train.train`.
    """
    train, val = prepared.of("train"), prepared.of("val")
    epochs = config.epochs or EPOCHS
    network.to(device)
    weights_K = weights_K.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(network, config), weight_decay=config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    course, best = _resume(folder, network, optimizer, scaler)
    steps = math.ceil(len(train) / config.batch_size)
    while len(course.history) < epochs and not course.should_stop(config.patience):
        epoch = len(course.history) + 1
        torch.manual_seed(seed * 100_003 + epoch)
        release(network, config, epoch, epochs)
        order = [train[i] for i in torch.randperm(len(train)).tolist()]
        total = 0.0
        batches = _batches(order, spec, config, epoch, device, f"epoch {epoch} of {epochs}")
        with memory_errors(config.batch_size):
            for step, (pixels_NHW3, targets_N) in enumerate(batches):
                _set_rates(optimizer, ((epoch - 1) * steps + step) / (epochs * steps))
                with autocast(device):
                    logits_NK = network(pixels_NHW3)
                loss = functional.cross_entropy(logits_NK.float(), targets_N, weights_K, label_smoothing=config.label_smoothing)
                check_finite(loss.item(), epoch)
                optimizer.zero_grad()
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizer)
                scaler.update()
                total += loss.item() * len(targets_N)
            logits_NK = _logits(network, val, spec, config, device)
            targets_N = torch.tensor([s.index for s in val])
            val_loss = functional.cross_entropy(logits_NK, targets_N, weights_K.cpu()).item()
            accuracy = (logits_NK.argmax(1) == targets_N).float().mean().item()
        if course.add(total / len(train), val_loss, accuracy):
            best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        _keep(folder, network, optimizer, scaler, course, best)
    network.load_state_dict(best)
    course.val_logits_NK = _logits(network, val, spec, config, device).numpy()
    for name in (RESUME, PREVIOUS):
        (folder / name).unlink(missing_ok=True)
    return course


def parameter_groups(network: Network, config: TrainConfig) -> list[dict[str, Any]]:
    """The optimizer's groups, from the input to the head, each with its peak learning rate under `peak`."""
    rate = config.learning_rate or (FULL_LEARNING_RATE if config.strategy == "full" else LEARNING_RATE)
    named = stages(network.backbone)
    groups = []
    for index, stage in enumerate(named):
        peak = rate if config.strategy == "full" else rate * config.layer_decay ** (len(named) - 1 - index)
        groups.append({"name": stage.name, "params": stage.parameters(), "lr": peak, "peak": peak})
    head = rate if config.strategy == "full" else rate * HEAD_FACTOR
    return [*groups, {"name": "head", "params": list(network.head.parameters()), "lr": head, "peak": head}]


def release(network: Network, config: TrainConfig, epoch: int, epochs: int) -> list[str]:
    """Set which stages learn in an epoch (from 1), the frozen ones in evaluation mode, and return their names.

    `gradual` starts with the head alone and has released every stage after two thirds of the epochs.
    """
    named = stages(network.backbone)
    share = 1.0 if config.strategy != "gradual" else (epoch - 1) / max(1, round(epochs * 2 / 3) - 1)
    count = min(len(named), math.ceil(len(named) * share))
    network.train()
    for index, stage in enumerate(named):
        stage.set_learning(index >= len(named) - count)
    return [stage.name for stage in named[len(named) - count :]]


def _set_rates(optimizer: torch.optim.Optimizer, progress: float) -> None:
    """Warm up over the first twentieth, then follow half a cosine down to nothing."""
    factor = min(1.0, (progress + 0.002) / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _batches(
    samples: list[Sample], spec: PreprocessSpec, config: TrainConfig, epoch: int, device: torch.device, title: str
) -> Iterator[tuple[Tensor, Tensor]]:
    position = 0
    for batch_NHW3 in track(stream_pixels(samples, spec, config.batch_size), title, len(samples), step=config.batch_size):
        part = samples[position : position + len(batch_NHW3)]
        position += len(part)
        if len(part) == 1 and len(samples) > 1:
            continue  # batch norm has no variance over one image
        pixels_NHW3 = augment(torch.from_numpy(batch_NHW3), part, kind=config.augment, view=1000 + epoch)
        yield to_device(pixels_NHW3, device), to_device(torch.tensor([s.index for s in part]), device)


def _logits(network: Network, samples: list[Sample], spec: PreprocessSpec, config: TrainConfig, device: torch.device) -> Tensor:
    network.eval()
    with torch.inference_mode(), autocast(device):
        batches = (torch.from_numpy(batch_NHW3) for batch_NHW3 in stream_pixels(samples, spec, config.batch_size))
        return torch.cat([network(to_device(batch_NHW3, device)).float().cpu() for batch_NHW3 in batches])


def _keep(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    course: Fit,
    best: dict[str, Tensor],
) -> None:
    """Put the state after an epoch on the disk, all of it in one file, and keep the one before it."""
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "scaler": scaler}
    state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()} | {"best": best}
    state |= {"history": course.history, "best_epoch": course.best_epoch, "best_loss": course.best_loss}
    if (folder / RESUME).exists():
        os.replace(folder / RESUME, folder / PREVIOUS)
    replace_file(folder / RESUME, partial(_write, state))


def _resume(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> tuple[Fit, dict[str, Tensor]]:
    """Load the newest state that is whole: the course so far and its best weights; both empty where there is none."""
    for path in (folder / RESUME, folder / PREVIOUS):
        if not path.exists():
            continue
        state = _read(path)
        if state is None:
            LOG.warning("%s is damaged and was deleted; training goes on from the state before it, if there is one", path)
            path.unlink()
            continue
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        return Fit(state["history"], state["best_epoch"], state["best_loss"]), state["best"]
    return Fit(), {}


def _write(state: dict[str, Any], path: Path) -> None:
    payload = io.BytesIO()
    torch.save(state, payload)
    with path.open("wb") as file:
        file.write(payload.getbuffer())
        file.write(hashlib.sha256(payload.getbuffer()).digest())


def _read(path: Path) -> dict[str, Any] | None:
    """The state in a file, or None where the file is not what was written: torch.load takes changed bytes without a word."""
    data = memoryview(path.read_bytes())
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(data[:-32]), weights_only=True, map_location="cpu")
    return state
