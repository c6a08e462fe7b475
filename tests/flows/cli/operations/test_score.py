"""`edgeline score`: one line of result, one line for each problem."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Edgeline = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for index in range(5):
        Image.new("RGB", (20, 16), (200, 40, 30 + index)).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path / "photos"


def test_the_command_prints_one_line_and_reuses_what_is_there(edgeline: Edgeline, make_artifact: Any, photos: Path) -> None:
    artifact = str(make_artifact())
    code, out, err = edgeline("score", artifact, "photos", "--output", "scores")
    assert (code, err) == (0, "")
    assert out == "5 images scored by colors 1: 1 parts, 0 of them reused, in scores\n"
    code, out, err = edgeline("score", artifact, "photos", "--output", "scores", "--json")
    assert code == 0, err
    assert json.loads(out)["labels"] == {"red": 5}
    assert json.loads(out)["reused"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "dask"], "engine: the kind dask needs the address"),
        (["--engine", "spark"], "engine.kind: "),
        (["--channel", "beta"], "there is no channel 'beta'"),
        (["--variant", "onnx-int8"], "no variant 'onnx-int8'"),
    ],
)
def test_a_wrong_option_is_one_line_and_writes_nothing(
    edgeline: Edgeline, make_artifact: Any, photos: Path, options: list[str], message: str
) -> None:
    code, out, err = edgeline("score", str(make_artifact().parent), "photos", "--output", "scores", *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert not (photos.parent / "scores").exists()
