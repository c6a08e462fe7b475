import hashlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeline.pipeline.data import samples as samples_module
from edgeline.pipeline.data.samples import (
    Prepared,
    Sample,
    map_ahead,
    read_image,
    read_pixels,
    read_prepared,
    stream_pixels,
    write_samples,
)
from edgeline.pipeline.runs.atomic_files import write_json
from edgeline.serve.errors import DataError, ImageError
from edgeline.serve.preprocess import Limits, PreprocessSpec, preprocess

SPEC = PreprocessSpec(height=6, width=8)


def sample(path: Path, split: str = "train", **changes: object) -> Sample:
    values = {"label": "cat", "index": 0, "group": "g", "pixels": "p", "width": 12, "height": 9}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64
    return Sample(**{"path": str(path), "split": split, "sha256": sha256, **values, **changes})  # type: ignore[arg-type]


@pytest.fixture(name="samples")
def five_samples(tmp_path: Path) -> list[Sample]:
    for number in range(5):
        Image.new("RGB", (12, 9), (number * 50, 10, 20)).save(tmp_path / f"{number}.png")
    return [sample(tmp_path / f"{number}.png", split) for number, split in enumerate(["train", "test", "val", "train", "test"])]


def folder_with(folder: Path, samples: list[Sample]) -> Path:
    write_samples(folder / "samples.csv", samples)
    write_json(folder / "summary.json", {"labels": ["cat", "dog"], "fingerprint": "f", "more": 1})
    return folder


def test_written_samples_are_read_back(tmp_path: Path, samples: list[Sample]) -> None:
    odd = sample(tmp_path / "=a, \"b\"\r\n'c' 猫.png", label='say "x",\n', index=1, group="")
    found = read_prepared(folder_with(tmp_path, [*samples, odd]))
    assert found == Prepared(("cat", "dog"), (*samples, odd), "f")


def test_samples_are_selected_by_split_in_order(samples: list[Sample]) -> None:
    found = Prepared(("cat",), tuple(samples), "f")
    assert found.of("test") == [samples[1], samples[4]]
    assert found.of("val", "test") == [samples[1], samples[2], samples[4]]
    assert found.of() == []


NOT_PREPARED = {
    "nothing": lambda folder: [path.unlink() for path in folder.glob("*.*")],
    "no summary": lambda folder: (folder / "summary.json").unlink(),
    "half a summary": lambda folder: (folder / "summary.json").write_text("{"),
    "a summary without labels": lambda folder: write_json(folder / "summary.json", {"fingerprint": "f"}),
    "no samples": lambda folder: (folder / "samples.csv").unlink(),
    "another column": lambda folder: (folder / "samples.csv").write_text("path,color,index,width,height\na,b,1,2,3\n"),
    "a word for a number": lambda folder: (folder / "samples.csv").write_text("path,index,width,height\na,b,c,d\n"),
    "a cut row": lambda folder: (folder / "samples.csv").write_text("path,index,width,height\na,1\n"),
    "a row too long": lambda folder: (folder / "samples.csv").write_text("index,width,height\n1,2,3,4\n"),
}


@pytest.mark.parametrize("damage", NOT_PREPARED.values(), ids=NOT_PREPARED)
def test_without_prepared_data_the_error_names_the_command(tmp_path: Path, samples: list[Sample], damage: object) -> None:
    damage(folder_with(tmp_path, samples))  # type: ignore[operator]
    with pytest.raises(DataError, match="has no valid prepared data .* run `edgeline prepare` again"):
        read_prepared(tmp_path)


def test_an_image_is_read_unchanged(samples: list[Sample]) -> None:
    assert read_image(samples[0]) == Path(samples[0].path).read_bytes()


def test_an_image_that_has_changed_is_rejected(samples: list[Sample]) -> None:
    Path(samples[0].path).write_bytes(b"other")
    with pytest.raises(DataError, match=r"0\.png has changed since") as caught:
        read_image(samples[0])
    assert caught.value.code == "content_changed"


def test_a_missing_image_is_named(samples: list[Sample]) -> None:
    Path(samples[0].path).unlink()
    with pytest.raises(DataError, match=r"0\.png: No such file .* prepare the data again"):
        read_image(samples[0])


@pytest.mark.parametrize(("size", "batches"), [(2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_pixels_are_streamed_in_order_and_in_batches(samples: list[Sample], size: int, batches: list[int]) -> None:
    found = list(stream_pixels(samples, SPEC, size))
    assert [len(batch) for batch in found] == batches
    expected = np.stack([preprocess(read_image(sample), SPEC) for sample in samples])
    assert np.array_equal(np.concatenate(found), expected)


def test_equal_content_is_decoded_once_and_its_file_is_checked_each_time(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples_module, "_recent", samples_module._RecentPixels())
    first = [read_pixels(sample, SPEC) for sample in samples]
    monkeypatch.setattr(samples_module, "preprocess", None)
    for sample, pixels_HW3 in zip(samples, first, strict=True):
        assert np.array_equal(read_pixels(sample, SPEC), pixels_HW3)
        assert not pixels_HW3.flags.writeable
    Path(samples[0].path).write_bytes(b"other")
    with pytest.raises(DataError, match="has changed since"):
        read_pixels(samples[0], SPEC)


def test_the_memory_of_decoded_images_is_bounded(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    recent = samples_module._RecentPixels()
    monkeypatch.setattr(samples_module, "_recent", recent)
    monkeypatch.setattr(samples_module, "RECENT_BYTES", 2 * SPEC.height * SPEC.width * 3)
    for sample in [*samples[:2], samples[0], samples[2]]:
        read_pixels(sample, SPEC)
    assert [sha256 for sha256, *_ in recent.kept] == [samples[0].sha256, samples[2].sha256]
    assert recent.size == 2 * SPEC.height * SPEC.width * 3


def test_no_samples_give_no_batches() -> None:
    assert list(stream_pixels([], SPEC, 4)) == []


def test_an_image_over_the_limits_stops_the_stream(samples: list[Sample]) -> None:
    with pytest.raises(ImageError):
        list(stream_pixels(samples, SPEC, 2, limits=Limits(max_pixels=10)))


def test_results_are_in_order_whichever_is_ready_first() -> None:
    first = threading.Event()

    def wait_for_the_next(number: int) -> int:
        if number == 0:
            assert first.wait(10)
        first.set()
        return number * number

    assert list(map_ahead(wait_for_the_next, range(20), ahead=4)) == [number * number for number in range(20)]


def test_at_most_the_given_number_of_items_is_read_ahead() -> None:
    items_read = itertools.count()

    def items() -> Iterator[int]:
        for number in range(1000):
            next(items_read)
            yield number

    results = map_ahead(lambda number: number, items(), ahead=8)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert next(items_read) == 10
    results.close()  # type: ignore[attr-defined]


def test_an_error_is_raised_at_its_position() -> None:
    results = map_ahead(lambda number: 1 // (3 - number), range(100), ahead=8)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
