"""Which folders are classes, and which are splits.

    reading = read_layout(tree, splits, "auto")

A data set in folders can be read in three ways, by the names of `prepare.layout`:
- `top`: each folder in the root is a class, with its images at any depth;
- `leaf`: each folder that directly contains images is a class, named after that folder, wherever it is;
- `splits`: the folders in the root are splits (`train/`, `val/`, `test/`), each with class folders.

`auto` chooses `splits` if the names of the folders are those of splits, otherwise `top`. Where `leaf` is as plausible, it
stops and lists the readings. With `leaf`, folders of splits in the root are still splits.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from edgeline.pipeline.names import SPLITS, LayoutName, Split
from edgeline.pipeline.sources.file_walk import Tree, printable_name
from edgeline.pipeline.sources.image_extensions import extension, is_named_like_an_image
from edgeline.pipeline.sources.labels import summarize
from edgeline.serve.errors import DataError

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of the splits in folders and CSV files, in lower case."""
SUFFIX = re.compile(r"([-_ ]?(data|dataset|folder|images?|imgs?|photos?|pictures?|set|split|\d{4}))+$")
"""What may follow the name of a split in the name of a folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a file lies: its class and split."""

    label: str
    given: Split | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A data set's folders, read as classes and splits."""

    layout: LayoutName
    places: Mapping[str, Place]
    """By the name of each file that is part of the data."""
    labels: Mapping[Split | None, frozenset[str]]
    """The classes of each split, those without a file too."""
    beside: tuple[str, ...]
    """Files next to the class folders."""

    def counts(self) -> Counter[str]:
        """Number of files of each class."""
        counts = Counter(dict.fromkeys(sorted(frozenset().union(*self.labels.values())), 0))
        counts.update(place.label for place in self.places.values())
        return counts


def split_of(name: str) -> Split | None:
    """The split that a name means: `train`, `Training`, `test_set`, `val2017`; None if it is not the name of one."""
    lower = name.lower()
    return SPLIT_NAMES.get(lower) or SPLIT_NAMES.get(SUFFIX.sub("", lower))


def find_splits(root: str, folders: Mapping[str, bool], layout: LayoutName) -> dict[str, Split]:
    """Return the split of each folder in the root that is one; nothing if the folders are classes.

    Args:
        root: for messages.
        folders: the folders in the root: whether each one contains folders.
        layout: as configured.

    Raises:
        DataError: there is no training split, or two folders mean the same split.
    """
    if layout == "top":
        return {}
    splits = {name: split for name in folders if (split := split_of(name))}
    all_are = bool(splits) and len(splits) == len(folders)
    if "train" not in splits.values():
        if layout == "splits" or (layout == "auto" and all_are):
            found = summarize(splits) if splits else f"the folders {summarize(folders) or 'none'}"
            raise DataError(f"{root} contains {found} but no train folder; add train/", code="train_missing")
        return {}
    # A single folder, or one without class folders, may also be a class with this name.
    are_classes = len(splits) == 1 or not (all_are or any(folders[name] for name in splits if splits[name] == "train"))
    if are_classes and layout != "splits":
        return {}
    for split in SPLITS:
        if len(same := [name for name in splits if splits[name] == split]) > 1:
            raise DataError(
                f"{root}: {' and '.join(same)} both mean {split}; keep one of them, or leave one out: "
                f"--set 'prepare.ignore=[\"{same[0]}/\"]'",
                code="split_ambiguous",
            )
    return splits


def read_layout(tree: Tree, splits: Mapping[str, Split], layout: LayoutName) -> Reading:
    """Decide which folders are classes.

    Args:
        tree: the files of the data set.
        splits: as `find_splits` returns it.
        layout: as configured; `auto` stops where two readings are plausible.

    Raises:
        DataError: there are no class folders, or two readings are plausible and none was chosen.
    """
    _check_readable(tree, splits)
    _check_class_folders(tree, splits)
    if layout == "leaf":
        return _read_leaf(tree, splits)
    reading = _read_top(tree, splits)
    if layout == "auto" and _is_nested(tree, splits):
        leaf = _read_leaf(tree, splits)
        if min(len(reading.counts()), len(leaf.counts())) > 1 and leaf.counts().keys() != reading.counts().keys():
            raise DataError(_ambiguous(tree, reading, leaf), code="layout_ambiguous")
    return reading


def _read_top(tree: Tree, splits: Mapping[str, Split]) -> Reading:
    places, beside = {}, []
    for name in tree.files:
        given, parts = _below_split(name, splits)
        if len(parts) > 1:
            places[name] = Place(label=parts[0], given=given)
        else:
            beside.append(name)
    labels = defaultdict(set)
    for folder in tree.folders:
        given, parts = _below_split(folder, splits)
        if len(parts) == 1 and parts[0]:
            labels[given].add(parts[0])
    frozen = {split: frozenset(names) for split, names in labels.items()}
    return Reading(layout="splits" if splits else "top", places=places, labels=frozen, beside=tuple(beside))


