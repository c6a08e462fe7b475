"""Strategies that train the backbone too: `full`, `differential` and `gradual`.

All three share one loop: AdamW, warm-up followed by a cosine schedule, augmented views, best epoch on validation kept.
They differ in the learning rate of each stage and in when a stage is unfrozen:
- `full`: every stage from the start, one learning rate;
- `differential`: every stage from the start, each with `layer_decay` times the learning rate of the stage above it
  (discriminative fine-tuning; Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification");
- `gradual`: those learning rates, and gradual unfreezing (same paper): first the head alone, then stage by stage from the
  top.

After every epoch the state is on disk (`pipeline.training.resume`). A killed training resumes after its last complete
epoch and ends with exactly the weights of an uninterrupted one, because each epoch has its own random seed.

Shapes: N images, H x W the model's input, K classes.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeline.pipeline.config import TrainConfig
from edgeline.pipeline.data.samples import Sample, stream_pixels
from edgeline.pipeline.models.backbones import Network, stages
from edgeline.pipeline.models.devices import autocast, memory_errors, to_device
from edgeline.pipeline.progress import track
from edgeline.pipeline.training.augment import augment
from edgeline.pipeline.training.context import HeldOutLogits, TrainingContext, TrainingResult
from edgeline.pipeline.training.history import check_finite
from edgeline.pipeline.training.resume import TrainingState, delete_states

EPOCHS = 12
LEARNING_RATE = 5e-4
FULL_LEARNING_RATE = 2e-4
"""For all layers. A higher one destroys the pretrained features of the first layers before the head has learned anything."""
HEAD_FACTOR = 4.0
"""How much faster the head learns than the top stage where learning rates differ: the head starts from zero."""


def fit(context: TrainingContext) -> TrainingResult:
    """Train a network in place.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    config, network = context.config, context.network.to(context.device)
    epochs = config.epochs or EPOCHS
    optimizer = torch.optim.AdamW(parameter_groups(network, config), weight_decay=config.weight_decay)
    scaler = torch.amp.GradScaler(context.device.type, enabled=context.device.type == "cuda")
    state = TrainingState(network, optimizer, scaler)
    state.restore(context.folder)
    history = state.history
    val_targets_N = torch.tensor([s.index for s in context.prepared.of("val")])
    while len(history.epochs) < epochs and not history.should_stop(config.patience):
        with memory_errors(config.batch_size):
            train_loss = _train_epoch(context, state, len(history.epochs) + 1, epochs)
            logits_NK = compute_val_logits(context)
        val_loss = functional.cross_entropy(logits_NK, val_targets_N, context.class_weights_K).item()
        if history.add(train_loss, val_loss, (logits_NK.argmax(1) == val_targets_N).float().mean().item()):
            state.best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        state.save(context.folder)
    network.load_state_dict(state.best)
    val_logits_NK = compute_val_logits(context).numpy()
    delete_states(context.folder)
    val = context.prepared.of("val")
    calibration = HeldOutLogits(
        logits_NK=val_logits_NK, targets_N=val_targets_N.numpy(), images=[sample.sha256 for sample in val]
    )
    return TrainingResult(history=history, calibration=calibration)


def parameter_groups(network: Network, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups, from the input to the head, each with its peak learning rate as `peak`."""
    rate = config.learning_rate or (FULL_LEARNING_RATE if config.strategy == "full" else LEARNING_RATE)
    named = stages(network.backbone)
    groups = []
    for index, stage in enumerate(named):
        peak = rate if config.strategy == "full" else rate * config.layer_decay ** (len(named) - 1 - index)
        groups.append({"name": stage.name, "params": stage.parameters(), "lr": peak, "peak": peak})
    head = rate if config.strategy == "full" else rate * HEAD_FACTOR
    return [*groups, {"name": "head", "params": list(network.head.parameters()), "lr": head, "peak": head}]


def unfreeze(network: Network, config: TrainConfig, epoch: int, epochs: int) -> list[str]:
    """Unfreeze the stages that are trained in an epoch, freeze the others, and return the names of the former.

    With `gradual`, the first epoch trains the head alone, and every stage is unfrozen after two thirds of the epochs.

    Args:
        network: left in training mode, apart from its frozen stages.
        config: its strategy decides.
        epoch: counted from 1.
        epochs: of the whole training.
    """
    named = stages(network.backbone)
    share = 1.0 if config.strategy != "gradual" else (epoch - 1) / max(1, round(epochs * 2 / 3) - 1)
    count = min(len(named), math.ceil(len(named) * share))
    network.train()
    for index, stage in enumerate(named):
        stage.set_trainable(index >= len(named) - count)
    return [stage.name for stage in named[len(named) - count :]]


def _train_epoch(context: TrainingContext, state: TrainingState, epoch: int, epochs: int) -> float:
    """Train for one epoch, counted from 1, and return the mean loss."""
    config, device, train = context.config, context.device, context.prepared.of("train")
    torch.manual_seed(context.seed * 100_003 + epoch)
    unfreeze(context.network, config, epoch, epochs)
    weights_K = context.class_weights_K.to(device)
    order = [train[i] for i in torch.randperm(len(train)).tolist()]
    steps, total = math.ceil(len(train) / config.batch_size), 0.0
    for step, (pixels_NHW3, targets_N) in enumerate(training_batches(context, order, epoch, epochs)):
        set_learning_rates(state.optimizer, ((epoch - 1) * steps + step) / (epochs * steps))
        with autocast(device):
            logits_NK = context.network(pixels_NHW3)
        loss = functional.cross_entropy(logits_NK.float(), targets_N, weights_K, label_smoothing=config.label_smoothing)
        first = step * config.batch_size
        check_finite(loss.item(), epoch, [sample.name for sample in order[first : first + len(targets_N)]])
        state.optimizer.zero_grad()
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        state.scaler.step(state.optimizer)
        state.scaler.update()
        total += loss.item() * len(targets_N)
    return total / len(train)


def set_learning_rates(optimizer: torch.optim.Optimizer, progress: float) -> None:
    """Warm up over the first twentieth of the training, then follow half a cosine down to zero."""
    factor = min(1.0, (progress + 0.002) / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def training_batches(
    context: TrainingContext, samples: list[Sample], epoch: int, epochs: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented pixels, uint8 (N, H, W, 3), and targets of an epoch, counted from 1, on the device."""
    config, device, position = context.config, context.device, 0
    batches = stream_pixels(samples, context.spec, config.batch_size)
    for batch_NHW3 in track(batches, f"epoch {epoch} of {epochs}", len(samples), step=config.batch_size):
        part = samples[position : position + len(batch_NHW3)]
        position += len(part)
        if len(part) == 1 and len(samples) > 1:
            continue  # batch norm has no variance over one image
        pixels_NHW3 = augment(torch.from_numpy(batch_NHW3), part, kind=config.augment, view=1000 + epoch)
        yield to_device(pixels_NHW3, device), to_device(torch.tensor([s.index for s in part]), device)


def compute_val_logits(context: TrainingContext) -> Tensor:
    """Compute the network's logits of the validation images, float32 (N, K), on the CPU."""
    context.network.eval()
    batches = stream_pixels(context.prepared.of("val"), context.spec, context.config.batch_size)
    with torch.inference_mode(), autocast(context.device):
        pixels = (to_device(torch.from_numpy(batch_NHW3), context.device) for batch_NHW3 in batches)
        return torch.cat([context.network(pixels_NHW3).float().cpu() for pixels_NHW3 in pixels])
