"""Strategies that train the backbone too: `full`, `differential` and `gradual`.

One loop: AdamW, warm-up then cosine, augmented views, best on validation kept. They differ in the learning rate of each
stage and in when a stage is released:
- `full`: every stage from the start, one rate;
- `differential`: every stage from the start, each at `layer_decay` times the rate of the next one towards the head
  (Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", discriminative fine-tuning);
- `gradual`: those rates, and the head alone first, then stage by stage from the top (the same paper).

After every epoch the state is on disk; a killed training goes on after the last whole epoch and ends with the very weights
it would have had, because each epoch draws from a seed of its own.

Shapes: N images, H x W the model's input, K classes.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.augment import augment
from pipeline.backbones import Network, stages
from pipeline.config import TrainConfig
from pipeline.devices import autocast, memory_errors, to_device
from pipeline.history import Fit, check_finite
from pipeline.progress import track
from pipeline.samples import Prepared, Sample, stream_pixels
from pipeline.steps import replace_file
from serve.preprocess import PreprocessSpec

EPOCHS = 12
LEARNING_RATE = 5e-4
HEAD_FACTOR = 4.0
"""How much faster the head learns than the top stage where rates differ: it starts from nothing."""
RESUME = "resume.pt"


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
        DataError, TrainingError: see `pipeline.train.train`.
    """
    train, val = prepared.of("train"), prepared.of("val")
    epochs = config.epochs or EPOCHS
    network.to(device)
    weights_K = weights_K.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(network, config), weight_decay=config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    course = _resume(folder / RESUME, network, optimizer, scaler)
    steps = math.ceil(len(train) / config.batch_size)
    while len(course.history) < epochs and not course.is_over(config.patience):
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
            replace_file(folder / "best.pt", lambda path: torch.save(network.state_dict(), path))
        state: dict[str, Any] = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }
        state |= {"history": course.history, "best_epoch": course.best_epoch, "best_loss": course.best_loss}
        replace_file(folder / RESUME, lambda path, state=state: torch.save(state, path))  # type: ignore[misc]
    network.load_state_dict(torch.load(folder / "best.pt", weights_only=True, map_location=device))
    course.val_logits_NK = _logits(network, val, spec, config, device).numpy()
    for name in ("best.pt", RESUME):
        (folder / name).unlink()
    return course


def parameter_groups(network: Network, config: TrainConfig) -> list[dict[str, Any]]:
    """The optimiser's groups, from the input to the head, each with its peak learning rate under `peak`."""
    rate = config.learning_rate or LEARNING_RATE
    named = stages(network.backbone)
    groups = []
    for index, (name, modules) in enumerate(named):
        peak = rate if config.strategy == "full" else rate * config.layer_decay ** (len(named) - 1 - index)
        groups.append({"name": name, "params": [p for m in modules for p in m.parameters()], "lr": peak, "peak": peak})
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
    for index, (_, modules) in enumerate(named):
        learns = index >= len(named) - count
        for module in modules:
            module.train(learns)
            module.requires_grad_(learns)
    return [name for name, _ in named[len(named) - count :]]


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


def _resume(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Fit:
    if not path.exists():
        return Fit()
    state = torch.load(path, weights_only=True, map_location="cpu")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    return Fit(state["history"], state["best_epoch"], state["best_loss"])
