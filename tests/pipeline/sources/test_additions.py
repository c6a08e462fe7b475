"""Photos are added to a data set of each layout, and taken out again."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeline.pipeline.config import PipelineConfig, load_config
from edgeline.pipeline.sources.additions import apply_additions, parse_classes, plan_additions
from edgeline.pipeline.sources.discovery import find_source
from edgeline.serve.errors import EdgelineError


def photo(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 255 - shade, shade // 2)).save(path)
    return path


def folders(root: Path) -> str:
    for label, shade in (("crow", 0), ("wren", 50)):
        for number in range(3):
            photo(root / label / f"{number}.png", shade + number)
    return str(root)


def splits(root: Path) -> str:
    folders(root / "Training")
    folders(root / "val")
    return str(root)


def table(root: Path) -> str:
    folders(root)
    rows = [(path.relative_to(root).as_posix(), path.parent.name, "train") for path in sorted(root.rglob("*.png"))]
    text = "Image;Class;Subset\r\n" + "".join(f"{';'.join(row)}\r\n" for row in rows)
    (root / "birds.csv").write_text(text.removesuffix("\r\n"), newline="")
    return str(root / "birds.csv")


LAYOUTS: dict[str, tuple[Callable[[Path], str], str | None]] = {
    "class folders": (folders, ""),
    "nested class folders": (lambda root: (folders(root / "a" / "b"), str(root))[1], "a/b"),
    "splits": (splits, "Training"),
    "a CSV file": (table, None),
}


@pytest.fixture(name="new")
def _new(tmp_path: Path) -> Path:
    """Two photos of which one has the name of a photo that is there, and a file that is no photo."""
    photo(tmp_path / "new" / "0.png", 200)
    photo(tmp_path / "new" / "inner" / "owl.png", 201)
    (tmp_path / "new" / "notes.txt").write_text("two owls")
    return tmp_path / "new"


def config_of(data: str, tmp_path: Path) -> PipelineConfig:
    layout = "leaf" if (Path(data) / "a").is_dir() else "auto"
    return load_config(None, [f"prepare.layout={layout}"], data=data, artifacts=str(tmp_path / "artifacts"))


def content(root: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def labels_of(config: PipelineConfig) -> list[str]:
    source = find_source(config.data, Path(config.artifacts), config.prepare)
    return sorted(file.label for file in source.files if file.given in (None, "train"))


@pytest.mark.parametrize("label", ["owl", "crow"])
@pytest.mark.parametrize(("write", "place"), LAYOUTS.values(), ids=LAYOUTS)
def test_photos_become_training_data_of_their_class_and_undo_leaves_the_data_as_before(
    tmp_path: Path, new: Path, write: Callable[[Path], str], place: str | None, label: str
) -> None:
    config = config_of(write(tmp_path / "data"), tmp_path)
    before = labels_of(config), content(tmp_path / "data")
    additions = plan_additions(config, {label: [new]})
    assert content(tmp_path / "data") == before[1], "a plan writes nothing"
    undo = apply_additions(additions)
    assert labels_of(config) == sorted([*before[0], label, label])
    if place is not None:
        copies = content(tmp_path / "data").keys() - before[1].keys() - {f"{place}/{label}".removeprefix("/")}
        assert {str(Path(copy).parent) for copy in copies} == {f"{place}/{label}".removeprefix("/")}
    undo()
    assert (labels_of(config), content(tmp_path / "data")) == before
    assert len([path for path in new.rglob("*") if path.is_file()]) == 3


def test_a_csv_file_keeps_its_columns_delimiter_and_line_ends(tmp_path: Path, new: Path) -> None:
    config = config_of(table(tmp_path / "data"), tmp_path)
    apply_additions(plan_additions(config, {"owl": [new]}))
    text = Path(config.data).read_bytes().decode()
    assert text.count("\r\n") == text.count("\n") == 9
    last = list(csv.DictReader(text.splitlines(), delimiter=";"))[-1]
    assert last == {"Image": str(new / "inner" / "owl.png"), "Class": "owl", "Subset": "train"}


def test_what_will_be_added_is_described(tmp_path: Path, new: Path) -> None:
    config = config_of(folders(tmp_path / "data"), tmp_path)
    (new / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    lines = plan_additions(config, {"owl": [new]}).lines()
    assert lines[0] == f"new class 'owl': 2 photos added as copies in {tmp_path / 'data' / 'owl'}/"
    assert lines[1].startswith(f"not added: {new / 'broken.jpg'}: ")


def test_a_new_class_whose_name_is_close_to_a_known_one_is_asked_about(tmp_path: Path, new: Path) -> None:
    config = config_of(folders(tmp_path / "data"), tmp_path)
    known = plan_additions(config, {"owl": [new]}).known_labels[0]
    [line, *_] = plan_additions(config, {f"{known}s": [new]}).lines()
    assert line.startswith(f"new class (not {known!r}?) '{known}s': ")


def test_the_same_call_again_adds_nothing(tmp_path: Path, new: Path) -> None:
    config = config_of(folders(tmp_path / "data"), tmp_path)
    apply_additions(plan_additions(config, {"owl": [new]}))
    again = plan_additions(config, {"owl": [new]})
    assert (again.photos, again.present["owl"]) == ((), 2)
    assert again.lines() == ["class 'owl': 0 photos added, 2 photos already in the data"]


def test_undo_keeps_what_someone_has_changed_since(tmp_path: Path, new: Path) -> None:
    config = config_of(folders(tmp_path / "data"), tmp_path)
    undo = apply_additions(plan_additions(config, {"owl": [new]}))
    photo(tmp_path / "data" / "owl" / "owl.png", 90)
    undo()
    assert [path.name for path in (tmp_path / "data" / "owl").iterdir()] == ["owl.png"]


def test_a_copy_that_fails_leaves_the_data_as_before(tmp_path: Path, new: Path) -> None:
    config = config_of(folders(tmp_path / "data"), tmp_path)
    additions, before = plan_additions(config, {"owl": [new]}), content(tmp_path / "data")
    (new / "inner" / "owl.png").unlink()
    with pytest.raises(EdgelineError, match="the data is as before"):
        apply_additions(additions)
    assert content(tmp_path / "data") == before


Prepare = Callable[[Path, Path], dict[str, list[Path]]]
REJECTED: dict[str, tuple[Prepare, str]] = {
    "a missing folder": (lambda new, data: {"owl": [new / "gone"]}, r"gone does not exist; expected a folder with photos"),
    "a file": (lambda new, data: {"owl": [new / "0.png"]}, r"0.png is not a folder"),
    "a folder without images": (lambda new, data: {"owl": [_text_only(new)]}, r"no readable image of 'owl' in .*text"),
    "a path as a class": (lambda new, data: {"../owl": [new]}, r"class '../owl' cannot be the name of a folder"),
    "a hidden class": (lambda new, data: {".owl": [new]}, r"class '.owl' cannot be the name of a folder"),
    "a class that differs in case": (lambda new, data: {"Crow": [new]}, r"differ only in case"),
    "a photo of another class": (lambda new, data: {"crow": [data / "wren"]}, r"0.png is in the data, .* as 'wren' too"),
    "a photo given twice": (lambda new, data: {"owl": [new], "kite": [new]}, r"among the new photos, as 'owl' too"),
}


def _text_only(new: Path) -> Path:
    (new / "text").mkdir()
    (new / "text" / "notes.txt").write_text("nothing here")
    return new / "text"


@pytest.mark.parametrize(("given", "message"), REJECTED.values(), ids=REJECTED)
def test_bad_input_is_rejected_in_one_line_before_anything_is_written(
    tmp_path: Path, new: Path, given: Prepare, message: str
) -> None:
    config = config_of(folders(tmp_path / "data"), tmp_path)
    before = content(tmp_path / "data")
    with pytest.raises(EdgelineError, match=message) as rejection:
        plan_additions(config, given(new, tmp_path / "data"))
    assert "\n" not in str(rejection.value)
    assert content(tmp_path / "data") == before


def test_the_embedded_digits_and_data_that_is_gone_are_rejected(tmp_path: Path, new: Path) -> None:
    with pytest.raises(EdgelineError, match="digits cannot be extended"):
        plan_additions(config_of("digits", tmp_path), {"owl": [new]})
    with pytest.raises(EdgelineError, match="does not exist"):
        plan_additions(config_of(str(tmp_path / "gone"), tmp_path), {"owl": [new]})


ARGUMENTS: dict[str, tuple[list[str], Any]] = {
    "one class": (["owl=new"], {"owl": [Path("new")]}),
    "two folders of a class": (["owl=a", "owl=b=c"], {"owl": [Path("a"), Path("b=c")]}),
}


@pytest.mark.parametrize(("arguments", "expected"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_name_a_class_and_a_folder(arguments: list[str], expected: dict[str, list[Path]]) -> None:
    assert parse_classes(arguments) == expected


@pytest.mark.parametrize("argument", ["owl", "=new", "owl=", " =new"])
def test_other_arguments_are_rejected(argument: str) -> None:
    with pytest.raises(EdgelineError, match="is not class=DIR"):
        parse_classes([argument])
