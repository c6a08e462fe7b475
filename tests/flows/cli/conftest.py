"""The command line, called in this process, and small folders of photos for it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgeline.flows.cli import main as cli


@pytest.fixture(name="edgeline")
def _edgeline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """`edgeline(*arguments)`: run a command line in `tmp_path`; returns (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeline", *arguments])
        try:
            cli.main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return code, out, err

    return run


@pytest.fixture
def make_photos(tmp_path: Path) -> Callable[..., str]:
    """`make_photos(ants=8, bees=8)`: a folder with one folder per class, of that many different images each."""

    def make(**classes: int) -> str:
        for position, (label, count) in enumerate(classes.items()):
            (tmp_path / "photos" / label).mkdir(parents=True)
            for index in range(count):
                color = (90 * position % 200, 5 * index, 80)
                Image.new("RGB", (20, 16), color).save(tmp_path / "photos" / label / f"{index}.png")
        return str(tmp_path / "photos")

    return make
