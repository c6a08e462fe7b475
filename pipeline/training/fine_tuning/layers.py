"""Train the layers of the backbone, not only the head.

The strategies that do so share this loop and differ in a `LayerPlan`: the learning rate of each stage, and when it is unfrozen.

First the network learns from the training images, and the epoch with the best validation loss is selected. With `train.refit`
it then starts again and learns from training and validation images together, up to that epoch of the same schedule.

After every epoch the state is on disk (`resume`). A killed training resumes after its last complete epoch and ends with exactly
the weights of an uninterrupted one, because each epoch has its own random seed. Several processes may share the batches
(`distributed`); then each function here works on the share of its own.

Shapes: N images, B images in a batch, H x W the model's input, K classes.
"""

import copy
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.data.samples import Sample, map_ahead, stream_pixels
from edgeline.pipeline.models.devices import CPU_BATCH, autocast, describe_device, is_memory_error, memory_errors, to_device
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.training.augment import augment
from edgeline.pipeline.training.context import HeldOutLogits, TrainingContext, TrainingResult
from edgeline.pipeline.training.fine_tuning import distributed
from edgeline.pipeline.training.fine_tuning.pixels import PixelTable, canvas
from edgeline.pipeline.training.fine_tuning.plan import LayerPlan, parameter_groups, schedule_length, unfreeze, unfrozen_stages
from edgeline.pipeline.training.fine_tuning.resume import TrainingState
from edgeline.pipeline.training.fine_tuning.teachers import Teachers
from edgeline.pipeline.training.history import check_finite
from edgeline.pipeline.training.optimization import SoftTargets, build_optimizer, label_weights, learning_rate_factor, mix

CHECK_STEPS = 32
"""The losses are checked after so many steps. Each check waits for the device."""
FIRST_VIEW = 1000
"""Number of the first augmented view, so that none is one of those whose features the head learns from."""


