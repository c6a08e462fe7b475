"""Carve held-out splits: stratified by class, groups undivided, and stable as the data grows.

The groups of each class are ordered by a hash of the seed and the group's name. The test split takes the first of them,
validation the last, and train those in between. A new photo therefore enters one position in one class, and only images
next to the two boundaries can change their split: at most two, usually none or one. No rule that depends only on the
current data and gives each split its exact share can guarantee fewer. For data that a published version has used, the splits
of its images are given (`kept`), and only new photos are assigned.

scikit-learn's StratifiedGroupKFold is not used because it shuffles by position: one new photo would reassign all others.
The next model would be trained on images that the previous one was tested on, and its accuracy would look better than it is.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from edgeline.pipeline.names import Split

Counts = Mapping[str, int]
"""Images by class."""

HELD_OUT: tuple[Split, ...] = ("test", "val")
"""In the order in which they are filled."""


def carve(
    groups: Mapping[str, Counts],
    shares: Mapping[Split, float],
    *,
    seed: int,
    kept: Mapping[str, Split] = MappingProxyType({}),
) -> dict[str, Split]:
    """Assign a split to each group.

    Args:
        groups: number of images by class, for each group. Every class must be in at least as many groups as there are splits.
        shares: share of each class for `test`, and of the remainder for `val`. A split that is absent is not carved. The
            rest is `train`.
        seed: a different seed gives a different split.
        kept: groups that have a split already; the others fill what these leave of the shares.

    Returns:
        The split of each group. Each class is in every split, unless groups with several classes make that impossible.
    """
    names = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    targets = _targets(groups, shares)
    mixed = [name for name in names if len(groups[name]) > 1 and name not in kept]
    placed = _place_mixed(mixed, groups, targets, kept)
    assigned = dict(placed)
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if len(groups[name]) == 1 and name not in kept:
            by_class[next(iter(groups[name]))].append(name)
    for label, own in by_class.items():
        sizes = {name: groups[name][label] for name in own}
        have = _sum(label, placed, groups)
        assigned |= _place_pure(sizes, {split: n - have[split] for split, n in targets[label].items()}, have)
    return assigned


def _targets(groups: Mapping[str, Counts], shares: Mapping[Split, float]) -> dict[str, dict[Split, int]]:
    """Target number of images by class and split: the rounded shares, at least one."""
    totals: Counter[str] = Counter()
    for counts in groups.values():
        totals.update(counts)
    return {label: _shares(total, shares) for label, total in totals.items()}


def _shares(total: int, shares: Mapping[Split, float]) -> dict[Split, int]:
    targets: dict[Split, int] = {}
    splits = [split for split in HELD_OUT if split in shares]
    for position, split in enumerate(splits):
        targets[split] = _share(total, shares[split], leave=len(splits) - position)
        total -= targets[split]
    return {**targets, "train": total}


def _share(total: int, share: float, *, leave: int) -> int:
    return max(1, min(int(total * share + 0.5), total - leave))


def _place_mixed(
    names: Sequence[str],
    groups: Mapping[str, Counts],
    targets: Mapping[str, Mapping[Split, int]],
    kept: Mapping[str, Split],
) -> dict[str, Split]:
    """Assign groups with several classes, one after the other, to the split that lacks most of their images.

    Returns:
        Their splits, and those that are kept.
    """
    have = {label: _sum(label, kept, groups) for label in targets}
    left = Counter(label for name, counts in groups.items() if name not in kept for label in counts)
    placed = dict(kept)
    for name in names:
        placed[name] = split = _choose(groups[name], targets, have, left)
        for label, count in groups[name].items():
            have[label][split] += count
            left[label] -= 1
    return placed


def _choose(
    counts: Counts, targets: Mapping[str, Mapping[Split, int]], have: Mapping[str, Counter[Split]], left: Counter[str]
) -> Split:
    # A class with no more groups left than splits without it must now go to one of these splits.
    urgent: Counter[Split] = Counter()
    for label in counts:
        empty = [split for split in targets[label] if not have[label][split]]
        if left[label] <= len(empty):
            urgent.update(empty)

    def excess(split: Split) -> float:
        """Growth of the squared distance from the target counts, relative to the size of each class and split."""
        return sum(
            count * (count - 2 * (targets[label][split] - have[label][split])) / max(1, targets[label][split])
            for label, count in counts.items()
        )

    splits: list[Split] = list(targets[next(iter(counts))])
    return min(reversed(splits), key=lambda split: (-urgent[split], excess(split)))


def _sum(label: str, placed: Mapping[str, Split], groups: Mapping[str, Counts]) -> Counter[Split]:
    have: Counter[Split] = Counter()
    for name, split in placed.items():
        have[split] += groups[name].get(label, 0)
    return have


def _place_pure(sizes: Mapping[str, int], targets: Mapping[Split, int], have: Counter[Split]) -> dict[str, Split]:
    """Assign the groups of one class, in their order: test from the front, validation from the back."""
    placed: dict[str, Split] = {}
    empty = [split for split in targets if not have[split]]
    for split in [split for split in targets if split != "train"]:
        order = [name for name in sizes if name not in placed]
        if split == "val":
            order.reverse()
        reserved = sum(other != split and other not in placed.values() for other in empty)
        selected = _select(order, sizes, targets[split], maximum=len(order) - reserved, minimum=int(split in empty))
        placed |= dict.fromkeys(selected, split)
    return {name: placed.get(name, "train") for name in sizes}


def _select(order: Sequence[str], sizes: Mapping[str, int], target: int, *, maximum: int, minimum: int) -> list[str]:
    """Select the first groups that bring the count closer to the target."""
    selected: list[str] = []
    for name in order:
        if len(selected) < maximum and sizes[name] < 2 * target:
            selected.append(name)
            target -= sizes[name]
    return selected if len(selected) >= minimum else sorted(order, key=lambda name: sizes[name])[:minimum]
