"""Check class names before any image is opened. All problems of a kind are reported at once."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

from edgeline.pipeline.names import SPLITS, Split
from edgeline.serve.artifact.labels import check_labels
from edgeline.serve.errors import DataError


def summarize(items: Iterable[str], limit: int = 5) -> str:
    """List the first few items and the number of the others, for a message."""
    listed = list(items)
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def check_names(labels: Iterable[str]) -> None:
    """Check that every class name is one line of text, and that no two names collide.

    Raises:
        DataError: names the classes that are not.
    """
    names = sorted(labels)
    _check_collisions(names)
    if problems := check_labels(names):
        raise DataError(f"{summarize(problems)}; rename these classes", code="label_invalid")


def check_known(by_split: Mapping[Split | None, set[str]]) -> None:
    """Check that every class of a held-out split is also in train.

    Raises:
        DataError: names the classes that are not.
    """
    train = by_split.get("train", set())
    _check_collisions(set().union(*by_split.values()))
    held_out = ((split, by_split.get(split, set())) for split in SPLITS[1:])
    if unknown := [f"{label!r} in {split}" for split, labels in held_out for label in sorted(labels - train)]:
        raise DataError(
            f"classes that are not in train: {summarize(unknown)}; train has {summarize(map(repr, sorted(train)))}: "
            "add training images of them, or remove them from the held-out split",
            code="unknown_label",
        )


def _check_collisions(labels: Iterable[str]) -> None:
    """Reject names that differ only in case or Unicode form: some file systems, and most readers, take them for the same."""
    same: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        same[unicodedata.normalize("NFC", label).casefold()].append(label)
    if colliding := [" and ".join(map(ascii, group)) for group in same.values() if len(group) > 1]:
        raise DataError(
            f"class names that differ only in case or in Unicode form: {summarize(colliding)}; merge them, or rename one",
            code="label_collision",
        )
