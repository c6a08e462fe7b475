"""Time until a fine-tuned network is as good on validation images as the hand-written loop ever gets, for edgeline and rivals.

    python benchmarks/fine_tune.py --strategy head
    python benchmarks/fine_tune.py --strategy lp-ft --epochs 10

The hand-written loop is that of the courses: DataLoader with workers, Adam, random crops and mirroring. With `head` its
backbone is frozen (Adam 1e-3), otherwise all layers are trained (Adam 1e-4, batch norms learn too). The rival is fastai's
`fine_tune`, in an environment of its own. All start from the same weights and read the same files, in turn. The clock starts
before the first file is read and stops at the first epoch whose validation accuracy reaches the target: the best that the
hand-written loop has in its full schedule. A way that never reaches it is reported with its own best.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from common import install, photos, report, without_spinning
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import Prepared, Sample, read_prepared
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.devices import choose_device
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.training.history import TrainingHistory
from edgeline.pipeline.training.train import train

MODEL = "efficientnet_lite0"
Curve = list[tuple[float, float]]
"""Seconds since the start, and validation accuracy, after each epoch."""


class Photos(Dataset):
    """A data set as in tutorials."""

    def __init__(self, samples: list[Sample], *, random: bool) -> None:
        crop = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()] if random else [v2.Resize(256), v2.CenterCrop(224)]
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
        self.samples, self.transform = samples, v2.Compose([v2.PILToTensor(), *crop, *scale])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.samples[index].path).convert("RGB")), self.samples[index].index


def by_hand(prepared: Prepared, *, frozen: bool, epochs: int, workers: int) -> Curve:
    """Train as the courses do, for a full schedule."""
    torch.manual_seed(0)
    start = time.perf_counter()
    network, _ = build(MODEL, "imagenet", classes=len(prepared.labels))
    backbone, head = network.backbone.to(memory_format=torch.contiguous_format), nn.Linear(1280, len(prepared.labels))
    model = nn.Sequential(backbone, head)
    backbone.requires_grad_(not frozen)
    trained, rate = (head, 1e-3) if frozen else (model, 1e-4)
    optimizer, criterion = torch.optim.Adam(trained.parameters(), lr=rate), nn.CrossEntropyLoss()
    loaders = {
        split: DataLoader(
            Photos(prepared.of(split), random=split == "train"), 32, shuffle=split == "train", num_workers=workers
        )
        for split in ("train", "val")
    }
    curve = []
    for _ in range(epochs):
        model.train()
        for images, targets in loaders["train"]:
            optimizer.zero_grad()
            criterion(model(images), targets).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            hits = sum((model(images).argmax(1) == targets).sum().item() for images, targets in loaders["val"])
        curve.append((time.perf_counter() - start, hits / len(prepared.of("val"))))
    return curve


def with_edgeline(prepared: Prepared, strategy: str, epochs: int, folder: Path) -> Curve:
    """Train as edgeline does, with an empty cache; validation figures are those of the same validation images."""
    settings = [f"train.strategy={strategy}", "train.refit=false"]
    settings += [] if strategy == "head" else [f"train.epochs={epochs}"]
    curve, original = [], TrainingHistory.add
    start = time.perf_counter()

    def timed(history: TrainingHistory, train_loss: float, val_loss: float, val_accuracy: float) -> bool:
        curve.append((time.perf_counter() - start, val_accuracy))
        return original(history, train_loss, val_loss, val_accuracy)

    TrainingHistory.add = timed
    try:
        network, spec = build(MODEL, "imagenet", classes=len(prepared.labels), dropout=0.5)
        train(
            TrainingContext(
                network=network,
                spec=spec,
                prepared=prepared,
                config=load_config(None, settings).train,
                seed=0,
                folder=folder,
                cache=folder / "cache",
                device=choose_device("cpu"),
            )
        )
    finally:
        TrainingHistory.add = original
    return curve


def with_fastai(prepared: Prepared, python: Path, *, frozen: bool, epochs: int, folder: Path) -> Curve:
    """Train with fastai's `fine_tune`, or `fit_one_cycle` of the head for a frozen backbone."""
    network, _ = build(MODEL, "imagenet", classes=len(prepared.labels))
    state = {name: tensor.contiguous() for name, tensor in network.backbone.state_dict().items()}
    save_file(state, folder / "backbone.safetensors")
    files = [[sample.path, sample.label, sample.split] for sample in prepared.of("train", "val")]
    (folder / "files.json").write_text(json.dumps(files))
    script = Path(__file__).with_name("fine_tune_fastai.py")
    command = [python, script, folder, str(epochs), "frozen" if frozen else "all"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return [(seconds, accuracy) for seconds, accuracy in json.loads(result.stdout.splitlines()[-1])]


def seconds_to(curve: Curve, target: float) -> float | None:
    """Seconds until the accuracy is reached; None if it never is."""
    return next((seconds for seconds, accuracy in curve if accuracy >= target), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos("hymenoptera"))
    parser.add_argument("--strategy", default="head", choices=["head", "lp-ft", "full"])
    parser.add_argument("--epochs", type=int, default=10, help="of the hand-written loop and of fastai, and of lp-ft and full")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the rivals' DataLoaders")
    parser.add_argument("--environment", type=Path, default=Path("build/fastai"), help="folder of fastai's environment")
    arguments = parser.parse_args()
    frozen, epochs = arguments.strategy == "head", arguments.epochs
    # spacy is for text; it would be most of the environment.
    python = install(
        arguments.environment, "fastai", "timm", "safetensors", "setuptools<81", overrides=("spacy; sys_platform == 'never'",)
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run, _ = prepare(load_config(data=arguments.data, artifacts=temporary))
        prepared = read_prepared(run.step("prepare"))
        curves = {
            "edgeline": with_edgeline(prepared, arguments.strategy, epochs, folder),
            "by hand": by_hand(prepared, frozen=frozen, epochs=epochs, workers=arguments.workers),
            "fastai": with_fastai(prepared, python, frozen=frozen, epochs=epochs, folder=folder),
        }
    target = max(accuracy for _, accuracy in curves["by hand"])
    times = {name: seconds_to(curve, target) for name, curve in curves.items()}
    print(f"{len(prepared.of('train'))} training and {len(prepared.of('val'))} validation images, target {target:.4f}")
    for name, curve in curves.items():
        best = max(accuracy for _, accuracy in curve)
        reached = f"{times[name]:7.1f} s" if times[name] is not None else "  never"
        print(f"{name:10}{reached} to the target; best {best:.4f}; {curve[-1][0]:7.1f} s in all")
    ours = times["edgeline"]
    ratios = {name: times[name] / ours for name in ("by hand", "fastai") if ours and times[name]}
    for name, ratio in ratios.items():
        print(f"{name} takes {ratio:.1f} times as long")
    report("fine_tune", strategy=arguments.strategy, target=target, curves=curves, seconds=times, ratios=ratios)


if __name__ == "__main__":
    without_spinning()
    main()