def _read_leaf(tree: Tree, splits: Mapping[str, Split]) -> Reading:
    places, beside = {}, []
    labels = defaultdict(set)
    # A folder whose files all lie deeper is not a class; an empty one is a class without images.
    parents = {str(PurePosixPath(folder).parent) for folder in tree.folders}
    for folder in tree.folders:
        given, parts = _below_split(folder, splits)
        if parts[0] and folder not in parents:
            labels[given].add(parts[-1])
    for name in tree.files:
        given, parts = _below_split(name, splits)
        if len(parts) > 1 and _may_be_image(name):
            places[name] = Place(label=parts[-2], given=given)
            labels[given].add(parts[-2])
        else:
            beside.append(name)
    frozen = {split: frozenset(names) for split, names in labels.items()}
    return Reading(layout="leaf", places=places, labels=frozen, beside=tuple(beside))


def _below_split(name: str, splits: Mapping[str, Split]) -> tuple[Split | None, list[str]]:
    """Return the split of a path, and the parts of the path below that split's folder; [""] for the folder itself."""
    if not splits:
        return None, name.split("/")
    top, _, rest = name.partition("/")
    return splits.get(top), rest.split("/") if top in splits else [""]


def _may_be_image(name: str) -> bool:
    return is_named_like_an_image(name) or not extension(name)


def _is_nested(tree: Tree, splits: Mapping[str, Split]) -> bool:
    """Whether the folders below the class folders look like classes: several classes have the same, or one has only these."""
    inner: dict[str, set[str]] = defaultdict(set)
    direct: set[str] = set()
    for name in tree.files:
        _, parts = _below_split(name, splits)
        if not _may_be_image(name):
            continue
        if len(parts) == 2:
            direct.add(parts[0])
        elif len(parts) > 2:
            inner[parts[0]].add(parts[1])
    owners = Counter(sub for subs in inner.values() for sub in subs)
    return max(owners.values(), default=0) > 1 or any(len(subs) > 1 for label, subs in inner.items() if label not in direct)


def _ambiguous(tree: Tree, top: Reading, leaf: Reading) -> str:
    where = tree.root
    hint = ""
    if not any(top.labels) and all(split_of(label) for label in leaf.counts()):
        hint = "; for splits inside each class, move them up: train/CLASS/, test/CLASS/"
    return (
        f"{where} can be read in two ways: {_describe(top)}, or {_describe(leaf)}; "
        f"choose with --layout {top.layout} or --layout leaf, or name another folder{hint}"
    )


def _describe(reading: Reading) -> str:
    counts = reading.counts()
    names = summarize((f"{label!r} ({count:,} files)" for label, count in counts.items()), 4)
    return f"{reading.layout}: {len(counts):,} classes {names}"


def _check_class_folders(tree: Tree, splits: Mapping[str, Split]) -> None:
    for folder in splits or [""]:
        prefix = f"{folder}/" if folder else ""
        if not any(name.startswith(prefix) and name != folder for name in tree.folders):
            found = [name for name in tree.files if name.startswith(prefix)]
            raise DataError(_no_class_folders(tree, folder, found), code="no_class_folders")


def _check_readable(tree: Tree, splits: Mapping[str, Split]) -> None:
    """No class or split may be missing because its folder, or a link to it, cannot be read."""
    unread = [
        f"{printable_name(name)}: {problem}"
        for name, problem in tree.problems
        if len(_below_split(name, splits)[1]) == 1 and os.path.isdir(os.path.join(tree.root, name))
    ]
    if unread:
        raise DataError(f"folders in {tree.root} that cannot be read: {summarize(unread, 3)}", code="folder_unread")


def _no_class_folders(tree: Tree, folder: str, found: Sequence[str]) -> str:
    path = os.path.join(tree.root, folder) if folder else tree.root
    message = (
        f"{path} contains {f'{len(found):,} files and no folder' if found else 'nothing'}; expected one folder for each class, "
        "with the class's name and images"
    )
    if tables := [name for name in found if extension(name) == ".csv"]:
        message += f"; if {summarize(tables, 1)} lists the images, use --data {os.path.join(tree.root, tables[0])}"
    elif folder:
        message += f"; images without labels are left out with --set 'prepare.ignore=[\"{folder}/\"]'"
    elif hidden := hidden_with_images(tree):
        message += f"; hidden folders are not read: {summarize(hidden)} (see prepare.include_hidden)"
    return message


def hidden_with_images(tree: Tree) -> list[str]:
    """Hidden files and folders with images, for messages: name and number of images."""
    skipped: Iterable[tuple[str, int]] = ((skip.name, skip.images) for skip in tree.skipped if skip.reason == "hidden")
    return [f"{name} ({images:,} images)" if name.endswith("/") else name for name, images in skipped if images]
