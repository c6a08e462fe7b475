"""Carve held-out splits: stratified by class, groups kept whole, and nearly still as the data grows.

Each class's groups are put in the order of a hash of the seed and the group's own name. The test split takes from the
front of that order, validation from its back, train is what lies between. One more photo therefore takes one place in one
class, and only images beside the two borders can change their split: two at most, mostly none or one. Fewer than two
cannot be promised by any rule that knows only the present data and gives every split its exact share.

This is not scikit-learn's StratifiedGroupKFold because that shuffles by position: one more photo deals all the others
anew, so that yesterday's test images are trained on today, and a new model looks better than the one it should beat.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from edgeline.pipeline.data.samples import Split

Counts = Mapping[str, int]
"""Images by class."""

HELD_OUT: tuple[Split, ...] = ("test", "val")
"""In the order in which they take their share."""


def carve(groups: Mapping[str, Counts], shares: Mapping[Split, float], *, seed: int) -> dict[str, Split]:
    """Give each group a split.

    Args:
        groups: how many images of each class each group has. Every class must be in as many groups as splits are asked for.
        shares: of each class for `test`, and of what that leaves for `val`; one that is absent makes no such split. What
            is left is `train`.
        seed: another one gives another split.

    Returns:
        The split of each group. Each class is in every split, unless groups of several classes leave no way for it.
    """
    names = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    wanted = _wanted(groups, shares)
    mixed = [name for name in names if len(groups[name]) > 1]
    taken = _place_mixed(mixed, groups, wanted)
    assigned = dict(taken)
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if len(groups[name]) == 1:
            by_class[next(iter(groups[name]))].append(name)
    for label, own in by_class.items():
        sizes = {name: groups[name][label] for name in own}
        have = _sum(label, taken, groups)
        assigned |= _place_pure(sizes, {split: n - have[split] for split, n in wanted[label].items()}, have)
    return assigned


def _wanted(groups: Mapping[str, Counts], shares: Mapping[Split, float]) -> dict[str, dict[Split, int]]:
    """Images of each class for each split: the rounded shares, at least one."""
    totals: Counter[str] = Counter()
    for counts in groups.values():
        totals.update(counts)
    return {label: _shares(total, shares) for label, total in totals.items()}


def _shares(total: int, shares: Mapping[Split, float]) -> dict[Split, int]:
    wanted: dict[Split, int] = {}
    splits = [split for split in HELD_OUT if split in shares]
    for position, split in enumerate(splits):
        wanted[split] = _share(total, shares[split], leave=len(splits) - position)
        total -= wanted[split]
    return {**wanted, "train": total}


def _share(total: int, share: float, *, leave: int) -> int:
    return max(1, min(int(total * share + 0.5), total - leave))


def _place_mixed(
    names: Sequence[str], groups: Mapping[str, Counts], wanted: Mapping[str, Mapping[Split, int]]
) -> dict[str, Split]:
    """Give groups of several classes, one after the other, to the split that lacks most of what they hold."""
    have: dict[str, Counter[Split]] = {label: Counter() for label in wanted}
    left = Counter(label for counts in groups.values() for label in counts)
    placed: dict[str, Split] = {}
    for name in names:
        placed[name] = split = _choose(groups[name], wanted, have, left)
        for label, count in groups[name].items():
            have[label][split] += count
            left[label] -= 1
    return placed


def _choose(
    counts: Counts, wanted: Mapping[str, Mapping[Split, int]], have: Mapping[str, Counter[Split]], left: Counter[str]
) -> Split:
    # A class with no more groups to come than splits without it must go to one of these now.
    urgent: Counter[Split] = Counter()
    for label in counts:
        empty = [split for split in wanted[label] if not have[label][split]]
        if left[label] <= len(empty):
            urgent.update(empty)

    def excess(split: Split) -> float:
        """How much the squared distance from the wanted counts grows, each class and split by its own size."""
        return sum(
            count * (count - 2 * (wanted[label][split] - have[label][split])) / max(1, wanted[label][split])
            for label, count in counts.items()
        )

    splits: list[Split] = list(wanted[next(iter(counts))])
    return min(reversed(splits), key=lambda split: (-urgent[split], excess(split)))


def _sum(label: str, placed: Mapping[str, Split], groups: Mapping[str, Counts]) -> Counter[Split]:
    have: Counter[Split] = Counter()
    for name, split in placed.items():
        have[split] += groups[name].get(label, 0)
    return have


def _place_pure(sizes: Mapping[str, int], wanted: Mapping[Split, int], have: Counter[Split]) -> dict[str, Split]:
    """Deal the groups of one class, given in their order: test from the front, validation from the back."""
    placed: dict[str, Split] = {}
    empty = [split for split in wanted if not have[split]]
    for split in [split for split in wanted if split != "train"]:
        order = [name for name in sizes if name not in placed]
        if split == "val":
            order.reverse()
        reserved = sum(other != split and other not in placed.values() for other in empty)
        taken = _take(order, sizes, wanted[split], most=len(order) - reserved, least=int(split in empty))
        placed |= dict.fromkeys(taken, split)
    return {name: placed.get(name, "train") for name in sizes}


def _take(order: Sequence[str], sizes: Mapping[str, int], wanted: int, *, most: int, least: int) -> list[str]:
    """The first groups that bring the count nearer to what is wanted."""
    taken: list[str] = []
    for name in order:
        if len(taken) < most and sizes[name] < 2 * wanted:
            taken.append(name)
            wanted -= sizes[name]
    return taken if len(taken) >= least else sorted(order, key=lambda name: sizes[name])[:least]
