"""Compare two models on the same images, pair by pair.

    comparison = compare(read_answers(first, "first"), read_answers(second, "second"))

Only images that both have in their test split are compared, and none that either has learned from. The p-value is that of
McNemar's exact test. The interval is that of a bootstrap, which draws whole groups of images, because images of one group
are not independent.

Shapes: N images, G groups, R resamples.
"""

import numpy as np
from pydantic import Field
from scipy.stats import binomtest

from edgeline.pipeline.evaluation.answers import Answer, Answers
from edgeline.pipeline.evaluation.metrics import paired_drop
from edgeline.pipeline.evaluation.report import Record
from edgeline.serve.errors import DataError

RESAMPLES = 4000
BLOCK = 4_000_000
"""Random numbers that a bootstrap draws at once."""
PERCENTILES = (2.5, 97.5)


class Difference(Record):
    """How two models differ on the same images: all of them, or those of one class."""

    images: int
    first: float = Field(description="Accuracy of the first model; of one class, its recall.")
    second: float
    lost: int = Field(description="Images that only the first model classifies correctly.")
    gained: int = Field(description="Images that only the second model classifies correctly.")
    difference: float = Field(description="Accuracy of the second model minus that of the first.")
    low: float = Field(description="Lower end of the 95 % bootstrap interval of the difference.")
    high: float
    p_value: float = Field(description="Of McNemar's exact test, two-sided.")


class ClassDifference(Difference):
    """The difference on the images of one class."""

    label: str


class Change(Record):
    """An image that the two models classify differently."""

    image: str
    label: str
    first: str
    second: str


class Comparison(Record):
    """The result of a comparison."""

    first: str
    second: str
    only_one_tests: int = Field(description="Images that are left out because only one model has them in its test split.")
    learned: int = Field(description="Images that are left out because a model has learned from them or a near-duplicate.")
    relabeled: int = Field(description="Images that are left out because the two data sets give them different labels.")
    overall: Difference
    classes: list[ClassDifference]
    changes: list[Change]


def compare(first: Answers, second: Answers, *, seed: int = 0) -> Comparison:
    """Compare the answers of two models.

    Args:
        first: the model to compare with.
        second: the model in question: what it gains counts as positive.
        seed: of the bootstrap.

    Raises:
        DataError: no image can be compared.
    """
    common = sorted(first.test.keys() & second.test.keys())
    unseen = [pixels for pixels in common if pixels not in first.learned | second.learned]
    same = [pixels for pixels in unseen if first.test[pixels].label == second.test[pixels].label]
    if not same:
        raise DataError(
            f"{first.name} and {second.name} have {len(common):,} test images in common, and none that can be compared: "
            f"{len(common) - len(unseen):,} were learned from and {len(unseen) - len(same):,} have different labels; "
            "compare runs on the same data, with the same seed",
            code="nothing_to_compare",
        )
    pairs = [(first.test[pixels], second.test[pixels]) for pixels in same]
    correct_N2 = np.array([[one.predicted == one.label, two.predicted == two.label] for one, two in pairs])
    groups = _groups(pairs)
    labels_N = np.array([one.label for one, _ in pairs])
    return Comparison(
        first=first.name,
        second=second.name,
        only_one_tests=len(first.test.keys() ^ second.test.keys()),
        learned=len(common) - len(unseen),
        relabeled=len(unseen) - len(same),
        overall=Difference(**_difference(correct_N2, groups, seed)),
        classes=[
            ClassDifference(label=str(label), **_difference(correct_N2[of_N], groups[of_N], seed))
            for label in np.unique(labels_N)
            for of_N in [labels_N == label]
        ],
        changes=sorted(
            (
                Change(image=one.image, label=one.label, first=one.predicted, second=two.predicted)
                for one, two in pairs
                if one.predicted != two.predicted
            ),
            key=lambda change: change.image,
        ),
    )


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p-value of McNemar's exact test: chance alone decides which of two models is right where only one is."""
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def bootstrap_interval(change_N: np.ndarray, groups_N: np.ndarray, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean change, from resamples of whole groups.

    Args:
        change_N: -1, 0 or 1 for each image.
        groups_N: group of each image, as whole numbers.
        seed: the same seed gives the same interval.
    """
    _, index_N = np.unique(groups_N, return_inverse=True)
    sums_G, sizes_G = np.bincount(index_N, weights=change_N), np.bincount(index_N)
    chance, total = np.random.default_rng(seed), len(sizes_G)
    means: list[np.ndarray] = []
    for block_R in np.array_split(np.arange(RESAMPLES), max(1, RESAMPLES * total // BLOCK)):
        drawn_RG = chance.integers(0, total, (len(block_R), total))
        means.append(sums_G[drawn_RG].sum(1) / sizes_G[drawn_RG].sum(1))
    low, high = np.percentile(np.concatenate(means), PERCENTILES)
    return float(low), float(high)


def _difference(correct_N2: np.ndarray, groups_N: np.ndarray, seed: int) -> dict[str, float]:
    change_N = correct_N2[:, 1].astype(int) - correct_N2[:, 0]
    lost, gained, total = int((change_N < 0).sum()), int((change_N > 0).sum()), len(change_N)
    if lost + gained:
        low, high = bootstrap_interval(change_N, groups_N, seed)
    else:  # every resample is the same, which would promise too much
        _, low, high = paired_drop(lost, gained, total)
    first, second = correct_N2.mean(0)
    return {
        "images": total,
        "first": float(first),
        "second": float(second),
        "lost": lost,
        "gained": gained,
        "difference": (gained - lost) / total,
        "low": low,
        "high": high,
        "p_value": mcnemar(lost, gained),
    }


def _groups(pairs: list[tuple[Answer, Answer]]) -> np.ndarray:
    """Whole numbers that are equal for images of one group in the first model's data."""
    return np.unique([one.group for one, _ in pairs], return_inverse=True)[1]
