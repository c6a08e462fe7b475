"""Learn a head that learns from few photos: MAML over episodes of the user's own classes (Finn et al. 2017), with torch.func.

    python maml.py DATA [SHOTS] [ARTIFACTS]

DATA has a folder for each class. Two thirds of the classes make the training episodes, the others only test. An episode draws
some classes, SHOTS photos of each to adapt to, and others to classify. Compared with a linear head on the same few photos.
"""

import sys

import numpy as np
import torch
from cached_features import read_features
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from edgeline.pipeline.models.devices import one_thread

WAYS, QUERIES, HIDDEN, INNER_STEPS, INNER_RATE = 5, 10, 64, 5, 0.5
META_STEPS, TASKS, TEST_EPISODES = 300, 8, 300
Parameters, Classes = dict[str, Tensor], list[np.ndarray]  # the positions of each class's photos


def draw_episode(features_ND: Tensor, classes: Classes, shots: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Draw classes; of each some photos (S, D) with labels (S,) to adapt to, and others (Q, D) and (Q,) to classify."""
    chosen = rng.choice(len(classes), WAYS, replace=False)
    drawn = [rng.choice(classes[number], shots + QUERIES, replace=False) for number in chosen]
    support, query = (np.concatenate([rows[part] for rows in drawn]) for part in (slice(shots), slice(shots, None)))
    names = [torch.arange(WAYS).repeat_interleave(count) for count in (shots, QUERIES)]
    return features_ND[support], names[0], features_ND[query], names[1]


def loss_of(parameters: Parameters, head: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Loss of a head with given parameters."""
    return functional.cross_entropy(functional_call(head, parameters, (features,)), labels)


def adapt(parameters: Parameters, head: nn.Module, features: Tensor, labels: Tensor) -> Parameters:
    """Take a few steps of gradient descent on an episode's photos; differentiable, so that MAML can look through them."""
    for _ in range(INNER_STEPS):
        gradients = grad(loss_of)(parameters, head, features, labels)
        parameters = {name: value - INNER_RATE * gradients[name] for name, value in parameters.items()}
    return parameters


def meta_train(features_ND: Tensor, classes: Classes, shots: int) -> tuple[nn.Module, Parameters]:
    """Learn the parameters from which a few steps lead to a good head for any classes."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    head = nn.Sequential(nn.Linear(features_ND.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WAYS))
    parameters = dict(head.named_parameters())
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)

    def loss_after_adapting(support: Tensor, labels: Tensor, query: Tensor, query_labels: Tensor) -> Tensor:
        return loss_of(adapt(parameters, head, support, labels), head, query, query_labels)

    for _ in range(META_STEPS):
        episodes = [draw_episode(features_ND, classes, shots, rng) for _ in range(TASKS)]
        loss = vmap(loss_after_adapting)(*(torch.stack(part) for part in zip(*episodes, strict=True))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head, {name: value.detach() for name, value in parameters.items()}


def plain_head(features: Tensor, labels: Tensor) -> nn.Module:
    """A linear head that is trained on an episode's photos from zero."""
    head = nn.Linear(features.shape[1], WAYS)
    nn.init.zeros_(head.weight)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    return head


def compare(features_ND: Tensor, labels_N: np.ndarray, shots: int) -> np.ndarray:
    """Accuracy of MAML and of the plain head in each test episode: (episodes, 2)."""
    rng, found = np.random.default_rng(1), []
    classes = [np.flatnonzero(labels_N == label) for label in rng.permutation(labels_N.max() + 1)]
    held_out = max(WAYS, len(classes) // 3)
    head, parameters = meta_train(features_ND, classes[held_out:], shots)
    for _ in range(TEST_EPISODES):
        support, labels, query, truth = draw_episode(features_ND, classes[:held_out], shots, rng)
        answers = functional_call(head, adapt(parameters, head, support, labels), (query,)), plain_head(support, labels)(query)
        found.append([(answer.argmax(1) == truth).float().mean().item() for answer in answers])
    return np.array(found)


if __name__ == "__main__":
    shots = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    table_ND, labels_N = read_features(sys.argv[1], sys.argv[3] if len(sys.argv) > 3 else "artifacts")
    with one_thread():
        found = 100 * compare(functional.normalize(table_ND - table_ND.mean(0)), labels_N, shots)
    found = np.column_stack([found, found[:, 0] - found[:, 1]])
    half = 1.96 * found.std(0) / np.sqrt(len(found))
    for name, mean, margin in zip(("MAML", "plain head", "difference"), found.mean(0), half, strict=True):
        print(f"{name:10} {mean:5.1f} ± {margin:.1f} %, {WAYS} new classes, {shots} photos of each, {len(found)} episodes")
