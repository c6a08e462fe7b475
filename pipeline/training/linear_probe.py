"""Strategy `head`: the backbone is frozen, so its features are computed once and only a linear layer is trained on them.

Shapes: N images, D features, K classes.
"""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.config import TrainConfig
from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.devices import one_thread
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.training.augment import augment
from edgeline.pipeline.training.features import compute_features
from edgeline.pipeline.training.history import Fit, check_finite
from edgeline.serve.preprocess import PreprocessSpec

EPOCHS = 200
LEARNING_RATE = 5e-4
REFIT_EPOCHS = 40
"""At least: the best epoch of a few dozen validation images may be the fourth by chance, and a frozen backbone's head does
not lose by more (ADR 0005)."""


def fit(
    network: Network,
    spec: PreprocessSpec,
    prepared: Prepared,
    config: TrainConfig,
    weights_K: Tensor,
    *,
    seed: int,
    folder: Path,
    cache: ContentCache,
    device: torch.device,
) -> Fit:
    """Train a network's head in place on cached features.

    The features are centered, and scaled by one number so that the learning rate means the same for every backbone; both
    are folded into the layer at the end.

    Raises:
        DataError, TrainingError: see `pipeline.training.train.train`.
    """
    train, val = prepared.of("train"), prepared.of("val")
    compute = partial(compute_features, network, spec=spec, cache=cache, device=device)
    tables, val_tables = [compute(train, out=folder / "train.npy")], [compute(val, out=folder / "val.npy")]
    for view in range(1, config.views + 1):
        draw = partial(compute, view=f"{config.augment}-{view}", augment=partial(augment, kind=config.augment, view=view))
        tables.append(draw(train, out=folder / f"train-{view}.npy"))
        if config.refit:
            val_tables.append(draw(val, out=folder / f"val-{view}.npy"))
    targets_N = torch.tensor([s.index for s in train]).repeat(len(tables))
    val_targets_N = torch.tensor([s.index for s in val])

    mean_D, scale = _moments(tables[0])
    features, val_features = FeatureRows(tables, mean_D, scale), FeatureRows(val_tables[:1], mean_D, scale)
    head = copy.deepcopy(network.head)
    with one_thread():
        course = fit_linear(head, features, targets_N, val_features, val_targets_N, config, weights_K, seed)
        if config.refit:
            head.load_state_dict(network.head.state_dict())
            epochs = min(max(course.best_epoch, REFIT_EPOCHS), config.epochs or EPOCHS)
            everything = FeatureRows([*tables, *val_tables], mean_D, scale)
            targets_N = torch.cat([targets_N, val_targets_N.repeat(len(val_tables))])
            refit(head, everything, targets_N, config, weights_K, seed, epochs=epochs)
    network.head.load_state_dict(head.state_dict())
    linear = network.classifier
    with torch.no_grad():
        linear.weight.div_(scale)
        linear.bias.sub_(linear.weight @ mean_D)
    for path in folder.glob("*.npy"):
        path.unlink()  # the cache has them
    return course


class FeatureRows:
    """Rows of feature tables as tensors, centered and scaled, read as they are asked for."""

    def __init__(self, tables: list[np.ndarray], mean_D: Tensor, scale: float) -> None:
        self.tables, self.mean_D, self.scale = tables, mean_D, scale
        self.starts = np.cumsum([0, *(len(table) for table in tables)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, indices_N: Tensor) -> Tensor:
        indices = indices_N.numpy()
        rows_ND = np.empty((len(indices), self.tables[0].shape[1]), np.float32)
        for table, start in zip(self.tables, self.starts, strict=False):
            here_N = (indices >= start) & (indices < start + len(table))
            rows_ND[here_N] = table[indices[here_N] - start]
        return (torch.from_numpy(rows_ND) - self.mean_D) / self.scale


def fit_linear(
    head: nn.Sequential,
    features: FeatureRows,
    targets_N: Tensor,
    val_features: FeatureRows,
    val_targets_N: Tensor,
    config: TrainConfig,
    weights_K: Tensor,
    seed: int,
) -> Fit:
    """Train dropout + linear on features with early stopping; the head ends with the weights best on validation.

    Raises:
        TrainingError: the loss is not finite.
    """
    torch.manual_seed(seed)
    epochs = config.epochs or EPOCHS
    optimizer = _optimizer(head, config)
    val_ND = val_features[torch.arange(len(val_features))]
    course, best = Fit(), {}
    for epoch in track(range(1, epochs + 1), "training the head", epochs):
        train_loss = _epoch(head, optimizer, features, targets_N, config, weights_K, epoch)
        head.eval()
        with torch.inference_mode():
            logits_NK = head(val_ND)
        val_loss = functional.cross_entropy(logits_NK, val_targets_N, weights_K).item()
        accuracy = (logits_NK.argmax(1) == val_targets_N).float().mean().item()
        if course.add(train_loss, val_loss, accuracy):
            best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
            course.val_logits_NK = logits_NK.numpy()
        if course.should_stop(config.patience):
            break
    head.load_state_dict(best)
    return course


def refit(
    head: nn.Sequential,
    features: FeatureRows,
    targets_N: Tensor,
    config: TrainConfig,
    weights_K: Tensor,
    seed: int,
    *,
    epochs: int,
) -> None:
    """Train a fresh head on train and validation together, for as many epochs as validation found best."""
    torch.manual_seed(seed)
    optimizer = _optimizer(head, config)
    for epoch in range(1, epochs + 1):
        _epoch(head, optimizer, features, targets_N, config, weights_K, epoch)
    head.eval()


def _optimizer(head: nn.Sequential, config: TrainConfig) -> torch.optim.Optimizer:
    rate = config.learning_rate or LEARNING_RATE
    return torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=config.weight_decay, fused=True)


def _epoch(
    head: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    features: FeatureRows,
    targets_N: Tensor,
    config: TrainConfig,
    weights_K: Tensor,
    epoch: int,
) -> float:
    """Go once through the features in a drawn order and return the mean loss."""
    head.train()
    total = 0.0
    for indices_N in torch.split(torch.randperm(len(features)), config.batch_size):
        logits_NK = head(features[indices_N])
        loss = functional.cross_entropy(logits_NK, targets_N[indices_N], weights_K, label_smoothing=config.label_smoothing)
        check_finite(loss.item(), epoch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * len(indices_N)
    return total / len(features)


def _moments(table_ND: np.ndarray) -> tuple[Tensor, float]:
    """Mean of each feature, and the root mean square of what is left, read in blocks."""
    mean_D = np.mean(table_ND, axis=0, dtype=np.float64)
    square = np.mean([np.mean((block - mean_D) ** 2) for block in np.array_split(table_ND, max(1, len(table_ND) // 4096))])
    return torch.from_numpy(mean_D).float(), max(float(np.sqrt(square)), 1e-6)
