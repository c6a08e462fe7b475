"""Train the layers of the backbone, not only the head.

The strategies that do so share this loop and differ in a `LayerPlan`: the learning rate of each stage, and when it is unfrozen.

First the network learns from the training images, and the epoch with the best validation loss is selected. With `train.refit`
it then starts again and learns from training and validation images together, up to that epoch of the same schedule.

After every epoch the state is on disk (`pipeline.training.resume`). A killed training resumes after its last complete epoch and
ends with exactly the weights of an uninterrupted one, because each epoch has its own random seed.

Shapes: N images, B images in a batch, H x W the model's input, K classes.
"""

import copy
import itertools
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.data.samples import Sample, map_ahead, stream_pixels
from edgeline.pipeline.models.backbones import Network, stages
from edgeline.pipeline.models.devices import CPU_BATCH, autocast, is_memory_error, memory_errors, to_device
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.augment import augment
from edgeline.pipeline.training.context import HeldOutLogits, TrainingContext, TrainingResult
from edgeline.pipeline.training.history import check_finite
from edgeline.pipeline.training.optimization import SoftTargets, build_optimizer, learning_rate_factor, mix
from edgeline.pipeline.training.pixels import PixelTable, canvas
from edgeline.pipeline.training.resume import TrainingState

EPOCHS = 8
MIN_STEPS = 160
"""With few images an epoch is several passes over them, so that the default number of epochs has about so many steps."""
CHECK_STEPS = 32
"""The losses are checked after so many steps. Each check waits for the device."""
FIRST_VIEW = 1000
"""Number of the first augmented view, so that none is one of those whose features the head learns from."""


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """Which layers are trained, and how fast."""

    peaks: Mapping[str, float]
    """Peak learning rate by name of the stage, and of `head`. A stage that is absent stays frozen."""
    epochs: int = EPOCHS
    """Unless configured."""
    unfreezing: float = 0.0
    """Share of the steps over which the stages are unfrozen, from the top; 0 unfreezes all at the start."""
    batch_norm: bool = False
    """Whether batch norms use and learn the statistics of each batch, instead of the pretrained ones."""


def train_layers(context: TrainingContext, plan: LayerPlan, start: TrainingResult | None = None) -> TrainingResult:
    """Train a network in place.

    Args:
        context: its network holds the weights to start from.
        plan: what is trained.
        start: of the head that the network starts with.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: a loss is not finite, or a batch does not fit into memory.
    """
    network, config = context.network.to(context.device), context.config
    initial = copy.deepcopy(network.state_dict())
    train, val = context.prepared.of("train"), context.prepared.of("val")
    selection = LayerTrainer(context, plan, train, context.folder / "selection")
    selection.run(val)
    val_logits_NK = compute_val_logits(context)
    if config.refit:
        network.load_state_dict(initial)
        LayerTrainer(context, plan, train + val, context.folder / "refit").run(epochs=selection.state.history.best_epoch)
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


