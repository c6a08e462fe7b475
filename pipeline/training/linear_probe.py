"""Strategy `head`: the backbone stays frozen and only a linear layer is trained, on features that are computed once.

Shapes: N images, D features, K classes.
"""

import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.config import TrainConfig
from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.models.devices import one_thread
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.training.augment import augment
from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.features import FeatureExtractor
from edgeline.pipeline.training.history import TrainingHistory, check_finite

EPOCHS = 200
LEARNING_RATE = 5e-4
MIN_REFIT_EPOCHS = 40
"""On a few dozen validation images the best epoch may be the fourth by chance, and a linear layer on frozen features does
not get worse with more epochs (ADR 0005)."""


def fit(context: TrainingContext) -> TrainingResult:
    """Train a network's head in place on cached features.

    The features are centered, and scaled by one number so that a learning rate means the same for every backbone. Both
    are folded into the layer at the end.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: the loss is not finite, or a batch does not fit into memory.
    """
    network, config = context.network, context.config
    train, val = context.prepared.of("train"), context.prepared.of("val")
    train_tables = _tables(context, "train", train, config.views)
    val_tables = _tables(context, "val", val, config.views if config.refit else 0)
    mean_D, scale = _moments(train_tables[0])
    train_set = LabeledFeatures(FeatureRows(train_tables, mean_D, scale), _targets(train).repeat(len(train_tables)))
    val_set = LabeledFeatures(FeatureRows(val_tables[:1], mean_D, scale), _targets(val))

    trainer = HeadTrainer(config, context.class_weights_K, context.seed)
    head = copy.deepcopy(network.head)
    with one_thread():
        result = trainer.fit(head, train_set, val_set)
        if config.refit:
            head.load_state_dict(network.head.state_dict())
            epochs = min(max(result.history.best_epoch, MIN_REFIT_EPOCHS), config.epochs or EPOCHS)
            targets_N = torch.cat([train_set.targets_N, _targets(val).repeat(len(val_tables))])
            trainer.refit(head, LabeledFeatures(FeatureRows(train_tables + val_tables, mean_D, scale), targets_N), epochs)
    network.head.load_state_dict(head.state_dict())
    linear = network.classifier
    with torch.no_grad():
        linear.weight.div_(scale)
        linear.bias.sub_(linear.weight @ mean_D)
    for path in context.folder.glob("*.npy"):
        path.unlink()  # the cache has them
    return result


class FeatureRows:
    """Rows of feature tables as tensors, centered and scaled. They are read from the tables on access."""

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


@dataclass(frozen=True, slots=True)
class LabeledFeatures:
    """Features and the class index of each row."""

    features: FeatureRows
    targets_N: Tensor


@dataclass(frozen=True, slots=True)
class HeadTrainer:
    """Trains dropout + linear layer on features."""

    config: TrainConfig
    class_weights_K: Tensor
    seed: int

    def fit(self, head: nn.Sequential, train: LabeledFeatures, val: LabeledFeatures) -> TrainingResult:
        """Train with early stopping. The head ends with the weights that were best on validation.

        Raises:
            TrainingError: the loss is not finite.
        """
        torch.manual_seed(self.seed)
        epochs = self.config.epochs or EPOCHS
        optimizer = self._optimizer(head)
        val_ND = val.features[torch.arange(len(val.features))]
        history, best, best_logits_NK = TrainingHistory(), {}, torch.empty(0, 0)
        for epoch in track(range(1, epochs + 1), "training the head", epochs):
            train_loss = self._epoch(head, optimizer, train, epoch)
            head.eval()
            with torch.inference_mode():
                logits_NK = head(val_ND)
            val_loss = functional.cross_entropy(logits_NK, val.targets_N, self.class_weights_K).item()
            accuracy = (logits_NK.argmax(1) == val.targets_N).float().mean().item()
            if history.add(train_loss, val_loss, accuracy):
                best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
                best_logits_NK = logits_NK
            if history.should_stop(self.config.patience):
                break
        head.load_state_dict(best)
        return TrainingResult(history=history, val_logits_NK=best_logits_NK.numpy())

    def refit(self, head: nn.Sequential, everything: LabeledFeatures, epochs: int) -> None:
        """Train a new head on train and validation together, for a number of epochs that validation has determined."""
        torch.manual_seed(self.seed)
        optimizer = self._optimizer(head)
        for epoch in range(1, epochs + 1):
            self._epoch(head, optimizer, everything, epoch)
        head.eval()

    def _optimizer(self, head: nn.Sequential) -> torch.optim.Optimizer:
        rate = self.config.learning_rate or LEARNING_RATE
        return torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=self.config.weight_decay, fused=True)

    def _epoch(self, head: nn.Sequential, optimizer: torch.optim.Optimizer, train: LabeledFeatures, epoch: int) -> float:
        """Train once on each row, in random order, and return the mean loss."""
        head.train()
        total, smoothing = 0.0, self.config.label_smoothing
        for indices_N in torch.split(torch.randperm(len(train.features)), self.config.batch_size):
            logits_NK, targets_N = head(train.features[indices_N]), train.targets_N[indices_N]
            loss = functional.cross_entropy(logits_NK, targets_N, self.class_weights_K, label_smoothing=smoothing)
            check_finite(loss.item(), epoch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(indices_N)
        return total / len(train.features)


def _tables(context: TrainingContext, split: str, samples: list[Sample], views: int) -> list[np.ndarray]:
    """Features of samples as they are, then of as many augmented views."""
    cache = ContentCache(context.cache / "features.sqlite")
    extractor = FeatureExtractor(context.network, context.spec, cache, context.device)
    folder, kind = context.folder, context.config.augment
    tables = [extractor.compute(samples, folder / f"{split}.npy")]
    for view in range(1, views + 1):
        draw = partial(augment, kind=kind, view=view)
        tables.append(extractor.compute(samples, folder / f"{split}-{view}.npy", view=f"{kind}-{view}", augment=draw))
    return tables


def _targets(samples: list[Sample]) -> Tensor:
    return torch.tensor([sample.index for sample in samples])


def _moments(table_ND: np.ndarray) -> tuple[Tensor, float]:
    """Mean of each feature, and the root mean square of what is left, computed in blocks."""
    mean_D = np.mean(table_ND, axis=0, dtype=np.float64)
    square = np.mean([np.mean((block - mean_D) ** 2) for block in np.array_split(table_ND, max(1, len(table_ND) // 4096))])
    return torch.from_numpy(mean_D).float(), max(float(np.sqrt(square)), 1e-6)
