"""How accuracy grows with the number of images: what all of them bring over half of them, and what more of one class would.

A linear classifier in closed form (ridge regression to the classes, each class with the same weight) is fitted to subsets of
the training images on the features of the frozen backbone, and measured on the test images. A fit takes 30 ms for 1,000 images,
so the whole curve takes about a second.

Shapes: N training images, T test images, D features, K classes, R repetitions.
"""

from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.linalg import cho_factor, cho_solve

from edgeline.pipeline.evaluation.report import Record
from edgeline.pipeline.models.devices import one_blas_thread

PENALTY = 0.3
"""Ridge penalty, times the mean squared norm of the features: the best of six on two sets of photos."""
SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
MAX_IMAGES = 20_000
"""Larger sets are sampled: a fit takes a time proportional to the images."""
WORK = 10_000
"""Images of all repetitions together, for the largest share: small sets, whose subsets differ most, are repeated most."""
REPETITIONS = (2, 20)
MIN_PER_CLASS = 2
CANDIDATES = 5
"""Classes of which more images are considered: those that are recognized worst."""
MORE = 50
MAX_HALVED = 4
"""Repetitions with half of a class."""
RESAMPLES = 2000
BLOCK = 100
"""Resamples that are computed at once."""
CONFIDENCE = 0.95


class Point(Record):
    """Accuracy with a part of the training images."""

    images: int
    accuracy: float
    low: float = Field(description="Lower end of the 95 % bootstrap interval over test images and repetitions.")
    high: float


class ClassGain(Record):
    """What more images of one class would probably bring."""

    label: str
    more: int = Field(description="Images that are added to the class.")
    gain: float = Field(description="Expected change of accuracy over all classes.")
    low: float = Field(description="Lower end of the interval, 95 % for all candidates together (Bonferroni).")
    high: float


