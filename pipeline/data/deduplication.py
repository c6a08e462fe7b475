"""Find copies of the same image: which copy is kept, which labels conflict, what must stay in one split.

Two files are copies if their upright pixels are equal. Name, format and metadata do not matter.

Invariants: of each image one copy is kept; an image with two labels is not kept at all; images that share pixels or a
user's group share a group in the result, so splitting by group does not leak.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from edgeline.pipeline.data.connected import connected
from edgeline.pipeline.data.validation import ValidImage
from edgeline.pipeline.names import Split
from edgeline.pipeline.sources.labels import summarize
from edgeline.serve.errors import DataError

PRIORITY: dict[Split | None, int] = {"test": 0, "val": 1, "train": 2, None: 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class NearPair:
    """Two images that show the same picture, reduced, re-encoded or slightly cropped."""

    first: ValidImage
    second: ValidImage
    similarity: float
    """0 to 1."""

    @property
    def leaks(self) -> bool:
        """Whether the data's own splits divide the pair."""
        return "train" in (splits := {self.first.split, self.second.split} - {None}) and len(splits) > 1


@dataclass(frozen=True)
class Deduplicated:
    """The images that are kept, and those that are removed."""

    kept: tuple[ValidImage, ...]
    """Sorted by name, without copies."""
    duplicates: tuple[tuple[ValidImage, ValidImage], ...]
    """A removed copy, and the copy that is kept."""
    conflicts: tuple[tuple[ValidImage, ValidImage], ...]
    """A removed copy, and a copy with another label, which is removed too."""
    groups: dict[str, str]
    """Group by pixel digest."""
    near: tuple[NearPair, ...] = ()
    """Near-duplicates among the images that are kept."""
    near_copies: frozenset[str] = frozenset()
    """Pixel digests of near-duplicates that do not count when splits are carved, so that adding one moves no other image."""

    @property
    def leaked(self) -> tuple[tuple[ValidImage, ValidImage], ...]:
        """The duplicates whose kept copy is in another split."""
        return tuple((copy, kept) for copy, kept in self.duplicates if copy.split != kept.split)

    def group(self, image: ValidImage) -> str:
        """The group of a kept image."""
        return self.groups[image.content.pixels]


def deduplicate(images: Iterable[ValidImage], *, on_leakage: str) -> Deduplicated:
    """Keep one copy of each image.

    The copy in test is preferred, then val, then train; among several, the first by name.

    Args:
        images: all valid images.
        on_leakage: `drop` or `stop`, see `PrepareConfig.on_leakage`.

    Raises:
        DataError: given splits share an image and `on_leakage` is `stop`, or they share a group.
    """
    copies: dict[str, list[ValidImage]] = defaultdict(list)
    for image in sorted(images, key=lambda image: (PRIORITY[image.split], image.name)):
        copies[image.content.pixels].append(image)
    kept, duplicates, conflicts = [], [], []
    for cluster in copies.values():
        if len({image.file.label for image in cluster}) > 1:
            conflicts += [(image, _other(image, cluster)) for image in cluster]
        else:
            kept.append(cluster[0])
            duplicates += [(image, cluster[0]) for image in cluster[1:]]
    groups = _groups(copies)
    result = Deduplicated(_sorted(kept), _sorted_pairs(duplicates), _sorted_pairs(conflicts), groups)
    if on_leakage == "stop":
        _check_leakage(result)
    _check_groups(result)
    return result


def _other(image: ValidImage, cluster: list[ValidImage]) -> ValidImage:
    return next(other for other in cluster if other.file.label != image.file.label)


def _sorted(images: list[ValidImage]) -> tuple[ValidImage, ...]:
    return tuple(sorted(images, key=lambda image: image.name))


def _sorted_pairs(pairs: list[tuple[ValidImage, ValidImage]]) -> tuple[tuple[ValidImage, ValidImage], ...]:
    return tuple(sorted(pairs, key=lambda pair: (pair[0].name, pair[1].name)))


def _groups(copies: dict[str, list[ValidImage]]) -> dict[str, str]:
    """Merge the user's groups that share an image, and return the group of each pixel digest.

    A merged group has the first of the users' names. An image without a group is a group of its own, named by its digest.
    Additional data therefore leaves most names unchanged.
    """
    users = {pixels: sorted({image.file.group for image in cluster} - {""}) for pixels, cluster in copies.items()}
    find = connected((names[0], name) for names in users.values() for name in names[1:])
    return {pixels: find(names[0]) if names else pixels for pixels, names in users.items()}


def _check_leakage(result: Deduplicated) -> None:
    if leaked := [f"{copy.name} ({copy.split}) = {kept.name} ({kept.split})" for copy, kept in result.leaked]:
        raise DataError(
            f"the given splits share {len(leaked):,} images: {summarize(leaked)}; remove them from one split, "
            "or set prepare.on_leakage to drop",
            code="split_leakage",
        )


def _check_groups(result: Deduplicated) -> None:
    members: dict[str, dict[Split | None, ValidImage]] = defaultdict(dict)
    for image in result.kept:
        members[result.group(image)].setdefault(image.split, image)
    divided = [
        f"{group} ({', '.join(f'{image.name} in {split}' for split, image in by_split.items())})"
        for group, by_split in sorted(members.items())
        if len(by_split) > 1
    ]
    if divided:
        raise DataError(
            f"groups that are in more than one of the given splits: {summarize(divided)}; put each group into one split "
            "(groups that share an image count as one)",
            code="group_leakage",
        )
