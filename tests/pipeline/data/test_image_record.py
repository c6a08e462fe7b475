"""The record of a version's images: what was once a test image stays one."""

import hashlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeline.pipeline.data.image_record import FILE_NAME, Known, newest_record, read_record, write_record
from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.names import Split
from edgeline.serve.errors import DataError

NAMES = st.dictionaries(st.integers(0, 30), st.sampled_from(get_args(Split)), max_size=12)


def samples(splits: dict[int, Split]) -> list[Sample]:
    return [
        Sample(path="", label="", index=0, split=split, group="", sha256="", pixels=digest(number), width=1, height=1)
        for number, split in splits.items()
    ]


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@given(data=st.lists(NAMES, min_size=1, max_size=4))
def test_over_any_versions_a_record_has_their_own_splits_and_every_image_that_was_ever_tested(
    tmp_path_factory: pytest.TempPathFactory, data: list[dict[int, Split]]
) -> None:
    folder = tmp_path_factory.mktemp("name")
    tested: set[str] = set()
    for version, splits in enumerate(data, 1):
        (folder / str(version)).mkdir()
        write_record(folder / str(version) / FILE_NAME, samples(splits), newest_record(folder))
        tested |= {digest(number) for number, split in splits.items() if split == "test"}
        record = read_record(folder / str(version) / FILE_NAME)
        assert {pixels for pixels, known in record.items() if known.tested} == tested
        assert {pixels: known.split for pixels, known in record.items() if known.split} == {
            digest(number): split for number, split in splits.items()
        }
        assert all(record[pixels].kept == "test" for pixels in tested)


def test_a_version_has_learned_from_train_and_validation_only() -> None:
    assert [Known(split, False).learned for split in ("train", "val", "test", None)] == [True, True, False, False]
    assert Known("train", True).learned  # an earlier version's test image that a run trained on


def test_an_image_takes_about_thirty_bytes(tmp_path: Path) -> None:
    write_record(tmp_path / FILE_NAME, samples(dict.fromkeys(range(10_000), "train")), {})
    assert (tmp_path / FILE_NAME).stat().st_size < 36 * 10_000


def test_a_missing_record_is_an_error_that_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="publish it again with this version of edgeline") as caught:
        read_record(tmp_path / FILE_NAME)
    assert caught.value.code == "record_missing"


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    write_record(path, samples({1: "train"}), {})
    whole = path.read_bytes()
    for content in (b"", whole[:-30], b"PK" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_record(path)
        assert caught.value.code == "record_invalid"
    for arrays in ({"digests": np.zeros((1, 31), np.uint8)}, {"splits": np.array([9], np.uint8)}, {"digests": np.array([{}])}):
        held = {"digests": np.zeros((1, 32), np.uint8), "splits": np.zeros(1, np.uint8), "tested": np.zeros(1, bool)}
        np.savez_compressed(path, **(held | arrays))  # type: ignore[arg-type]
        with pytest.raises(DataError, match="is not a record of images"):
            read_record(path)
