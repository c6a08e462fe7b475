from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeline.pipeline.data.split import carve
from edgeline.pipeline.names import Split

BOTH: dict[Split, float] = {"test": 0.2, "val": 0.2}


def singles(**classes: int) -> dict[str, dict[str, int]]:
    """Images that each form a group."""
    return {f"{label}{number}": {label: 1} for label, count in classes.items() for number in range(count)}


def counts(groups: dict[str, dict[str, int]], splits: dict[str, Split]) -> dict[str, dict[str, int]]:
    """Images by class and split."""
    found: dict[str, Counter[str]] = {}
    for name, held in groups.items():
        for label, count in held.items():
            found.setdefault(label, Counter())[splits[name]] += count
    return {label: dict(sorted(by_split.items())) for label, by_split in found.items()}


EXACT = {
    "a hundred": (100, BOTH, {"test": 20, "train": 64, "val": 16}),
    "the fewest": (3, BOTH, {"test": 1, "train": 1, "val": 1}),
    "few": (6, BOTH, {"test": 1, "train": 4, "val": 1}),
    "nearly all held out": (5, {"test": 0.9, "val": 0.9}, {"test": 3, "train": 1, "val": 1}),
    "tiny shares": (50, {"test": 0.001, "val": 0.001}, {"test": 1, "train": 48, "val": 1}),
    "validation only": (10, {"val": 0.2}, {"train": 8, "val": 2}),
    "test only": (10, {"test": 0.3}, {"test": 3, "train": 7}),
    "nothing to carve": (4, {}, {"train": 4}),
}


@pytest.mark.parametrize(("count", "shares", "expected"), EXACT.values(), ids=EXACT)
def test_each_split_gets_its_rounded_share(count: int, shares: dict[Split, float], expected: dict[str, int]) -> None:
    groups = singles(cat=count, dog=40)
    assert counts(groups, carve(groups, shares, seed=0))["cat"] == expected


def test_the_split_depends_on_the_seed() -> None:
    groups = singles(cat=50, dog=50)
    assert carve(groups, BOTH, seed=1) == carve(dict(reversed(groups.items())), BOTH, seed=1)
    assert carve(groups, BOTH, seed=1) != carve(groups, BOTH, seed=2)


def test_a_split_is_the_same_on_every_machine() -> None:
    splits = carve(singles(cat=10), BOTH, seed=0)
    assert sorted(name for name in splits if splits[name] == "test") == ["cat3", "cat5"]
    assert sorted(name for name in splits if splits[name] == "val") == ["cat6", "cat8"]


def moved(before: dict[str, Split], after: dict[str, Split]) -> int:
    return sum(after[name] != split for name, split in before.items() if name in after)


def test_one_more_photo_moves_at_most_two_others() -> None:
    moves = Counter[int]()
    for size in range(3, 400):
        before, after = (carve(singles(cat=count, dog=20), BOTH, seed=0) for count in (size, size + 1))
        moves[moved(before, after)] += 1
    assert max(moves) <= 2
    assert moves[2] <= 0.1 * moves.total()
    assert moves[0] + moves[1] >= 0.9 * moves.total()


def test_one_more_photo_moves_none_of_other_classes() -> None:
    before, after = (carve(singles(cat=cats, dog=50), BOTH, seed=0) for cats in (50, 51))
    assert all(after[name] == split for name, split in before.items() if name.startswith("dog"))


def test_a_new_class_moves_none_of_the_others() -> None:
    groups = singles(cat=50, dog=50)
    assert moved(carve(groups, BOTH, seed=0), carve(groups | singles(bird=30), BOTH, seed=0)) == 0


def test_with_twice_the_data_most_of_the_test_split_stays_out_of_train() -> None:
    before, after = carve(singles(cat=200), BOTH, seed=0), carve(singles(cat=400), BOTH, seed=0)
    tested = [name for name, split in before.items() if split == "test"]
    assert sum(after[name] == "train" for name in tested) <= 0.2 * len(tested)


