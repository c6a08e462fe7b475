"""Learn a head that learns from few photos: MAML over episodes of the user's own classes (Finn et al. 2017), with torch.func.

    python maml.py DATA [SHOTS] [ARTIFACTS]

DATA is a folder with one folder for each class. Two thirds of the classes make the training episodes, the others only test. An
episode draws some classes, a few photos of each to adapt to and others to classify. Compared with a plain linear head that is
trained on the same few photos from zero, on the same episodes.

Shapes: T tasks at a time, S photos to adapt to, Q photos to classify, D features, W classes of an episode.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.devices import one_thread
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.training.features import FeatureExtractor

WAYS, QUERIES, HIDDEN, INNER_STEPS, INNER_RATE = 5, 10, 64, 5, 0.5
META_STEPS, TASKS, TEST_EPISODES = 300, 8, 300
Episode = tuple[Tensor, Tensor, Tensor, Tensor]
"""Features (S, D) and labels (S,) to adapt to, features (Q, D) and labels (Q,) to classify."""


def draw_episode(
    features_ND: Tensor, labels_N: np.ndarray, classes: list[int], shots: int, chance: np.random.Generator
) -> Episode:
    """Draw classes, and disjoint photos of each to adapt to and to classify. Their labels are 0 to W-1 in random order."""
    chosen = chance.choice(classes, WAYS, replace=False)
    drawn = [chance.choice(np.flatnonzero(labels_N == label), shots + QUERIES, replace=False) for label in chosen]
    support, query = (np.concatenate([rows[part] for rows in drawn]) for part in (slice(shots), slice(shots, None)))
    names = torch.arange(WAYS)
    return features_ND[support], names.repeat_interleave(shots), features_ND[query], names.repeat_interleave(QUERIES)


def loss_of(parameters: dict[str, Tensor], head: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Loss of a head with given parameters."""
    return functional.cross_entropy(functional_call(head, parameters, (features,)), labels)


def adapt(parameters: dict[str, Tensor], head: nn.Module, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Take a few steps of gradient descent on an episode's photos; differentiable, so that MAML can look through them."""
    for _ in range(INNER_STEPS):
        gradients = grad(loss_of)(parameters, head, features, labels)
        parameters = {name: value - INNER_RATE * gradients[name] for name, value in parameters.items()}
    return parameters


def meta_train(
    features_ND: Tensor, labels_N: np.ndarray, classes: list[int], shots: int
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Learn the parameters from which a few steps lead to a good head for any classes."""
    torch.manual_seed(0)
    chance = np.random.default_rng(0)
    head = nn.Sequential(nn.Linear(features_ND.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WAYS))
    parameters = dict(head.named_parameters())
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)

    def loss_after_adapting(support: Tensor, labels: Tensor, query: Tensor, query_labels: Tensor) -> Tensor:
        return loss_of(adapt(parameters, head, support, labels), head, query, query_labels)

    for _ in range(META_STEPS):
        episodes = [draw_episode(features_ND, labels_N, classes, shots, chance) for _ in range(TASKS)]
        loss = vmap(loss_after_adapting)(*(torch.stack(part) for part in zip(*episodes, strict=True))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head, {name: value.detach() for name, value in parameters.items()}


def plain_head(features: Tensor, labels: Tensor) -> nn.Module:
    """A linear head that is trained on an episode's photos from zero."""
    head = nn.Linear(features.shape[1], WAYS)
    nn.init.zeros_(head.weight)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3, weight_decay=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    return head


def compare(features_ND: Tensor, labels_N: np.ndarray, shots: int) -> np.ndarray:
    """Accuracy of MAML and of the plain head in each test episode: (episodes, 2)."""
    classes = np.random.default_rng(0).permutation(labels_N.max() + 1).tolist()
    head, parameters = meta_train(features_ND, labels_N, classes[: -len(classes) // 3], shots)
    chance, found = np.random.default_rng(1), []
    for _ in range(TEST_EPISODES):
        support, labels, query, truth = draw_episode(features_ND, labels_N, classes[-len(classes) // 3 :], shots, chance)
        answers = functional_call(head, adapt(parameters, head, support, labels), (query,)), plain_head(support, labels)(query)
        found.append([(answer.argmax(1) == truth).float().mean().item() for answer in answers])
    return np.array(found)


def read_features(data: str, artifacts: str) -> tuple[Tensor, np.ndarray]:
    """Standardized features and labels of all images in a folder; features in the cache are not computed again."""
    run, _ = prepare(load_config(data=data, artifacts=artifacts))
    prepared = read_prepared(run.step("prepare"))
    network, spec = build("efficientnet_lite0", "imagenet", classes=len(prepared.labels))
    extractor = FeatureExtractor(network, spec, ContentCache(Path(artifacts, "cache", "features.sqlite")), torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        table = torch.from_numpy(np.array(extractor.compute(prepared.samples, Path(folder, "features.npy"))))
        centered = table - table.mean(0)
        return centered / centered.norm(dim=1, keepdim=True), np.array([sample.index for sample in prepared.samples])


if __name__ == "__main__":
    shots = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with one_thread():
        found = 100 * compare(*read_features(sys.argv[1], sys.argv[3] if len(sys.argv) > 3 else "artifacts"), shots)
    margin = 1.96 * found.std(0) / np.sqrt(len(found))
    difference = found[:, 0] - found[:, 1]
    for name, value, half in zip(("MAML", "plain head"), found.mean(0), margin, strict=True):
        print(f"{name:10} {value:.1f} % ± {half:.1f}, {WAYS} new classes, {shots} photos of each, {len(found)} episodes")
    print(f"difference {difference.mean():+.1f} ± {1.96 * difference.std() / np.sqrt(len(found)):.1f} points, paired")
