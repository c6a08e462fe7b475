"""Images a second of the loop that trains layers, compared with its parts alone: decoding, and the bare training step.

    python benchmarks/training_loop.py --model mobilenet_v3_large --weights none --device cuda --precision bf16

All on the same images, batches and network, in turn. Decoding alone reads every picture from its file, as the first epoch does.
The bare step trains on one batch that stays on the device: forward, backward and update, nothing else. The loop's first epoch
decodes; its later ones read the cache of decoded pictures. Each figure is the median of several repetitions.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import photos, report, without_spinning
from torch.nn import functional

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import map_ahead, read_prepared
from edgeline.pipeline.models.backbones import Network, build
from edgeline.pipeline.models.devices import autocast, choose_device
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.training.fine_tuning.layers import LayerTrainer
from edgeline.pipeline.training.fine_tuning.pixels import PixelTable, canvas
from edgeline.pipeline.training.fine_tuning.plan import parameter_groups, unfreeze
from edgeline.pipeline.training.optimization import build_optimizer
from edgeline.pipeline.training.strategies import full


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def rate(images: int, work: Callable[[], object], device: torch.device) -> float:
    """Images a second of some work."""
    start = time.perf_counter()
    work()
    synchronize(device)
    return images / (time.perf_counter() - start)


def settle(network: Network, size: int) -> None:
    """Give batch norms of random weights statistics; otherwise the signal vanishes, and denormal numbers take all the time."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randint(0, 256, (16, size, size, 3), dtype=torch.uint8))


def decode(context: TrainingContext, batch_size: int) -> None:
    """Read every picture once, from its file, as the loop does: in threads."""
    with tempfile.TemporaryDirectory() as empty:
        table = PixelTable(context.prepared.of("train"), canvas(context.spec), Path(empty))
        rows = np.array_split(np.arange(len(table.samples)), max(1, len(table.samples) // batch_size))
        for _ in map_ahead(table.read, rows, ahead=4):
            pass


def bare_steps(context: TrainingContext, batch_size: int, count: int) -> None:
    """Train on one batch that is on the device already."""
    network, config = context.network, context.config
    plan = full.plan(context)
    unfreeze(network, plan, len(plan.peaks))  # all stages
    optimizer = build_optimizer(parameter_groups(network, plan), config)
    shape = (batch_size, context.spec.height, context.spec.width, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=context.device)
    targets = torch.arange(batch_size, device=context.device) % len(context.prepared.labels)
    for _ in range(count):
        optimizer.zero_grad()
        with autocast(context.device, config.precision):
            logits = network(pixels)
        functional.cross_entropy(logits.float(), targets).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos("hymenoptera"))
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    repetitions, size = arguments.repetitions, arguments.batch_size
    with tempfile.TemporaryDirectory() as temporary:
        settings = [
            "train.strategy=full",
            f"train.epochs={2 * repetitions}",
            f"train.batch_size={size}",
            f"train.precision={arguments.precision}",
            f"preprocess.size={arguments.size}",
        ]
        config = load_config(None, settings, data=arguments.data, artifacts=temporary)
        run, _ = prepare(config)
        prepared, device = read_prepared(run.step("prepare")), choose_device(arguments.device)
        network, spec = build(
            arguments.model, arguments.weights, classes=len(prepared.labels), dropout=0.2, preprocess=config.preprocess
        )
        if arguments.weights == "none":
            settle(network, spec.height)
        figures: dict[str, list[float]] = {"decoding": [], "bare step": [], "first epoch": [], "later epochs": []}
        for number in range(repetitions):
            folder = Path(temporary) / str(number)
            context = TrainingContext(
                network=copy.deepcopy(network).to(device),
                spec=spec,
                prepared=prepared,
                config=config.train,
                seed=0,
                folder=folder,
                cache=folder / "cache",
                device=device,
            )
            images = len(prepared.of("train"))
            bare_steps(context, size, 1)
            figures["decoding"].append(rate(images, lambda: decode(context, size), device))  # noqa: B023
            figures["bare step"].append(rate(images, lambda: bare_steps(context, size, images // size), device))  # noqa: B023
            trainer = LayerTrainer(context, full.plan(context), prepared.of("train"), folder / "state")
            figures["first epoch"].append(rate(images, lambda: trainer._epoch(1), device))  # noqa: B023
            figures["later epochs"].append(rate(2 * images, lambda: (trainer._epoch(2), trainer._epoch(3)), device))  # noqa: B023
    medians = {name: statistics.median(values) for name, values in figures.items()}
    for name, value in medians.items():
        print(f"{name:13}{value:10.1f} images/s")
    slower = min(medians["decoding"], medians["bare step"])
    print(f"first epoch, of the slower of decoding and bare step  {medians['first epoch'] / slower:.2f}")
    print(f"later epochs, of the bare step                        {medians['later epochs'] / medians['bare step']:.2f}")
    report(
        "training_loop",
        model=arguments.model,
        size=arguments.size,
        device=str(device),
        **{name.replace(" ", "_"): value for name, value in medians.items()},
        first_of_slower=medians["first epoch"] / slower,
        later_of_step=medians["later epochs"] / medians["bare step"],
    )


if __name__ == "__main__":
    without_spinning()
    main()