class LearningCurve(Record):
    """Accuracy by number of training images, and what more images of single classes would bring."""

    points: list[Point]
    classes: list[ClassGain]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Features with the class of each image."""

    features_ND: np.ndarray
    targets_N: np.ndarray
    groups_N: np.ndarray
    """Any values: equal for images of one group, which are in a subset together."""


@one_blas_thread()
def learning_curve(train: Table, test: Table, labels: list[str], *, seed: int) -> LearningCurve | None:
    """Measure the curve; None if there are no test images, or half of the images would leave a class with fewer than two.

    Args:
        train: all images that the model may learn from.
        test: the images that accuracy is measured on.
        labels: class names in index order.
        seed: of the subsets.
    """
    chance = np.random.default_rng(seed)
    share_used = min(1.0, MAX_IMAGES / len(train.targets_N))
    counts_K = np.bincount(train.targets_N, minlength=len(labels)) * share_used
    shares = [share for share in SHARES if (counts_K * share >= MIN_PER_CLASS).all()]
    if len(shares) < 2 or not len(test.targets_N):
        return None
    repetitions = int(np.clip(WORK / counts_K.sum(), *REPETITIONS))
    orders = [_by_class(train, chance) for _ in range(repetitions)]
    rows: dict[float, np.ndarray] = {}
    for share in shares:
        # Without sampling, the whole set is the same in every repetition.
        different = orders if share * share_used < 1 else orders[:1]
        rows[share] = np.stack(
            [_correct(train, [own[: _part(own, share * share_used)] for own in order], test) for order in different]
        )
    points = [
        Point(images=round(share * counts_K.sum()), **_interval(rows_RT, test.groups_N, chance, CONFIDENCE))
        for share, rows_RT in rows.items()
    ]
    gains = _class_gains(train, test, orders[:MAX_HALVED], rows[1.0][0], chance) if share_used == 1 else {}
    return LearningCurve(
        points=points,
        classes=sorted(
            (ClassGain(label=labels[index], **figures) for index, figures in gains.items()), key=lambda gain: -gain.gain
        ),
    )


def _class_gains(
    train: Table, test: Table, orders: list[list[np.ndarray]], correct_T: np.ndarray, chance: np.random.Generator
) -> dict[int, dict[str, float]]:
    """What more images of the worst classes would bring, from what half of their images less costs.

    The error that a class causes is taken as inversely proportional to its images, which was the least biased of three
    assumptions on two sets of photos: halving costs D, and m more images than n bring D * m / (n + m).
    """
    counts_K = np.array([len(own) for own in orders[0]])
    support_K = np.bincount(test.targets_N, minlength=len(counts_K))
    recall_K = np.bincount(test.targets_N, weights=correct_T, minlength=len(counts_K)) / np.maximum(support_K, 1)
    worst = [index for index in np.argsort(recall_K, kind="stable")[:CANDIDATES].tolist() if support_K[index]]
    found = {}
    for index in worst:
        halved = [[own[: len(own) // 2] if number == index else own for number, own in enumerate(order)] for order in orders]
        cost_RT = correct_T - np.stack([_correct(train, subset, test) for subset in halved])
        more = int(min(MORE, counts_K[index]))
        interval = _interval(cost_RT, test.groups_N, chance, 1 - (1 - CONFIDENCE) / len(worst))
        factor = more / (counts_K[index] + more)
        found[index] = {"more": more, "gain": interval["accuracy"] * factor} | {
            name: interval[name] * factor for name in ("low", "high")
        }
    return found


def fit_and_predict(train: Table, test_TD: np.ndarray) -> np.ndarray:
    """Fit ridge regression to the classes, each class with the same weight, and return the class of each test image.

    It is solved in as many dimensions as there are images or features, whichever are fewer.
    """
    counts_K = np.bincount(train.targets_N)
    weight_N = (len(train.targets_N) / np.count_nonzero(counts_K) / counts_K[train.targets_N]).astype(np.float32)
    features_ND = np.asarray(train.features_ND, np.float32)
    classes_NK = np.eye(len(counts_K), dtype=np.float32)[train.targets_N]
    mean_D, mean_K = np.average(features_ND, 0, weight_N), np.average(classes_NK, 0, weight_N)
    root_N1 = np.sqrt(weight_N)[:, None]
    centered_ND, centered_NK = (features_ND - mean_D) * root_N1, (classes_NK - mean_K) * root_N1
    images, features = centered_ND.shape
    dual = images <= features
    gram = centered_ND @ centered_ND.T if dual else centered_ND.T @ centered_ND
    gram[np.diag_indices(len(gram))] += max(PENALTY * float(np.trace(gram)) / images, 1e-6)
    factor = cho_factor(gram, overwrite_a=True)
    weights_DK = centered_ND.T @ cho_solve(factor, centered_NK) if dual else cho_solve(factor, centered_ND.T @ centered_NK)
    return np.asarray(((test_TD - mean_D) @ weights_DK + mean_K).argmax(1))


def _correct(train: Table, subset: list[np.ndarray], test: Table) -> np.ndarray:
    """Which test images are classified correctly after learning from a subset, float (T,)."""
    chosen = np.concatenate(subset)
    part = Table(features_ND=train.features_ND[chosen], targets_N=train.targets_N[chosen], groups_N=train.groups_N[chosen])
    return np.asarray(fit_and_predict(part, test.features_ND) == test.targets_N, float)


def _by_class(train: Table, chance: np.random.Generator) -> list[np.ndarray]:
    """The images of each class in random order, those of one group next to each other."""
    _, group_N = np.unique(train.groups_N, return_inverse=True)
    rank_N = chance.permutation(group_N.max() + 1)[group_N]
    order_N = np.lexsort((chance.permutation(len(group_N)), rank_N))
    return [order_N[train.targets_N[order_N] == index] for index in range(train.targets_N.max() + 1)]


def _part(own: np.ndarray, share: float) -> int:
    return max(MIN_PER_CLASS, round(share * len(own)))


def _interval(rows_RT: np.ndarray, groups_T: np.ndarray, chance: np.random.Generator, confidence: float) -> dict[str, float]:
    """Mean of the rows, with a bootstrap interval over repetitions and groups of test images."""
    _, index_T = np.unique(groups_T, return_inverse=True)
    sizes_G = np.bincount(index_T)
    sums_RG = np.stack([np.bincount(index_T, weights=row_T) for row_T in rows_RT])
    means = []
    for _ in range(RESAMPLES // BLOCK):
        drawn_BR = chance.multinomial(len(sums_RG), np.full(len(sums_RG), 1 / len(sums_RG)), BLOCK)
        drawn_BG = chance.multinomial(len(sizes_G), np.full(len(sizes_G), 1 / len(sizes_G)), BLOCK)
        means.append(((drawn_BR @ sums_RG) * drawn_BG).sum(1) / len(sums_RG) / (drawn_BG @ sizes_G))
    low, high = np.quantile(np.concatenate(means), ((1 - confidence) / 2, (1 + confidence) / 2))
    return {"accuracy": float(rows_RT.mean()), "low": float(low), "high": float(high)}