def test_groups_are_undivided_and_splits_are_close_to_their_share() -> None:
    groups = {f"g{number}": {"cat": 5} for number in range(40)}
    assert counts(groups, carve(groups, BOTH, seed=0)) == {"cat": {"test": 40, "train": 130, "val": 30}}


def test_a_group_is_added_if_that_brings_the_split_closer_to_its_share() -> None:
    groups = {f"g{number}": {"cat": 5} for number in range(8)}  # the targets are 8 for test, and 6 of the rest for val
    assert counts(groups, carve(groups, BOTH, seed=0)) == {"cat": {"test": 10, "train": 25, "val": 5}}


def test_a_very_large_group_is_in_train() -> None:
    groups = {"giant": {"cat": 500}, **singles(cat=6)}
    for seed in range(20):
        splits = carve(groups, BOTH, seed=seed)
        assert splits["giant"] == "train"
        assert {"val", "test"} <= set(splits.values())


def test_three_groups_of_any_size_go_into_three_splits() -> None:
    for seed in range(20):
        assert set(carve({"a": {"cat": 90}, "b": {"cat": 7}, "c": {"cat": 1}}, BOTH, seed=seed).values()) == {
            "train",
            "val",
            "test",
        }


def test_groups_with_several_classes_give_every_split_its_share() -> None:
    groups = {f"site{number}": {"cat": 4 + number % 3, "dog": 6 - number % 3} for number in range(30)} | singles(cat=20, dog=20)
    found = counts(groups, carve(groups, BOTH, seed=0))
    for by_split in found.values():
        total = sum(by_split.values())
        assert by_split["test"] / total == pytest.approx(0.2, abs=0.05)
        assert by_split["val"] / total == pytest.approx(0.16, abs=0.05)


def test_three_groups_with_all_classes_go_into_three_splits() -> None:
    groups = {f"site{number}": {"cat": 10, "dog": 10} for number in range(3)}
    for seed in range(20):
        assert sorted(carve(groups, BOTH, seed=seed).values()) == ["test", "train", "val"]


LABELS = st.sampled_from(["cat", "dog", "bird"])
GROUPS = st.dictionaries(st.text(max_size=5), st.dictionaries(LABELS, st.integers(1, 20), min_size=1, max_size=3), max_size=30)


@given(mixed=GROUPS, pure=st.integers(3, 12), seed=st.integers(0, 9))
def test_every_class_is_in_every_split_with_any_mix_of_groups(mixed: dict[str, dict[str, int]], pure: int, seed: int) -> None:
    groups = mixed | singles(cat=pure, dog=pure, bird=pure)
    splits = carve(groups, BOTH, seed=seed)
    assert splits.keys() == groups.keys()
    assert all(set(by_split) == {"train", "val", "test"} for by_split in counts(groups, splits).values())


@given(
    labels=st.lists(st.sampled_from(["cat", "dog"]), min_size=12, max_size=60),
    kept=st.dictionaries(st.integers(0, 59), st.sampled_from(["train", "val", "test"]), max_size=30),
)
def test_groups_that_have_a_split_keep_it_and_the_others_fill_the_shares(labels: list[str], kept: dict[int, Split]) -> None:
    groups = {f"{number}": {label: 1} for number, label in enumerate(labels)}
    given_splits = {f"{number}": split for number, split in kept.items() if f"{number}" in groups}
    splits = carve(groups, BOTH, seed=0, kept=given_splits)
    assert splits.keys() == groups.keys()
    assert {name: splits[name] for name in given_splits} == given_splits
    for label, total in Counter(labels).items():
        of_label = [name for name in groups if label in groups[name]]
        test = sum(splits[name] == "test" for name in of_label)
        already = sum(given_splits.get(name) == "test" for name in of_label)
        free = sum(name not in given_splits for name in of_label)
        assert test <= max(already, int(total * 0.2 + 0.5), 1)
        assert test >= min(already + free // 3, int(total * 0.2 + 0.5))
