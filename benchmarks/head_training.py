"""Head training on cached features compared with a hand-written loop, on the same split of the same photos.

Both train dropout + linear on a frozen EfficientNet-Lite0 for the same number of epochs, with the same learning rate, and keep
the weights that were best on validation. By hand: in every epoch, a DataLoader with worker processes decodes the files, and
the whole network runs over train and validation. edgeline: the backbone's features are computed once, and the head is trained
on them. Both are timed from the first file that is read to the trained head.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import Clock, photos, report
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import Sample, read_prepared
from edgeline.pipeline.evaluation.evaluate import compute_logits
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.devices import choose_device
from edgeline.pipeline.training.class_weights import class_weights
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.training.train import train

LEARNING_RATE = 1e-3
"""For both."""


class Photos(Dataset):
    """A data set as in tutorials."""

    def __init__(self, samples: list[Sample], mean: list[float], std: list[float]) -> None:
        self.samples = samples
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.CenterCrop(224),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.open(self.samples[index].path).convert("RGB")
        return self.transform(image), self.samples[index].index


def by_hand(prepared, epochs: int, seed: int, workers: int) -> tuple[float, float]:
    """Train as tutorials do. Returns seconds and test accuracy."""
    torch.manual_seed(seed)
    loaders = {
        split: DataLoader(Photos(prepared.of(split), [0.5] * 3, [0.5] * 3), 32, shuffle=split == "train", num_workers=workers)
        for split in ("train", "val", "test")
    }
    network, _ = build("efficientnet_lite0", "imagenet", classes=len(prepared.labels), dropout=0.2)
    model = nn.Sequential(network.backbone.to(memory_format=torch.contiguous_format), network.head)
    model[0].requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=LEARNING_RATE)
    criterion = nn.CrossEntropyLoss(class_weights(prepared, load_config().train))
    lowest, best = float("inf"), {}
    with Clock() as clock:
        for _ in range(epochs):
            model[1].train()
            for images, targets in loaders["train"]:
                optimizer.zero_grad()
                criterion(model(images), targets).backward()
                optimizer.step()
            model[1].eval()
            with torch.no_grad():
                loss = sum(criterion(model(images), targets).item() * len(targets) for images, targets in loaders["val"])
            if loss < lowest:
                lowest, best = loss, {name: tensor.clone() for name, tensor in model[1].state_dict().items()}
    model[1].load_state_dict(best)
    with torch.no_grad():
        hits = sum((model(images).argmax(1) == targets).sum().item() for images, targets in loaders["test"])
    return clock.seconds, hits / len(prepared.of("test"))


def with_cached_features(prepared, epochs: int, seed: int, folder: Path) -> tuple[float, float]:
    """Train as edgeline does, with an empty cache. Returns seconds and test accuracy."""
    same = [f"train.learning_rate={LEARNING_RATE}", "train.refit=false"]
    config = load_config(None, [f"train.epochs={epochs}", f"train.patience={epochs}", *same]).train
    device = choose_device("cpu")
    with Clock() as clock:
        network, spec = build("efficientnet_lite0", "imagenet", classes=len(prepared.labels), dropout=0.2)
        train(
            TrainingContext(
                network=network,
                spec=spec,
                prepared=prepared,
                config=config,
                seed=seed,
                folder=folder,
                cache=folder / "cache",
                device=device,
            )
        )
    logits_NK = compute_logits(network, prepared.of("test"), spec, device)
    targets_N = np.array([sample.index for sample in prepared.of("test")])
    return clock.seconds, float((logits_NK.argmax(1) == targets_N).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos("hymenoptera"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the hand-written loop's DataLoader")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run, _ = prepare(load_config(data=arguments.data, artifacts=temporary))
        prepared = read_prepared(run.step("prepare"))
        print(f"{len(prepared.samples)} images, {len(prepared.labels)} classes, {arguments.epochs} epochs")
        cached_s, cached_accuracy = with_cached_features(prepared, arguments.epochs, arguments.seed, Path(temporary))
        print(f"cached features  {cached_s:7.1f} s  test accuracy {cached_accuracy:.4f}", flush=True)
        hand_s, hand_accuracy = by_hand(prepared, arguments.epochs, arguments.seed, arguments.workers)
        print(f"by hand          {hand_s:7.1f} s  test accuracy {hand_accuracy:.4f}")
        print(f"ratio            {hand_s / cached_s:7.1f}")
    report(
        "head_training",
        data=Path(arguments.data).name,
        images=len(prepared.samples),
        epochs=arguments.epochs,
        cached_s=cached_s,
        by_hand_s=hand_s,
        ratio=hand_s / cached_s,
        cached_accuracy=cached_accuracy,
        by_hand_accuracy=hand_accuracy,
    )


if __name__ == "__main__":
    main()
