"""The same picture more than once: which copy stays, which labels clash, what belongs together.

Two files show the same picture when their upright pixels are equal; name, format and metadata do not matter.

Invariants: a picture is kept once; one that carries two labels is not kept at all; the groups that are returned join
everything that shares a picture or a user's group, so that splitting by them leaks nothing.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from edgeline.pipeline.data.labels import some
from edgeline.pipeline.data.samples import Split
from edgeline.pipeline.data.validation import GoodImage
from edgeline.serve.errors import DataError

HELD_OUT_FIRST: dict[Split | None, int] = {"test": 0, "val": 1, "train": 2, None: 3}


@dataclass(frozen=True)
class Resolved:
    """What is left of the images, and what was taken out."""

    kept: tuple[GoodImage, ...]
    """Sorted by name, each picture once."""
    duplicates: tuple[tuple[GoodImage, GoodImage], ...]
    """A copy that was taken out, and the one that stays."""
    conflicts: tuple[tuple[GoodImage, GoodImage], ...]
    """A copy that was taken out, and one with another label, which was taken out too."""
    groups: dict[str, str]
    """By pixels."""

    @property
    def leaked(self) -> tuple[tuple[GoodImage, GoodImage], ...]:
        """The duplicates whose other copy is in another split."""
        return tuple((copy, kept) for copy, kept in self.duplicates if copy.split != kept.split)

    def group(self, image: GoodImage) -> str:
        """The group of a kept image."""
        return self.groups[image.picture.pixels]


def resolve(images: Iterable[GoodImage], *, on_leakage: str) -> Resolved:
    """Keep each picture once.

    Of the copies of a picture the one held out furthest stays (test, then val, then train), the first by name among them.

    Args:
        images: all good images.
        on_leakage: `drop` or `stop`, see `PrepareConfig.on_leakage`.

    Raises:
        DataError: given splits share a picture and `on_leakage` is `stop`, or they share a group.
    """
    copies: dict[str, list[GoodImage]] = defaultdict(list)
    for image in sorted(images, key=lambda image: (HELD_OUT_FIRST[image.split], image.name)):
        copies[image.picture.pixels].append(image)
    kept, duplicates, conflicts = [], [], []
    for cluster in copies.values():
        if len({image.file.label for image in cluster}) > 1:
            conflicts += [(image, _other(image, cluster)) for image in cluster]
        else:
            kept.append(cluster[0])
            duplicates += [(image, cluster[0]) for image in cluster[1:]]
    groups = _groups(copies)
    resolved = Resolved(_sorted(kept), _sorted_pairs(duplicates), _sorted_pairs(conflicts), groups)
    if on_leakage == "stop":
        _check_pictures(resolved)
    _check_groups(resolved)
    return resolved


def _other(image: GoodImage, cluster: list[GoodImage]) -> GoodImage:
    return next(other for other in cluster if other.file.label != image.file.label)


def _sorted(images: list[GoodImage]) -> tuple[GoodImage, ...]:
    return tuple(sorted(images, key=lambda image: image.name))


def _sorted_pairs(pairs: list[tuple[GoodImage, GoodImage]]) -> tuple[tuple[GoodImage, GoodImage], ...]:
    return tuple(sorted(pairs, key=lambda pair: (pair[0].name, pair[1].name)))


def _groups(copies: dict[str, list[GoodImage]]) -> dict[str, str]:
    """Join the user's groups that share a picture, and name each picture's group.

    A group has the first of its users' names, or the digest of its only picture, so that more data leaves most names alone.
    """
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    users = {pixels: sorted({image.file.group for image in cluster} - {""}) for pixels, cluster in copies.items()}
    for names in users.values():
        for name in names[1:]:
            first, second = sorted((find(names[0]), find(name)))
            parent[second] = first
    return {pixels: find(names[0]) if names else pixels for pixels, names in users.items()}


def _check_pictures(resolved: Resolved) -> None:
    if leaked := [f"{copy.name} ({copy.split}) = {kept.name} ({kept.split})" for copy, kept in resolved.leaked]:
        raise DataError(
            f"the given splits share {len(leaked):,} pictures: {some(leaked)}; take them out of one split, "
            "or set prepare.on_leakage to drop",
            code="split_leakage",
        )


def _check_groups(resolved: Resolved) -> None:
    members: dict[str, dict[Split | None, GoodImage]] = defaultdict(dict)
    for image in resolved.kept:
        members[resolved.group(image)].setdefault(image.split, image)
    torn = [
        f"{group} ({', '.join(f'{image.name} in {split}' for split, image in by_split.items())})"
        for group, by_split in sorted(members.items())
        if len(by_split) > 1
    ]
    if torn:
        raise DataError(
            f"groups that are in more than one of the given splits: {some(torn)}; give all of a group one split "
            "(groups that share a picture count as one)",
            code="group_leakage",
        )
