"""Decide whether a new version may replace the one in use, by a test on images that neither has learned from.

    decision = decide(answers, PromoteConfig())

Each variant that both versions ship answers the same images. The new version passes if, with the stated confidence, it loses
at most `margin` of accuracy and at most `margin` of the mean recall of the classes (non-inferiority), and if no class is worse
by more than chance explains (McNemar's exact test, one-sided, with Holm's correction for the number of classes). If the data
cannot show either way, that is an answer of its own, with the number of images that would.

All of these must hold at once, so the probability to promote a version that is worse by `margin` in one of them is at most that
of one test: 1 - confidence. `benchmarks/false_promotions.py` measures it.

Shapes: N images, K classes.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from edgeline.export.records import Record
from edgeline.pipeline.config import PromoteConfig
from edgeline.pipeline.evaluation.metrics import paired_drop

POWER = 0.8
"""Probability with which the stated number of images would suffice for two versions that are equally good."""
CLASS_ERROR = 0.05
"""Probability that any class is found to be worse by chance, all classes of a variant together."""
Verdict = Literal["better", "not worse", "worse", "too few images"]
PROMOTED: tuple[Verdict, ...] = ("better", "not worse")


@dataclass(frozen=True, kw_only=True)
class PairedAnswers:
    """What two versions answered to the same images."""

    truth: Sequence[str]
    """Labels of the N images."""
    before: Sequence[str]
    """Predicted by the version in use."""
    after: Sequence[str]
    """Predicted by the new one."""
    groups: Sequence[str]
    """Of each image; images of one group are not independent."""


class Bound(Record):
    """A gain of the new version, as a share, and the interval that the decision uses."""

    gain: float
    low: float
    """One-sided lower bound at the configured confidence."""
    high: float


class ClassChange(Record):
    """How a class fares in the new version."""

    label: str
    images: int
    lost: int
    gained: int
    p_value: float
    """That chance alone loses so many, with Holm's correction."""


class VariantDecision(Record):
    """The test of one variant."""

    variant: str
    images: int
    before: float
    after: float
    lost: int
    gained: int
    accuracy: Bound
    macro_recall: Bound
    classes: tuple[ClassChange, ...]
    """All classes, the worst first."""
    verdict: Verdict
    more_images: int
    """How many more would probably tell, if the two are equally good; 0 if these do."""


class Decision(Record):
    """Whether the new version is promoted."""

    verdict: Verdict
    promoted: bool
    reason: str
    """One sentence with the figures."""
    margin: float
    confidence: float
    variants: tuple[VariantDecision, ...]
    new_classes: tuple[str, ...] = ()
    """Only in the new version; they do not take part in the comparison."""
    lost_classes: tuple[str, ...] = ()


def decide(answers: Mapping[str, PairedAnswers], config: PromoteConfig) -> Decision:
    """Test every variant; the new version is promoted if all pass.

    Args:
        answers: by the name of a variant that both versions have; at least one.
        config: margin and confidence.
    """
    variants = tuple(_test(name, each, config) for name, each in answers.items())
    verdicts = [each.verdict for each in variants]
    order: tuple[Verdict, ...] = ("worse", "too few images", "not worse", "better")
    verdict = next(each for each in order if each in verdicts)
    decisive = next(each for each in variants if each.verdict == verdict)
    return Decision(
        verdict=verdict,
        promoted=verdict in PROMOTED,
        reason=describe(decisive, config),
        margin=config.margin,
        confidence=config.confidence,
        variants=variants,
    )


def describe(found: VariantDecision, config: PromoteConfig) -> str:
    """A test as one sentence."""
    where = f"{found.variant}, {found.images:,} images"
    accuracy = f"accuracy {found.before:.1%} -> {found.after:.1%} ({_points(found.accuracy)})"
    if found.verdict == "too few images":
        needed = f"about {found.more_images:,} more test images would tell"
        return (
            f"too few images to tell whether it loses more than {100 * config.margin:g} points: {accuracy}, {where}; {needed}"
        )
    if found.verdict == "worse":
        worse = [each for each in found.classes if each.p_value < CLASS_ERROR]
        if worse and found.accuracy.high >= 0 and found.macro_recall.high >= 0:
            listed = ", ".join(
                f"{each.label} ({each.lost} lost, {each.gained} gained of {each.images}, p = {each.p_value:.2g})"
                for each in worse[:3]
            )
            return f"worse at {listed}; {accuracy}, {where}"
        return f"worse: {accuracy}, mean recall {_points(found.macro_recall)}, {where}"
    return f"{found.verdict}: {accuracy}, mean recall {_points(found.macro_recall)}, {where}"


def _points(bound: Bound) -> str:
    return f"{100 * bound.gain:+.1f} points, {100 * bound.low:+.1f} to {100 * bound.high:+.1f}"


