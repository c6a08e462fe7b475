from pathlib import Path

import numpy as np
import pytest

from edgeline.pipeline.data.samples import Prepared, read_image
from edgeline.pipeline.training.fine_tuning import pixels
from edgeline.pipeline.training.fine_tuning.pixels import PixelTable, canvas
from edgeline.serve.preprocess import PreprocessSpec, preprocess

SPEC = PreprocessSpec(height=32, width=32)


@pytest.fixture(name="decoded")
def decoded_images(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were decoded."""
    names: list[str] = []

    def recording(sample: object) -> bytes:
        names.append(sample.name)  # type: ignore[attr-defined]
        return read_image(sample)  # type: ignore[arg-type]

    monkeypatch.setattr(pixels, "read_image", recording)
    return names


def table(shapes: Prepared, folder: Path, spec: PreprocessSpec = SPEC) -> PixelTable:
    return PixelTable(shapes.of("test"), spec, folder)


def test_pictures_are_those_of_the_preprocessing(shapes: Prepared, tmp_path: Path) -> None:
    rows_B = np.array([3, 0, 3])
    read = table(shapes, tmp_path).read(rows_B)
    expected = [preprocess(read_image(shapes.of("test")[row]), SPEC) for row in rows_B]
    assert read.dtype == np.uint8
    assert (read == np.stack(expected)).all()


def test_the_canvas_has_the_scale_of_the_models_input_and_a_margin() -> None:
    wider = canvas(PreprocessSpec(height=224, width=224, crop_fraction=0.875))
    assert (wider.height, wider.width, wider.crop_fraction) == (256, 256, 1.0)


def test_each_picture_is_decoded_once_also_for_later_trainings(shapes: Prepared, decoded: list[str], tmp_path: Path) -> None:
    first = table(shapes, tmp_path)
    every = np.arange(12)
    before = first.read(every)
    assert (first.read(every[::-1]) == before[::-1]).all()
    first.keep()
    assert (table(shapes, tmp_path).read(every) == before).all()
    assert len(decoded) == 12


def test_an_incomplete_table_is_not_kept(shapes: Prepared, tmp_path: Path) -> None:
    begun = table(shapes, tmp_path)
    begun.read(np.arange(11))
    begun.keep()
    del begun
    assert list((tmp_path / "pixels").iterdir()) == []


def test_other_images_or_another_preprocessing_have_a_table_of_their_own(shapes: Prepared, tmp_path: Path) -> None:
    paths = {
        table(shapes, tmp_path).path,
        table(shapes, tmp_path, canvas(SPEC)).path,
        PixelTable(shapes.of("test")[::-1], SPEC, tmp_path).path,
    }
    assert len(paths) == 3


def test_a_damaged_table_is_decoded_again(shapes: Prepared, decoded: list[str], tmp_path: Path) -> None:
    first = table(shapes, tmp_path)
    before = first.read(np.arange(12))
    first.keep()
    data = bytearray(first.path.read_bytes())
    data[-5] ^= 16
    first.path.write_bytes(data)
    assert (table(shapes, tmp_path).read(np.arange(12)) == before).all()
    assert len(decoded) == 24


def test_the_oldest_tables_are_deleted_when_the_cache_is_full(
    shapes: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pixels, "MAX_BYTES", 12 * 32 * 32 * 3 + 1000)
    old = table(shapes, tmp_path)
    old.read(np.arange(12))
    old.keep()
    PixelTable(shapes.of("val"), SPEC, tmp_path)
    assert list((tmp_path / "pixels").iterdir()) == []


def test_data_larger_than_the_cache_are_decoded_whenever_they_are_read(
    shapes: Prepared, decoded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pixels, "MAX_BYTES", 1000)
    uncached = table(shapes, tmp_path)
    for _ in range(2):
        uncached.read(np.arange(12))
        uncached.keep()
    assert len(decoded) == 24
    assert list((tmp_path / "pixels").iterdir()) == []
