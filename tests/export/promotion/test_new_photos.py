"""Photos that would spoil a model stop a run before it trains."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeline.export.promotion.new_photos import InUse, check_new_photos, find_blank
from edgeline.pipeline.data.samples import Prepared, Sample
from edgeline.pipeline.runs.atomic_files import file_digest
from edgeline.serve.errors import DataError

LABELS = ("ant", "bee")
Photos = Callable[..., list[Sample]]


@pytest.fixture(name="photos")
def write(tmp_path: Path) -> Photos:
    def make(label: str, count: int, *, shade: int | None = None) -> list[Sample]:
        found = []
        for number in range(count):
            path = tmp_path / f"{label}-{shade}-{number}.png"
            noise = np.random.default_rng(number).integers(0, 256, (32, 40, 3), np.uint8)
            Image.fromarray(noise if shade is None else np.full((32, 40, 3), shade + number, np.uint8)).save(path)
            found.append(
                Sample(
                    path=str(path),
                    name=path.name,
                    label=label,
                    index=LABELS.index(label) if label in LABELS else 2,
                    split="train",
                    group="",
                    sha256=file_digest(path),
                    pixels=file_digest(path),
                    width=40,
                    height=32,
                )
            )
        return found

    return make


def in_use(answers: dict[str, list[int]], confusion: tuple[tuple[int, int], tuple[int, int]] = ((50, 0), (0, 50))) -> InUse:
    """A version in use that gives the photos of each label these classes; -1 where it is unsure."""

    def classify(samples: list[Sample]) -> np.ndarray:
        turns = {label: iter(given) for label, given in answers.items()}
        rows = {0: [0.9, 0.1], 1: [0.1, 0.9], -1: [0.5, 0.5]}
        return np.array([rows[next(turns[sample.label])] for sample in samples])

    return InUse(LABELS, np.array(confusion), classify)  # type: ignore[arg-type]


def prepared(*groups: list[Sample], labels: tuple[str, ...] = LABELS) -> Prepared:
    return Prepared(labels, tuple(sample for group in groups for sample in group), "")


def test_photos_that_the_version_in_use_agrees_with_pass(photos: Photos) -> None:
    data = prepared(photos("ant", 10), photos("bee", 10))
    check_new_photos(data, {}, in_use({"ant": [0] * 10, "bee": [1] * 9 + [0]}), ())


def test_swapped_labels_stop_a_run_and_say_what_was_seen(photos: Photos) -> None:
    data = prepared(photos("ant", 10), photos("bee", 10))
    with pytest.raises(DataError, match="9 of 10 new photos labeled 'bee' are taken for 'ant'") as caught:
        check_new_photos(data, {}, in_use({"ant": [0] * 10, "bee": [0] * 9 + [1]}), ())
    assert caught.value.code == "labels_suspicious"
    check_new_photos(data, {}, in_use({"ant": [0] * 10, "bee": [0] * 10}), ("labels_suspicious",))


def test_classes_that_are_often_confused_or_answers_that_are_unsure_are_no_reason(photos: Photos) -> None:
    data = prepared(photos("ant", 10), photos("bee", 10))
    check_new_photos(data, {}, in_use({"ant": [0] * 10, "bee": [0] * 5 + [1] * 5}, ((50, 0), (20, 30))), ())
    check_new_photos(data, {}, in_use({"ant": [0] * 10, "bee": [-1] * 10}), ())


def test_only_new_photos_are_checked(photos: Photos) -> None:
    known = photos("bee", 10)
    data = prepared(photos("ant", 4), known)
    check_new_photos(data, {sample.pixels: sample.label for sample in known}, in_use({"ant": [0] * 4, "bee": [0] * 10}), ())


def test_known_photos_whose_labels_were_swapped_are_checked_too(photos: Photos) -> None:
    known = [*photos("ant", 10), *photos("bee", 10)]
    swapped = {sample.pixels: "bee" if sample.label == "ant" else "ant" for sample in known}
    with pytest.raises(DataError, match="10 of 10 new photos labeled 'bee' are taken for 'ant'"):
        check_new_photos(prepared(known), swapped, in_use({"ant": [1] * 10, "bee": [0] * 10}), ())


def test_photos_of_a_new_class_are_not_judged_by_a_version_that_does_not_know_it(photos: Photos) -> None:
    data = prepared(photos("ant", 4), photos("wasp", 8), labels=(*LABELS, "wasp"))
    check_new_photos(data, {}, in_use({"ant": [0] * 4}), ())


@pytest.mark.parametrize("shade", [0, 128, 250])
def test_a_covered_camera_stops_a_run(photos: Photos, shade: int) -> None:
    data = prepared(photos("ant", 10), photos("bee", 4, shade=shade))
    with pytest.raises(DataError, match=r"4 of 14 new photos show nothing, bee-.* for example") as caught:
        check_new_photos(data, {}, in_use({"ant": [0] * 10, "bee": [1] * 4}), ())
    assert caught.value.code == "photos_blank"


def test_two_blank_photos_or_few_among_many_do_not_stop_a_run(photos: Photos) -> None:
    check_new_photos(prepared(photos("ant", 2, shade=0)), {}, in_use({"ant": [0] * 2}), ())
    data = prepared(photos("ant", 40), photos("bee", 3, shade=0))
    assert len(find_blank(data.samples)) == 3
    check_new_photos(data, {}, in_use({"ant": [0] * 40, "bee": [1] * 3}), ())


def test_blank_photos_are_no_reason_where_the_known_ones_are_blank_too(photos: Photos) -> None:
    known = photos("bee", 5, shade=200)
    data = prepared(known, photos("ant", 5, shade=0))
    check_new_photos(data, {sample.pixels: sample.label for sample in known}, in_use({"ant": [0] * 5}), ())


def test_a_class_that_is_gone_stops_a_run(photos: Photos) -> None:
    data = prepared(photos("ant", 4), labels=("ant",))
    with pytest.raises(DataError, match="the data has no class 'bee' any more") as caught:
        check_new_photos(data, {}, in_use({"ant": [0] * 4}), ())
    assert caught.value.code == "class_lost"
    check_new_photos(data, {}, in_use({"ant": [0] * 4}), ("class_lost",))