@dataclass
class LayerTrainer:
    """One training of a network's layers on some of the images."""

    context: TrainingContext
    plan: LayerPlan
    samples: Sequence[Sample]
    folder: Path
    """For the state after each epoch."""
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        config, network = self.context.config, self.context.network
        self.epochs, self.passes = schedule_length(config, self.plan, len(self.samples))
        self.folder.mkdir(parents=True, exist_ok=True)
        device = self.context.device
        scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and config.precision in ("auto", "fp16"))
        self.state = TrainingState(network, build_optimizer(parameter_groups(network, self.plan), config), scaler)
        self.total_steps = self.epochs * self.passes * math.ceil(len(self.samples) / config.batch_size)
        self.parts = 1
        """Number of parts that a batch is split into, because it does not fit into memory."""
        spec = self.context.spec if config.augment == "none" else canvas(self.context.spec)
        self.pixels = PixelTable(self.samples, spec, self.context.cache)

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
            state.save(self.folder)
            self.pixels.keep()
        if val:
            network.load_state_dict(state.best)
        network.eval()

    def _epoch(self, epoch: int) -> float:
        """Train for one epoch, counted from 1, and return the mean loss."""
        torch.manual_seed(self.context.seed * 100_003 + epoch)
        first, unfrozen = (epoch - 1) * self.total_steps // self.epochs, -1
        losses: list[Tensor] = []
        names: list[list[str]] = []
        for step, (pixels_BHW3, rows_B) in enumerate(self._batches(epoch), first):
            progress = step / self.total_steps
            if (count := unfrozen_stages(self.context.network, self.plan, progress)) != unfrozen:
                unfreeze(self.context.network, self.plan, unfrozen := count)
            factor = learning_rate_factor(self.context.config, progress, self.state.history)
            for group in self.state.optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            losses.append(self._step(pixels_BHW3, rows_B))
            names.append([self.samples[row].name for row in rows_B])
            if len(losses) % CHECK_STEPS == 0:
                _check_losses(losses[-CHECK_STEPS:], names[-CHECK_STEPS:], epoch)
        _check_losses(losses, names, epoch)
        return float(torch.stack(losses).mean())

    def steps(self, factors: Iterable[float]) -> Iterator[float]:
        """Train all stages of the plan for one step at each factor of the peak learning rates, and yield its loss."""
        torch.manual_seed(self.context.seed)
        unfreeze(self.context.network, self.plan, unfrozen_stages(self.context.network, self.plan, 1.0))
        batches = itertools.chain.from_iterable(self._batches(epoch) for epoch in itertools.count(1))
        for factor, (pixels_BHW3, rows_B) in zip(factors, batches, strict=False):
            for group in self.state.optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            yield float(self._step(pixels_BHW3, rows_B))

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Yield augmented pixels, uint8 (B, H, W, 3), on the device, and the rows that they belong to."""
        config, spec = self.context.config, self.context.spec
        batches = [
            (number, rows_B.numpy())
            for number in range(self.passes)
            for rows_B in torch.split(draw_order(self.samples, config.sampling), config.batch_size)
        ]
        if self.plan.batch_norm and len(self.samples) > 1:
            batches = [(number, rows_B) for number, rows_B in batches if len(rows_B) > 1]  # one image has no variance
        pictures = map_ahead(self.pixels.read, (rows_B for _, rows_B in batches), ahead=4)
        shown = track(pictures, f"epoch {epoch} of {self.epochs}", len(batches))
        for (number, rows_B), pixels_BHW3 in zip(batches, shown, strict=True):
            part, view = [self.samples[row] for row in rows_B], FIRST_VIEW + epoch * self.passes + number
            pixels = to_device(torch.from_numpy(pixels_BHW3), self.context.device)
            yield augment(pixels, part, kind=config.augment, view=view, size=(spec.height, spec.width)), rows_B

    def _step(self, pixels_BHW3: Tensor, rows_B: np.ndarray) -> Tensor:
        """Update the weights on a batch and return its loss."""
        config, state = self.context.config, self.state
        targets_B = torch.tensor([self.samples[row].index for row in rows_B], device=pixels_BHW3.device)
        pixels, partners_B, share = pixels_BHW3, None, 1.0
        if config.mixup:
            pixels, partners_B, share = mix(pixels_BHW3, config.mixup)
        labels = SoftTargets(targets_B, None if partners_B is None else targets_B[partners_B], share)
        loss = self._accumulate(pixels, labels)
        while loss is None:
            self._split_further()
            loss = self._accumulate(pixels, labels)
        if config.clip_norm:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(self.context.network.parameters(), config.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return loss

    def _accumulate(self, pixels_BHW3: Tensor, labels: SoftTargets) -> Tensor | None:
        """Compute the gradients of a batch, part by part, and return its loss; None if a part does not fit into memory."""
        config, state = self.context.config, self.state
        weights_K = self.context.class_weights_K.to(pixels_BHW3.device)
        total = labels.weights(weights_K).sum()
        state.optimizer.zero_grad()
        loss = torch.zeros((), device=pixels_BHW3.device)
        try:
            for part in torch.arange(len(pixels_BHW3)).chunk(self.parts):
                rows = slice(int(part[0]), int(part[-1]) + 1)
                with autocast(pixels_BHW3.device, config.precision):
                    logits_BK = self.context.network(pixels_BHW3[rows])
                part_loss = labels.loss(logits_BK, rows, weights_K, config.label_smoothing) / total
                state.scaler.scale(part_loss).backward()  # type: ignore[no-untyped-call]
                loss += part_loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not is_memory_error(error):
                raise
            if self.parts >= len(pixels_BHW3):
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
        self.findings[:] = [Finding(code="batch_split", message=message, level="note")]


def schedule_length(config: TrainConfig, plan: LayerPlan, images: int) -> tuple[int, int]:
    """Return the number of epochs, and of passes over the images in each of them."""
    if config.epochs:
        return config.epochs, 1
    steps = math.ceil(images / config.batch_size)
    return plan.epochs, max(1, math.ceil(MIN_STEPS / (plan.epochs * steps)))


def training_images(context: TrainingContext, plan: LayerPlan) -> int:
    """Return on how many images a training makes a step, counted with repetitions, if it is not stopped early."""
    train, both = (len(context.prepared.of(*splits)) for splits in (("train",), ("train", "val")))
    return sum(
        math.prod(schedule_length(context.config, plan, n)) * n for n in ([train, both] if context.config.refit else [train])
    )


def parameter_groups(network: Network, plan: LayerPlan) -> list[dict[str, Any]]:
    """Return the optimizer's groups, from the input to the head, each with its peak learning rate as `peak`."""
    parameters = {stage.name: stage.parameters() for stage in stages(network.backbone)}
    parameters["head"] = list(network.head.parameters())
    return [
        {"name": name, "params": own, "lr": plan.peaks[name], "peak": plan.peaks[name]}
        for name, own in parameters.items()
        if name in plan.peaks
    ]


