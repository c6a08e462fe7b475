import pytest

from edgeline.pipeline.data.deduplication import Deduplicated, deduplicate
from edgeline.pipeline.data.validation import ImageContent, ValidImage
from edgeline.pipeline.names import Split
from edgeline.pipeline.sources.discovery import SourceFile
from edgeline.serve.errors import DataError


def image(name: str, pixels: str, label: str = "cat", split: Split | None = None, group: str = "") -> ValidImage:
    file = SourceFile(name=name, label=label, given=split, group=group)
    content = ImageContent(pixels, 8, 8, "PNG", few_colors=False, thumbnail=None)
    return ValidImage(file=file, sha256="0" * 64, content=content, split=split)


def names(images: tuple[ValidImage, ...]) -> list[str]:
    return [image.name for image in images]


def pairs(found: tuple[tuple[ValidImage, ValidImage], ...]) -> list[tuple[str, str]]:
    return [(first.name, second.name) for first, second in found]


def deduplicated(*images: ValidImage, on_leakage: str = "drop") -> Deduplicated:
    return deduplicate(images, on_leakage=on_leakage)


def data_error(*images: ValidImage, on_leakage: str = "drop") -> DataError:
    with pytest.raises(DataError) as caught:
        deduplicate(images, on_leakage=on_leakage)
    return caught.value


def test_the_first_copy_by_name_is_kept() -> None:
    found = deduplicated(image("b", "P"), image("c", "P"), image("a", "P"), image("d", "Q"))
    assert names(found.kept) == ["a", "d"]
    assert pairs(found.duplicates) == [("b", "a"), ("c", "a")]
    assert found.leaked == ()


HELD_OUT = {
    "train and test": (["train", "test"], 1),
    "train and val": (["train", "val"], 1),
    "val and test": (["val", "test"], 1),
    "all three": (["train", "val", "test"], 2),
    "two in test": (["train", "test", "test"], 1),
}


@pytest.mark.parametrize(("splits", "kept"), HELD_OUT.values(), ids=HELD_OUT)
def test_the_copy_in_the_held_out_split_is_kept(splits: list[Split], kept: int) -> None:
    found = deduplicated(*(image(f"{number}", "P", split=split) for number, split in enumerate(splits)))
    assert names(found.kept) == [f"{kept}"]
    assert len(found.leaked) == sum(split != splits[kept] for split in splits)


def test_images_shared_between_splits_stop_the_run_if_configured() -> None:
    images = [image(f"{split}/{number}", f"P{number}", split=split) for split in ("train", "test") for number in range(7)]  # type: ignore[arg-type]
    error = data_error(*images, on_leakage="stop")
    assert error.code == "split_leakage"
    assert "share 7 images: train/0 (train) = test/0 (test)" in str(error)


def test_copies_within_one_split_do_not_stop_the_run() -> None:
    assert names(deduplicated(image("a", "P", split="train"), image("b", "P", split="train"), on_leakage="stop").kept) == ["a"]


def test_an_image_with_two_labels_is_not_kept_at_all() -> None:
    found = deduplicated(image("a", "P"), image("b", "P", "dog"), image("c", "P"), image("d", "Q", "dog"))
    assert names(found.kept) == ["d"]
    assert pairs(found.conflicts) == [("a", "b"), ("b", "a"), ("c", "b")]
    assert found.duplicates == ()


def test_an_image_without_a_group_is_its_own_group() -> None:
    assert deduplicated(image("a", "P"), image("b", "P"), image("c", "Q")).groups == {"P": "P", "Q": "Q"}


def test_groups_that_share_an_image_are_merged() -> None:
    found = deduplicated(
        image("a", "P", group="g3"),
        image("b", "P", group="g2"),
        image("c", "Q", group="g3"),
        image("d", "Q", group="g1"),
        image("e", "R", group="g2"),
        image("f", "S", group="g4"),
        image("g", "S"),
    )
    assert found.groups == {"P": "g1", "Q": "g1", "R": "g1", "S": "g4"}


def test_a_long_chain_of_groups_is_merged() -> None:
    chain = [
        image(f"{step}{side}", f"P{step}", group=f"g{step + side:04}") for step in reversed(range(2000)) for side in (0, 1)
    ]
    assert set(deduplicated(*chain).groups.values()) == {"g0000"}


def test_a_group_in_two_given_splits_is_named() -> None:
    error = data_error(
        image("a", "P", group="g1", split="train"),
        image("b", "Q", group="g1", split="test"),
        image("c", "R", group="g2", split="train"),
    )
    assert error.code == "group_leakage"
    assert "g1 (a in train, b in test)" in str(error)
    assert "g2" not in str(error)


def test_groups_merged_by_a_shared_image_may_not_be_in_two_splits() -> None:
    error = data_error(
        image("a", "P", group="g1", split="train"),
        image("b", "P", group="g2", split="test"),
        image("c", "Q", group="g1", split="train"),
    )
    assert error.code == "group_leakage"


def test_the_only_training_image_of_a_group_may_be_dropped() -> None:
    found = deduplicated(image("a", "P", group="g1", split="train"), image("b", "P", group="g1", split="test"))
    assert names(found.kept) == ["b"]
