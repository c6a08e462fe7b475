"""Adapt a head to photos of another camera without labelling them: multi-kernel MMD (Long et al. 2015).

    python domain_adaptation.py SOURCE TARGET [ARTIFACTS]

SOURCE and TARGET are folders with one folder for each class, of the same classes. Labels of TARGET are used only to measure. A small
network learns to classify the features of SOURCE, while two of its layers are pulled towards equal distributions on both domains.
Compared on TARGET with the plain head, and with the same network without the pull (weight 0).

Shapes: N images of a batch, D features, K classes.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.config import TrainConfig, load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.devices import one_thread
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.training.features import FeatureExtractor
from edgeline.pipeline.training.heads import HeadData, train_heads

HIDDEN, EPOCHS, BATCH, WEIGHT, SEEDS = 256, 30, 64, 1.0, 5


def mk_mmd(source_ND: Tensor, target_ND: Tensor) -> Tensor:
    """Squared maximum mean discrepancy with five Gaussian kernels, whose widths lie around the mean distance. A number, 0 or more."""
    both = torch.cat([source_ND, target_ND])
    distances = torch.cdist(both, both).square()
    widths = distances.detach().mean() * torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0])
    kernel = torch.exp(-distances[None] / widths[:, None, None]).mean(0)
    count = len(source_ND)
    return kernel[:count, :count].mean() + kernel[count:, count:].mean() - 2 * kernel[:count, count:].mean()


def adapt(source_ND: Tensor, labels_N: Tensor, target_ND: Tensor, *, weight: float, seed: int) -> nn.Module:
    """Train a network on labelled source features and unlabelled target features. `weight` 0 ignores the target."""
    torch.manual_seed(seed)
    hidden = nn.Sequential(nn.Linear(source_ND.shape[1], HIDDEN), nn.ReLU())
    last = nn.Linear(HIDDEN, int(labels_N.max()) + 1)
    network = nn.Sequential(hidden, nn.Dropout(0.5), last)
    steps = EPOCHS * max(1, len(source_ND) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    for step in range(steps):
        pull = weight * (2 / (1 + np.exp(-10 * step / steps)) - 1)  # from 0 to the weight, so that classes form first
        source = torch.randint(len(source_ND), (BATCH,))
        hidden_source, hidden_target = hidden(source_ND[source]), hidden(target_ND[torch.randint(len(target_ND), (BATCH,))])
        logits_source, logits_target = last(network[1](hidden_source)), last(hidden_target)
        distance = mk_mmd(hidden_source, hidden_target) + mk_mmd(last(hidden_source).softmax(1), logits_target.softmax(1))
        loss = functional.cross_entropy(logits_source, labels_N[source]) + pull * distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def plain_head(source_ND: Tensor, labels_N: Tensor, *, seed: int) -> nn.Module:
    """The head of the strategy `head`, trained on the source alone."""
    folds = np.arange(len(labels_N)) % 5
    data = HeadData(tables=[source_ND.numpy()], targets_M=labels_N.numpy(), folds_M=folds)
    trained = train_heads(data, TrainConfig(), torch.ones(int(labels_N.max()) + 1), seed)
    head = nn.Linear(source_ND.shape[1], len(trained.bias_K))
    head.load_state_dict({"weight": trained.weight_KD, "bias": trained.bias_K})
    return head


def accuracy(network: nn.Module, features_ND: Tensor, labels_N: Tensor) -> float:
    """Share of images that a network classifies correctly."""
    with torch.inference_mode():
        return (network(features_ND).argmax(1) == labels_N).float().mean().item()


def read_features(data: str, artifacts: str) -> tuple[Tensor, Tensor]:
    """The features and labels of all images in a folder; features that are in the cache are not computed again."""
    run, _ = prepare(load_config(data=data, artifacts=artifacts))
    prepared = read_prepared(run.step("prepare"))
    network, spec = build("efficientnet_lite0", "imagenet", classes=len(prepared.labels))
    extractor = FeatureExtractor(network, spec, ContentCache(Path(artifacts, "cache", "features.sqlite")), torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        table = extractor.compute(prepared.samples, Path(folder, "features.npy"))
        return torch.from_numpy(np.array(table)), torch.tensor([sample.index for sample in prepared.samples])


if __name__ == "__main__":
    artifacts = sys.argv[3] if len(sys.argv) > 3 else "artifacts"
    (source_ND, labels_N), (target_ND, truth_N) = (read_features(data, artifacts) for data in sys.argv[1:3])
    with one_thread():
        trained = [
            (
                plain_head(source_ND, labels_N, seed=seed),
                *(adapt(source_ND, labels_N, target_ND, weight=w, seed=seed) for w in (0, WEIGHT)),
            )
            for seed in range(SEEDS)
        ]
    for name, networks in zip(("plain head", "small network", "with MK-MMD"), zip(*trained, strict=True), strict=True):
        found = 100 * np.array([accuracy(network, target_ND, truth_N) for network in networks])
        print(f"{name:14} {found.mean():.1f} % on {len(truth_N)} target photos (seeds {found.min():.1f} to {found.max():.1f})")
