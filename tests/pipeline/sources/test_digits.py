import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeline.pipeline.sources.digits import COUNTS, write_digits


@pytest.fixture(name="digits", scope="module")
def written_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def test_every_digit_is_in_its_class_folder(digits: Path) -> None:
    assert [len(list((digits / str(digit)).iterdir())) for digit in range(10)] == list(COUNTS)
    assert sum(COUNTS) == 1797
    assert [path.name for path in digits.parent.iterdir()] == ["digits"]


def test_the_pixels_are_those_of_scikit_learn_scaled_and_within_a_black_margin(digits: Path) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    for index in (0, 1, 1796):
        with Image.open(digits / str(data.target[index]) / f"{index:04}.png") as image:
            assert (image.mode, image.size) == ("L", (16, 16))
            pixels = np.asarray(image).astype(int)
        assert np.abs(pixels[4:12, 4:12] / 255 - data.images[index] / 16).max() <= 0.5 / 255
        assert pixels.sum() == pixels[4:12, 4:12].sum()
    assert data.images[1].max() == 16
    assert data.images.min() == 0


def test_complete_digits_are_not_written_again(digits: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    write_digits(digits)
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_a_missing_file_is_written_again(digits: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(digits, tmp_path / "digits")
    (copy / "3" / "0003.png").unlink()
    write_digits(copy)
    assert (copy / "3" / "0003.png").read_bytes() == (digits / "3" / "0003.png").read_bytes()


@pytest.mark.long
def test_digits_of_another_size_are_written_again(digits: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(digits, tmp_path / "digits")
    Image.new("L", (8, 8)).save(copy / "0" / "0000.png")
    write_digits(copy)
    assert (copy / "0" / "0000.png").read_bytes() == (digits / "0" / "0000.png").read_bytes()


@pytest.mark.long
def test_two_concurrent_writers_leave_one_complete_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(write_digits, [tmp_path / "digits"] * 2))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert sum(1 for _ in tmp_path.glob("digits/*/*.png")) == 1797


def test_complete_digits_do_not_import_scikit_learn(digits: Path) -> None:
    code = "import sys; from pathlib import Path; from edgeline.pipeline.sources.digits import write_digits; "
    code += f"write_digits(Path({str(digits)!r})); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
