"""`edgeline explain`, on a finished run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgeline.pipeline.config import PipelineConfig

Edgeline = Callable[..., tuple[int, str, str]]


@pytest.fixture(name="run")
def copied(finished: PipelineConfig, tmp_path: Path) -> Path:
    shutil.copytree(finished.artifacts, tmp_path / "artifacts")
    [run] = (tmp_path / "artifacts" / "runs").glob("tints-*")
    return run


def test_test_images_are_explained_with_pictures_and_a_page(edgeline: Edgeline, run: Path) -> None:
    code, out, err = edgeline("explain", str(run), "--count", "2", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert len(found["images"]) == 2
    folder = Path(found["folder"])
    for each in found["images"]:
        assert each["pictures"].keys() == {"photo", "gradient", "features"}  # at 32 px the last map has one position
        for name in each["pictures"].values():
            with Image.open(folder / name) as picture:
                assert picture.width >= 80
    page = (folder / "report.html").read_text()
    assert page.count("<img ") == 2 * 3 + 1
    assert "http" not in page
    assert (folder / "embedding.csv").read_text().count("\n") == 9


def test_a_photo_from_elsewhere_is_explained_and_its_name_is_text(edgeline: Edgeline, run: Path, tmp_path: Path) -> None:
    photo = tmp_path / "<b>.png"
    Image.new("RGB", (50, 40), (200, 60, 40)).save(photo)
    code, out, _ = edgeline("explain", str(run), str(photo), "--out", "explained")
    assert code == 0
    assert out.startswith("<b>.png: ")
    assert "<b>" not in (tmp_path / "explained" / "report.html").read_text()


INVALID = {
    "an unknown layer": (["--layer", "block"], "[layer_unknown]"),
    "a photo that does not exist": (["nowhere.jpg"], "nowhere.jpg cannot be read"),
}


@pytest.mark.parametrize(("arguments", "expected"), INVALID.values(), ids=INVALID)
def test_what_cannot_be_explained_is_named_in_one_line(
    edgeline: Edgeline, run: Path, arguments: list[str], expected: str
) -> None:
    code, out, err = edgeline("explain", str(run), *arguments)
    assert (code, out) == (1, "")
    assert expected in err
    assert err.count("\n") == 1
