"""What a list of classes must be like, before any image is opened. All problems of a kind are told at once."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

from edgeline.pipeline.data.samples import SPLITS, Split
from edgeline.serve.artifact.labels import check_labels
from edgeline.serve.errors import DataError


def some(items: Iterable[str], limit: int = 5) -> str:
    """The first few of many things, for a message."""
    listed = list(items)
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def check_names(labels: Iterable[str]) -> None:
    """Check that every class name is one line of text, and no two are the same to a reader or a file system.

    Raises:
        DataError: naming those that are not.
    """
    names = sorted(labels)
    _check_twins(names)
    if problems := check_labels(names):
        raise DataError(f"{some(problems)}; rename these classes", code="label_invalid")


def check_known(by_split: Mapping[Split | None, set[str]]) -> None:
    """Check that every class of a held-out split is in train.

    Raises:
        DataError: naming those that are not.
    """
    train = by_split.get("train", set())
    _check_twins(set().union(*by_split.values()))
    held_out = ((split, by_split.get(split, set())) for split in SPLITS[1:])
    if unknown := [f"{label!r} in {split}" for split, labels in held_out for label in sorted(labels - train)]:
        raise DataError(
            f"classes that train does not have: {some(unknown)}; train has {some(map(repr, sorted(train)))}: "
            "add training images of them, or take them out of the held-out split",
            code="unknown_label",
        )


def _check_twins(labels: Iterable[str]) -> None:
    """Names that differ only in case or in Unicode form are one name on some file systems, and to most readers."""
    same: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        same[unicodedata.normalize("NFC", label).casefold()].append(label)
    if twins := [" and ".join(map(ascii, group)) for group in same.values() if len(group) > 1]:
        raise DataError(
            f"class names that differ only in case or in Unicode form: {some(twins)}; make them one, or rename one",
            code="label_collision",
        )