def _test(name: str, answers: PairedAnswers, config: PromoteConfig) -> VariantDecision:
    truth_N = np.array(answers.truth, dtype=object)
    right_N2 = np.stack([np.array(each, dtype=object) == truth_N for each in (answers.before, answers.after)], axis=1)
    right_N2 = right_N2.astype(bool).reshape(-1, 2)
    lost_N, gained_N = right_N2[:, 0] & ~right_N2[:, 1], right_N2[:, 1] & ~right_N2[:, 0]
    images, lost, gained = len(truth_N), int(lost_N.sum()), int(gained_N.sum())
    z = NormalDist().inv_cdf(config.confidence)
    labels = sorted(set(answers.truth))
    counts_K3 = np.array(
        [[(truth_N == each).sum(), lost_N[truth_N == each].sum(), gained_N[truth_N == each].sum()] for each in labels]
    )
    spread = math.sqrt(_design_effect(gained_N.astype(int) - lost_N, answers.groups))
    accuracy, accuracy_error = _accuracy_bound(lost, gained, images, z, spread)
    macro, macro_error = _macro_bound(counts_K3.reshape(-1, 3), z, spread)
    classes = _class_changes(labels, counts_K3.reshape(-1, 3), _votes(answers, gained_N.astype(int) - lost_N))
    changed = spread**2 * (lost + gained + 1) / (images + 2)
    needed = _needed(changed * max(1.0, (macro_error / accuracy_error) ** 2), z, config.margin)
    if accuracy.high < 0 or macro.high < 0 or any(each.p_value < CLASS_ERROR for each in classes):
        verdict: Verdict = "worse"
    elif images and accuracy.low >= -config.margin and macro.low >= -config.margin:
        verdict = "better" if accuracy.low > 0 else "not worse"
    else:
        verdict = "too few images"
    before, after = right_N2.mean(0) if images else (0.0, 0.0)
    return VariantDecision(
        variant=name,
        images=images,
        before=float(before),
        after=float(after),
        lost=lost,
        gained=gained,
        accuracy=accuracy,
        macro_recall=macro,
        classes=classes,
        verdict=verdict,
        more_images=max(1, needed - images) if verdict == "too few images" else 0,
    )


def _accuracy_bound(lost: int, gained: int, images: int, z: float, spread: float) -> tuple[Bound, float]:
    """The gain in accuracy with its bounds (Bonett and Price 2012), and its standard error; wider for dependent images."""
    _, low_drop, high_drop = paired_drop(lost, gained, images, z) if images else (0.0, -1.0, 1.0)
    middle, half = (low_drop + high_drop) / 2, spread * (high_drop - low_drop) / 2
    gain = (gained - lost) / images if images else 0.0
    return Bound(gain=gain, low=max(-1.0, -middle - half), high=min(1.0, -middle + half)), half / z


def _macro_bound(counts_K3: np.ndarray, z: float, spread: float) -> tuple[Bound, float]:
    """The gain in mean recall with its bounds, and its standard error.

    Args:
        counts_K3: of each class the images, lost ones and gained ones. The share of a class's images that change is shrunk
            towards that of all images, because classes have few.
        z: quantile of the normal distribution.
        spread: factor of the standard error for dependent images.
    """
    if not len(counts_K3):
        return Bound(gain=0.0, low=-1.0, high=1.0), 1 / z
    images_K, lost_K, gained_K = counts_K3.astype(float).T
    overall = (lost_K.sum() + gained_K.sum() + 2) / (images_K.sum() + 2)
    changed_K = (lost_K + gained_K + 2 * overall) / (images_K + 2)
    gain_K = (gained_K - lost_K) / images_K
    gain = float(gain_K.mean())
    variance = float(((changed_K - np.minimum(gain_K**2, changed_K)) / images_K).sum()) / len(counts_K3) ** 2
    half = z * spread * math.sqrt(variance)
    return Bound(gain=gain, low=max(-1.0, gain - half), high=min(1.0, gain + half)), half / z


def _design_effect(change_N: np.ndarray, groups: Sequence[str]) -> float:
    """By what factor the variance of the mean change grows because images of one group change together; at least 1."""
    if not len(change_N) or len(set(groups)) == len(groups):
        return 1.0
    centered_N = change_N - change_N.mean()
    _, group_of_N = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    alone, together = float((centered_N**2).sum()), float((np.bincount(group_of_N, weights=centered_N) ** 2).sum())
    return max(1.0, together / alone) if alone else 1.0


def _votes(answers: PairedAnswers, change_N: np.ndarray) -> dict[str, tuple[int, int]]:
    """How many groups of images each class lost and gained: images of one group are one observation."""
    net: dict[tuple[str, str], int] = defaultdict(int)
    for label, group, change in zip(answers.truth, answers.groups, change_N.tolist(), strict=True):
        net[label, group] += change
    votes = dict.fromkeys(answers.truth, (0, 0))
    for (label, _), change in net.items():
        lost, gained = votes[label]
        votes[label] = lost + (change < 0), gained + (change > 0)
    return votes


def _class_changes(
    labels: Sequence[str], counts_K3: np.ndarray, votes: Mapping[str, tuple[int, int]]
) -> tuple[ClassChange, ...]:
    """Every class with its corrected p-value, the worst first."""
    raw = [
        float(binomtest(lost, lost + gained, alternative="greater").pvalue) if lost + gained else 1.0
        for lost, gained in (votes[label] for label in labels)
    ]
    corrected, largest = dict.fromkeys(range(len(raw)), 1.0), 0.0
    for rank, position in enumerate(sorted(range(len(raw)), key=lambda at: raw[at])):
        largest = max(largest, min(1.0, (len(raw) - rank) * raw[position]))
        corrected[position] = largest
    rows = [
        ClassChange(label=label, images=int(images), lost=int(lost), gained=int(gained), p_value=corrected[position])
        for position, (label, (images, lost, gained)) in enumerate(zip(labels, counts_K3, strict=True))
    ]
    return tuple(sorted(rows, key=lambda each: (each.p_value, each.gained - each.lost, each.label)))


def _needed(changed: float, z: float, margin: float) -> int:
    """Images with which two equally good versions would pass, by `POWER`.

    Args:
        changed: share of the images that only one of the two classifies correctly.
        z: quantile of the normal distribution.
        margin: as a share.
    """
    return math.ceil(changed * ((z + NormalDist().inv_cdf(POWER)) / margin) ** 2)