def train_layers(
    context: TrainingContext, plan: LayerPlan, start: TrainingResult | None = None, teachers: Teachers | None = None
) -> TrainingResult:
    """Train a network in place.

    Args:
        context: its network holds the weights to start from.
        plan: what is trained.
        start: of the head that the network starts with.
        teachers: whose answers the network learns too, and further images for them.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: a loss is not finite, or a batch does not fit into memory.
    """
    network, config = context.network.to(context.device), context.config
    initial = copy.deepcopy(network.state_dict())
    train, val = context.prepared.of("train"), context.prepared.of("val")
    unlabeled = teachers.unlabeled if teachers else []
    selection = LayerTrainer(context, plan, [*train, *unlabeled], context.folder / "selection", teachers)
    selection.run(val)
    val_logits_NK = compute_val_logits(context)
    if config.refit:
        network.load_state_dict(initial)
        refit = LayerTrainer(context, plan, [*train, *val, *unlabeled], context.folder / "refit", teachers)
        refit.run(epochs=selection.state.history.best_epoch)
    if distributed.rank() == 0:
        for name in ("selection", "refit"):
            shutil.rmtree(context.folder / name, ignore_errors=True)
    return TrainingResult(
        history=selection.state.history,
        calibration=HeldOutLogits(
            logits_NK=val_logits_NK.numpy(),
            targets_N=np.array([sample.index for sample in val]),
            images=[sample.sha256 for sample in val],
        ),
        out_of_fold=start.out_of_fold if start else None,
        findings=[*(start.findings if start else []), *selection.findings],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A batch of images, and the share of it that this process computes (S of B images)."""

    rows_B: np.ndarray
    own: list[Sample]
    """The images of the share."""
    pixels_SHW3: Tensor
    """Their augmented pixels, uint8, on the device."""
    view: str
    """Name of the augmented view."""


@dataclass
class LayerTrainer:
    """One training of a network's layers on some of the images."""

    context: TrainingContext
    plan: LayerPlan
    samples: Sequence[Sample]
    folder: Path
    """For the state after each epoch."""
    teachers: Teachers | None = None
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        config, network = self.context.config, self.context.network
        self.epochs, self.passes = schedule_length(config, self.plan, len(self.samples))
        self.folder.mkdir(parents=True, exist_ok=True)
        device = self.context.device
        scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and config.precision in ("auto", "fp16"))
        optimizer = build_optimizer(parameter_groups(network, self.plan), config)
        self.state = TrainingState(network, optimizer, scaler, describe_device(device, distributed.world_size()))
        self.total_steps = self.epochs * self.passes * math.ceil(len(self.samples) / config.batch_size)
        self.parts = 1
        """Number of parts that a batch is split into, because it does not fit into memory."""
        spec = self.context.spec if config.augment == "none" else canvas(self.context.spec)
        self.pixels = PixelTable(self.samples, spec, self.context.cache)
        if distributed.world_size() > 1:
            self.pixels = self.pixels.decoded_together()

    def run(self, val: Sequence[Sample] = (), *, epochs: int = 0) -> None:
        """Train, resuming from the state on disk. The network ends with the best weights on `val`, or the last ones without it.

        Args:
            val: images that decide which epoch is best and when to stop.
            epochs: stop after so many epochs of the schedule; 0 for all.
        """
        state, config, network = self.state, self.context.config, self.context.network
        state.restore(self.folder)
        val_targets_N = torch.tensor([sample.index for sample in val])
        while len(state.history.epochs) < (epochs or self.epochs) and not (val and state.history.should_stop(config.patience)):
            epoch = len(state.history.epochs) + 1
            train_loss = self._epoch(epoch)
            if not val:
                state.history.epochs.append({"train_loss": train_loss})
            else:
                logits_NK = compute_val_logits(self.context)
                val_loss = functional.cross_entropy(logits_NK, val_targets_N, self.context.class_weights_K).item()
                accuracy = (logits_NK.argmax(1) == val_targets_N).float().mean().item()
                if state.history.add(train_loss, val_loss, accuracy):
                    state.best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            if distributed.rank() == 0:
                state.save(self.folder)
                self.pixels.keep()
        if others := [other for other in state.devices if other != state.device]:
            message = (
                f"Training was resumed on {state.device} after {', '.join(others)}: the weights are not bit-identical to those "
                "of an uninterrupted training."
            )
            self.findings.append(Finding(code="resumed_elsewhere", message=message, level="note"))
        if val:
            network.load_state_dict(state.best)
        network.eval()

    def _epoch(self, epoch: int) -> float:
        """Train for one epoch, counted from 1, and return the mean loss."""
        seed = self.context.seed * 100_003 + epoch
        torch.manual_seed(seed + distributed.rank() * 7_368_787)
        first, unfrozen = (epoch - 1) * self.total_steps // self.epochs, -1
        losses: list[Tensor] = []
        names: list[list[str]] = []
        for step, batch in enumerate(self._batches(epoch, torch.Generator().manual_seed(seed)), first):
            progress = step / self.total_steps
            if (count := unfrozen_stages(self.context.network, self.plan, progress)) != unfrozen:
                unfreeze(self.context.network, self.plan, unfrozen := count)
            factor = learning_rate_factor(self.context.config, progress, self.state.history)
            for group in self.state.optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            losses.append(self.step(batch))
            names.append([self.samples[row].name for row in batch.rows_B])
            if len(losses) % CHECK_STEPS == 0:
                _check_losses(losses[-CHECK_STEPS:], names[-CHECK_STEPS:], epoch)
        _check_losses(losses, names, epoch)
        return float(torch.stack(losses).mean())

    def _batches(self, epoch: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield the batches of an epoch, with the augmented pixels of this process's share."""
        config, spec = self.context.config, self.context.spec
        batches = [
            (number, rows_B.numpy())
            for number in range(self.passes)
            for rows_B in torch.split(draw_order(self.samples, config.sampling, generator), config.batch_size)
        ]
        if self.plan.batch_norm and len(self.samples) > 1:
            batches = [(number, rows_B) for number, rows_B in batches if len(rows_B) > 1]  # one image has no variance
        pictures = map_ahead(self.pixels.read, (distributed.share(rows_B) for _, rows_B in batches), ahead=4)
        shown = track(pictures, f"epoch {epoch} of {self.epochs}", len(batches))
        for (number, rows_B), pixels_SHW3 in zip(batches, shown, strict=True):
            own, view = [self.samples[row] for row in distributed.share(rows_B)], FIRST_VIEW + epoch * self.passes + number
            pixels = to_device(torch.from_numpy(pixels_SHW3), self.context.device)
            yield Batch(
                rows_B=rows_B,
                own=own,
                pixels_SHW3=augment(pixels, own, kind=config.augment, view=view, size=(spec.height, spec.width)),
                view=f"{config.augment}-{view}",
            )

    def step(self, batch: Batch) -> Tensor:
        """Update the weights on a batch and return its loss, float32 (), on the device."""
        config, state, network = self.context.config, self.state, self.context.network
        pixels, device = batch.pixels_SHW3, batch.pixels_SHW3.device
        targets_B = torch.tensor([self.samples[row].index for row in batch.rows_B])
        own_S, partners_S, part = distributed.share(targets_B), None, 1.0
        if config.mixup:
            pixels, partners_S, part = mix(pixels, config.mixup)
        labels = SoftTargets(
            first_B=own_S.to(device),
            second_B=None if partners_S is None else own_S.to(device)[partners_S],
            share=part,
            # Of the whole batch. Mixing permutes the classes, so it does not change the sum.
            total=label_weights(targets_B, self.context.class_weights_K).sum().clamp_min(1e-12).item(),
            images=len(targets_B),
        )
        taught_SK = self.teachers.probabilities(pixels, batch.own, batch.view) if self.teachers else None
        loss = self._accumulate(pixels, labels, taught_SK)
        while loss is None:
            self._split_further()
            loss = self._accumulate(pixels, labels, taught_SK)
        distributed.add_up_gradients(network.parameters(), loss)
        if config.clip_norm:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return loss

    def _accumulate(self, pixels_SHW3: Tensor, labels: SoftTargets, taught_SK: Tensor | None) -> Tensor | None:
        """Compute the gradients of a share, part by part, and return its loss; None if a part does not fit into memory."""
        config, state, device = self.context.config, self.state, pixels_SHW3.device
        weights_K = self.context.class_weights_K.to(device)
        state.optimizer.zero_grad()
        loss = torch.zeros((), device=device)
        try:
            for part in torch.arange(len(pixels_SHW3)).chunk(self.parts) if len(pixels_SHW3) else ():
                rows = slice(int(part[0]), int(part[-1]) + 1)
                with autocast(device, config.precision):
                    logits_SK = self.context.network(pixels_SHW3[rows])
                part_loss = labels.loss(logits_SK, rows, weights_K, config.label_smoothing)
                if self.teachers is not None and taught_SK is not None:
                    part_loss = self.teachers.blend(part_loss, logits_SK, taught_SK[rows], labels.images)
                state.scaler.scale(part_loss).backward()  # type: ignore[no-untyped-call]
                loss += part_loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not is_memory_error(error):
                raise
            if self.parts >= len(pixels_SHW3):
                with memory_errors(1, "choose a smaller model or a smaller preprocess.size"):
                    raise
            return None
        return loss

    def _split_further(self) -> None:
        self.parts *= 2
        size = math.ceil(self.context.config.batch_size / self.parts)
        message = (
            f"A batch of {self.context.config.batch_size} images does not fit into memory; its gradients are accumulated over "
            f"{self.parts} parts of at most {size}."
        )
        others = [finding for finding in self.findings if finding.code != "batch_split"]
        self.findings[:] = [*others, Finding(code="batch_split", message=message, level="note")]


def draw_order(samples: Sequence[Sample], sampling: str, generator: torch.Generator) -> Tensor:
    """Draw the rows of one pass: each once, or with `balanced` sampling each class equally often."""
    if sampling == "shuffle":
        return torch.randperm(len(samples), generator=generator)
    classes_N = torch.tensor([sample.index for sample in samples])
    return torch.multinomial(1 / classes_N.bincount()[classes_N], len(samples), replacement=True, generator=generator)


def compute_val_logits(context: TrainingContext) -> Tensor:
    """Compute the network's logits of the validation images, float32 (N, K), on the CPU; every process a share of them."""
    context.network.eval()
    val = context.prepared.of("val")
    own_N = distributed.share(np.arange(len(val)))
    logits_NK = torch.zeros(len(val), len(context.prepared.labels), device=context.device)
    batch_size = CPU_BATCH if context.device.type == "cpu" else context.config.batch_size
    batches = stream_pixels([val[row] for row in own_N], context.spec, batch_size)
    with torch.inference_mode(), autocast(context.device, context.config.precision):
        for number, batch_NHW3 in enumerate(batches):
            rows = torch.from_numpy(own_N[number * batch_size : (number + 1) * batch_size]).to(context.device)
            logits_NK[rows] = context.network(to_device(torch.from_numpy(batch_NHW3), context.device)).float()
    distributed.add_up([logits_NK])
    return logits_NK.cpu()


def _check_losses(losses: Sequence[Tensor], names: Sequence[list[str]], epoch: int) -> None:
    """Reject losses that are not finite, naming the first batch."""
    for loss, images in zip(torch.stack(list(losses)).tolist(), names, strict=True):
        check_finite(loss, epoch, images)
