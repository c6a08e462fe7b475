"""Quantization-aware training: the last stage of the search, where rounding alone loses too much.

The network learns to reproduce the float32 file's logits while every forward pass rounds as the int8 file does
(`export.quantization.fake_quant`). Only the training images' pixels are read, no labels. The float32 file does not change.

Shapes: N images, K classes, H x W the model's input.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.quantization.fake_quant import as_in_file, read_layers, simulate, with_weights
from edgeline.export.quantization.report import QatReport
from edgeline.export.quantization.search import Tuned
from edgeline.export.quantization.static_int8 import Quantizable
from edgeline.pipeline.data.samples import Sample, read_prepared, stream_pixels
from edgeline.pipeline.evaluation.metrics import temperature_of
from edgeline.pipeline.models.checkpoint import CALIBRATION, load_checkpoint
from edgeline.pipeline.models.devices import choose_device, memory_errors, to_device
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.training.augment import augment
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.session import create_session

LEARNING_RATE = 3e-5
"""Adam's, at its peak: the change of a weight in one step, as a share of its channel's largest weight; int8 rounds to 1/127
of that. Three times as much made MobileNetV2 worse (ADR 0011)."""
BATCH = 16
MAX_IMAGES = 2048
"""Images of one epoch: the network learns to round, not the classes."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What fine-tuning needs of a run."""

    reference: bytes
    """The float32 file, whose logits are the target."""
    deployed: CalibratedModel
    spec: PreprocessSpec
    samples: Sequence[Sample]
    """Training images."""
    augment: str = "none"
    """As for `pipeline.training.augment.augment`."""
    seed: int = 0
    device: torch.device = torch.device("cpu")
    learning_rate: float = LEARNING_RATE


def tuning_of(run: Run, reference: bytes) -> Tuning:
    """What fine-tuning needs of a run, given its float32 file."""
    network, checkpoint = load_checkpoint(run.step("train"))
    config = run.config.train
    return Tuning(
        reference=reference,
        deployed=CalibratedModel(network, temperature_of(run.step("train") / CALIBRATION)),
        spec=checkpoint.preprocess,
        samples=read_prepared(run.step("prepare")).of("train"),
        augment=config.augment if config.views or config.strategy not in ("auto", "head", "few-shot") else "none",
        seed=run.config.seed,
        device=choose_device(config.device),
    )


def tune(tuning: Tuning, ready: Quantizable, quantized: bytes, epochs: int) -> Tuned:
    """Fine-tune the weights of a file for its int8 form.

    Args:
        tuning: the run's network and training images.
        ready: the float32 file, the result of `export.quantization.static_int8.make_ready`.
        quantized: its int8 form, which is simulated; learning starts at its biases.
        epochs: passes over the training images, or over `MAX_IMAGES` of them, drawn again for each.

    Returns:
        A copy of `ready` with the tuned weights, to be quantized by the same recipe, its biases not corrected again.

    Raises:
        DataError: an image is missing or has changed.
        ExportError: the network's layers are not the file's.
        TrainingError: the loss is not finite, or memory is exhausted.
    """
    start = time.monotonic()
    layers = read_layers(ready.model, quantized)
    pixels_NHW3 = next(stream_pixels(tuning.samples[:BATCH], tuning.spec, BATCH))
    network = as_in_file(tuning.deployed, tuning.spec, ready, layers, pixels_NHW3)
    learned = simulate(network, layers, pixels_NHW3)
    network.to(tuning.device)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    teacher = create_session(tuning.reference)
    optimizer = torch.optim.Adam(learned, lr=tuning.learning_rate)
    count = min(MAX_IMAGES, len(tuning.samples))
    steps = math.ceil(count / BATCH) * epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    losses = []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch_NHW3 in _batches(tuning, epoch, epochs):
            expected_NK = torch.from_numpy(teacher.run(["logits"], {"image": batch_NHW3.numpy()})[0]).to(tuning.device)
            with memory_errors(BATCH, "set export.qat_epochs=0"):
                logits_NK = network(to_device(batch_NHW3, tuning.device)) / tuning.deployed.temperature
                loss = distance(logits_NK, expected_NK)
                _check_finite(loss.item(), epoch)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
            total += loss.item() * len(batch_NHW3)
        losses.append(total / count)
    report = QatReport(epochs=epochs, images=count, losses=tuple(losses), seconds=time.monotonic() - start)
    return Tuned(with_weights(ready, network.cpu(), layers), report)


def distance(logits_NK: Tensor, expected_NK: Tensor) -> Tensor:
    """The loss, which corresponds to the thresholds: the share of noise in the logits, and the divergence of probabilities."""
    noise = (logits_NK - expected_NK).square().sum() / expected_NK.square().sum()
    log_p_NK, log_q_NK = expected_NK.log_softmax(1), logits_NK.log_softmax(1)
    return noise + functional.kl_div(log_q_NK, log_p_NK, reduction="batchmean", log_target=True)


def _batches(tuning: Tuning, epoch: int, epochs: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(tuning.seed * 100_003 + epoch)
    order = [tuning.samples[i] for i in torch.randperm(len(tuning.samples), generator=generator).tolist()][:MAX_IMAGES]
    title = f"tuning for int8, epoch {epoch} of {epochs}"
    position = 0
    for batch_NHW3 in track(stream_pixels(order, tuning.spec, BATCH), title, len(order), step=BATCH):
        part = order[position : position + len(batch_NHW3)]
        position += len(part)
        yield augment(torch.from_numpy(batch_NHW3), part, kind=tuning.augment, view=2000 + epoch)


def _rate(progress: float) -> float:
    """Warm up over the first twentieth, then half a cosine down to zero."""
    return min(1.0, (progress + 0.002) / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))


def _check_finite(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"tuning for int8: the loss became {loss} in epoch {epoch}; set export.qat_epochs=0, or look for images of "
            "a single color",
            code="loss_not_finite",
        )
