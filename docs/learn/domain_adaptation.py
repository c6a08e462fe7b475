"""Adapt a head to photos of another camera without labelling them: multi-kernel MMD (Long et al. 2015).

    python domain_adaptation.py SOURCE TARGET [ARTIFACTS]

SOURCE and TARGET are folders with one folder for each class, of the same classes. Labels of TARGET are used only to measure. A
small network learns to classify the features of SOURCE, while two of its layers are pulled towards equal distributions on
both. Compared on TARGET with the plain head, and with the same network without the pull.

Shapes: N images of a batch, D features, K classes.
"""

import sys

import numpy as np
import torch
from cached_features import read_features
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.models.devices import one_thread
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.heads import HeadData, train_heads

HIDDEN, EPOCHS, BATCH, WEIGHT, SEEDS = 256, 30, 64, 1.0, 5


def mk_mmd(source_ND: Tensor, target_ND: Tensor) -> Tensor:
    """Squared maximum mean discrepancy with five Gaussian kernels, whose widths lie around the mean squared distance."""
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


def compare(source: tuple[Tensor, np.ndarray], target: tuple[Tensor, np.ndarray]) -> dict[str, np.ndarray]:
    """Accuracy on the target by method, one for each seed."""
    source_ND, labels_N = source[0], torch.from_numpy(source[1])
    found: dict[str, list[float]] = {"plain head": [], "small network": [], "with MK-MMD": []}
    for seed in range(SEEDS):
        networks = [plain_head(source_ND, labels_N, seed=seed)]
        networks += [adapt(source_ND, labels_N, target[0], weight=weight, seed=seed) for weight in (0, WEIGHT)]
        for values, network in zip(found.values(), networks, strict=True):
            values.append(accuracy(network, target[0], torch.from_numpy(target[1])))
    return {name: np.array(values) for name, values in found.items()}


if __name__ == "__main__":
    folder = sys.argv[3] if len(sys.argv) > 3 else "artifacts"
    source, target = (read_features(data, folder) for data in sys.argv[1:3])
    with one_thread():
        measured = compare(source, target)
    for name, values in measured.items():
        low, mean, high = 100 * values.min(), 100 * values.mean(), 100 * values.max()
        print(f"{name:13} {mean:.1f} % of {len(target[1])} target photos (seeds {low:.1f} to {high:.1f})")