def unfrozen_stages(network: Network, plan: LayerPlan, progress: float) -> int:
    """Return how many stages of the plan are trained, counted from the top, when a share of all steps is done."""
    planned = sum(stage.name in plan.peaks for stage in stages(network.backbone))
    return planned if not plan.unfreezing else min(planned, math.ceil(planned * progress / plan.unfreezing))


def unfreeze(network: Network, plan: LayerPlan, count: int) -> None:
    """Unfreeze the head and the topmost `count` stages of a plan, and freeze the others.

    Batch norms keep their statistics, unless the plan trains them.
    """
    named = stages(network.backbone)
    planned = [stage.name for stage in named if stage.name in plan.peaks]
    trained = planned[len(planned) - count :]
    network.train()
    for stage in named:
        stage.set_trainable(stage.name in trained)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not plan.batch_norm:
            module.eval()


def draw_order(samples: Sequence[Sample], sampling: str) -> Tensor:
    """Draw the rows of one pass from torch's generator: each once, or with `balanced` sampling each class equally often."""
    if sampling == "shuffle":
        return torch.randperm(len(samples))
    classes_N = torch.tensor([sample.index for sample in samples])
    return torch.multinomial(1 / classes_N.bincount()[classes_N], len(samples), replacement=True)


def compute_val_logits(context: TrainingContext) -> Tensor:
    """Compute the network's logits of the validation images, float32 (N, K), on the CPU."""
    context.network.eval()
    batch_size = CPU_BATCH if context.device.type == "cpu" else context.config.batch_size
    batches = stream_pixels(context.prepared.of("val"), context.spec, batch_size)
    with torch.inference_mode(), autocast(context.device, context.config.precision):
        pixels = (to_device(torch.from_numpy(batch_NHW3), context.device) for batch_NHW3 in batches)
        return torch.cat([context.network(pixels_NHW3).float().cpu() for pixels_NHW3 in pixels])


def _check_losses(losses: Sequence[Tensor], names: Sequence[list[str]], epoch: int) -> None:
    """Reject losses that are not finite, naming the first batch."""
    for loss, images in zip(torch.stack(list(losses)).tolist(), names, strict=True):
        check_finite(loss, epoch, images)
