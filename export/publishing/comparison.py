"""Compare two published versions on the same images: accuracy with paired intervals, and the confusions of some classes.

Both are run as a device runs them, from image bytes through the shipped files. The older version may lack some of the classes.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgeline.export.promotion.challenge import predict
from edgeline.export.records import Record
from edgeline.pipeline.data.samples import Prepared, Sample
from edgeline.pipeline.evaluation.metrics import paired_drop, wilson_interval
from edgeline.serve.classifier import Classifier


class Interval(Record):
    """An accuracy, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float


class Compared(Record):
    """Two versions on the same images of some classes that both know."""

    images: int
    before: float
    after: float
    lost: int
    """Images that only the version before classifies correctly."""
    gained: int
    """Images that only the new version classifies correctly."""
    gain: Interval
    """After minus before, paired."""


class ClassAccuracy(Record):
    """One class in the new version."""

    label: str
    images: int
    accuracy: Interval | None
    """None without test images."""
    before: Compared | None
    """Against the version before; None if that does not know the class, or there are no test images."""
    predicted_as: dict[str, int]
    """What its images are taken for by mistake."""
    mistaken_for_it: dict[str, int]
    """True classes of the other images that are taken for it."""


class Comparison(Record):
    """A new version and the one before, on test images that neither has learned from."""

    before: int
    after: int
    """Numbers of the versions."""
    other_classes: Compared | None
    """All classes that were not taught; None without test images."""
    taught: tuple[ClassAccuracy, ...]


def unseen(before: Prepared, after: Prepared) -> list[Sample]:
    """The newer data's test images that no training or validation image of the older data equals or belongs with."""
    learned = [sample for sample in before.samples if sample.split != "test"]
    known = {sample.pixels for sample in learned} | {sample.group for sample in learned if sample.group}
    return [sample for sample in after.of("test") if sample.pixels not in known and sample.group not in known]


def compare_versions(before: Path, after: Path, samples: Sequence[Sample], taught: Sequence[str]) -> Comparison:
    """Run two versions on images and compare them.

    Args:
        before: folder of the older artifact.
        after: folder of the newer one, which has every class.
        samples: that neither has learned from.
        taught: classes that are listed one by one; the others are pooled.
    """
    models = [Classifier.open(folder) for folder in (before, after)]
    old, new = (predict(model, samples) for model in models)
    known = set(models[0].manifest.labels)
    truth = [sample.label for sample in samples]
    others = [i for i, label in enumerate(truth) if label not in taught]
    return Comparison(
        before=models[0].manifest.version,
        after=models[1].manifest.version,
        other_classes=_compare(others, truth, old, new),
        taught=tuple(_of_class(label, truth, old if label in known else None, new) for label in taught),
    )


def _compare(rows: Sequence[int], truth: Sequence[str], old: Sequence[str], new: Sequence[str]) -> Compared | None:
    if not rows:
        return None
    right = [(old[i] == truth[i], new[i] == truth[i]) for i in rows]
    lost, gained = right.count((True, False)), right.count((False, True))
    _, low, high = paired_drop(lost, gained, len(rows))
    return Compared(
        images=len(rows),
        before=sum(was for was, _ in right) / len(rows),
        after=sum(now for _, now in right) / len(rows),
        lost=lost,
        gained=gained,
        gain=Interval(value=(gained - lost) / len(rows), low=-high, high=-low),
    )


def _of_class(label: str, truth: Sequence[str], old: Sequence[str] | None, new: Sequence[str]) -> ClassAccuracy:
    rows = [i for i, true in enumerate(truth) if true == label]
    correct = sum(new[i] == label for i in rows)
    low, high = wilson_interval(correct, len(rows)) if rows else (0.0, 1.0)
    return ClassAccuracy(
        label=label,
        images=len(rows),
        accuracy=Interval(value=correct / len(rows), low=low, high=high) if rows else None,
        before=None if old is None else _compare(rows, truth, old, new),
        predicted_as=dict(Counter(new[i] for i in rows if new[i] != label).most_common()),
        mistaken_for_it=dict(Counter(truth[i] for i in range(len(truth)) if new[i] == label != truth[i]).most_common()),
    )
