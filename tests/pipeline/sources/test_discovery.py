import os
from pathlib import Path
from typing import Any

import pytest

from edgeline.pipeline.config import PrepareConfig
from edgeline.pipeline.sources.discovery import Source, find_source
from edgeline.pipeline.sources.labels import summarize
from edgeline.serve.errors import DataError

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def touch(root: Path, *names: str) -> Path:
    """Make empty files; the sources never open any."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def find(data: Path, **settings: Any) -> Source:
    return find_source(str(data), data.parent / "artifacts", PrepareConfig(**settings))


def listed(source: Source) -> list[tuple[str, str, str | None]]:
    return [(file.name, file.label, file.given) for file in source.files]


def notes(source: Source) -> dict[str, str]:
    """The findings by code."""
    return {finding.code: finding.message for finding in source.findings}


def data_error(data: Path | str, **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        find_source(str(data), Path("artifacts"), PrepareConfig(**settings))
    return caught.value


def test_class_folders_are_the_classes(tmp_path: Path) -> None:
    source = find(touch(tmp_path / "d", "dog/b.jpg", "dog/sub/a.jpg", "cat/c.png", "README.txt", ".DS_Store"))
    assert (source.layout, source.labels, source.given) == ("top", ("cat", "dog"), frozenset())
    assert listed(source) == [("cat/c.png", "cat", None), ("dog/b.jpg", "dog", None), ("dog/sub/a.jpg", "dog", None)]
    assert source.ignored == 1


SPLIT_FOLDERS = {
    "train and val": (["train", "val"], {"train": "train", "val": "test"}),
    "train and valid": (["train", "valid"], {"train": "train", "val": "test"}),
    "train and validation": (["train", "validation"], {"train": "train", "val": "test"}),
    "train and test": (["train", "test"], {"train": "train", "test": "test"}),
    "all three": (["train", "val", "test"], {"train": "train", "val": "val", "test": "test"}),
    "training and testing": (["training", "testing"], {"train": "train", "test": "test"}),
    "train and dev": (["train", "dev"], {"train": "train", "val": "test"}),
    "suffixes": (["train_set", "val2017", "Test-Images"], {"train": "train", "val": "val", "test": "test"}),
    "capitals": (["Train", "Test"], {"train": "train", "test": "test"}),
}


@pytest.mark.parametrize(("folders", "roles"), SPLIT_FOLDERS.values(), ids=SPLIT_FOLDERS)
def test_a_train_folder_makes_the_folders_splits(tmp_path: Path, folders: list[str], roles: dict[str, str]) -> None:
    source = find(touch(tmp_path / "d", *(f"{split}/{label}/1.jpg" for split in folders for label in ("cat", "dog"))))
    assert (source.layout, source.labels) == ("splits", ("cat", "dog"))
    assert {file.given: source.role(file.given) for file in source.files} == roles


def test_train_is_a_class_without_a_held_out_split_next_to_it(tmp_path: Path) -> None:
    source = find(touch(tmp_path / "d", "train/1.jpg", "plane/1.jpg"))
    assert (source.layout, source.labels) == ("top", ("plane", "train"))


def test_a_folder_next_to_the_splits_is_named_in_a_warning(tmp_path: Path) -> None:
    root = touch(tmp_path / "d", "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "raw/1.jpg", "notes.txt")
    source = find(root)
    assert notes(source) == {"folders_unread": "Not read, as not one of the splits: raw/."}
    assert source.ignored == 1


def test_links_to_class_and_split_folders_are_reported(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.jpg")
    root = touch(tmp_path / "d", "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    (root / "test").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "c").symlink_to(tmp_path / "elsewhere")
    error = data_error(root)
    assert error.code == "folder_unread"
    assert "test: the link leads to a folder outside the data; copy it here, or set prepare.follow_links to true, train/c:" in (
        str(error)
    )
    (tmp_path / "elsewhere" / "a").mkdir()
    source = find(root, follow_links=True, ignore=("train/c",))
    assert (source.labels, source.given) == (("a", "b"), {"train", "val", "test"})


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    root = touch(tmp_path / "d", "a/1.jpg", "b/1.jpg")
    (tmp_path / "link").symlink_to("d")
    assert find(tmp_path / "link").root == str(root.resolve())


NAMES = ["-rf", "CON", "NUL.txt", "=cmd()", "<script>", "a,b", 'say "x"', "猫", "قطة", "🐈", "cafe\u0301", "x" * 255]


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[:20] for name in NAMES])
def test_a_class_name_is_not_changed(tmp_path: Path, name: str) -> None:
    assert name in find(touch(tmp_path / "d", f"{name}/1.jpg", "other/1.jpg")).labels


FOLDER_ERRORS = {
    "nothing there": ([], "no_class_folders", "contains nothing"),
    "images and no class folders": (["1.jpg", "2.jpg"], "no_class_folders", "2 files and no folder"),
    "one class": (["cat/1.jpg"], "need_two_classes", "only the class 'cat'"),
    "one folder too high": (["photos/cat/1.jpg", "photos/dog/1.jpg"], "need_two_classes", "if cat, dog are the classes"),
    "only hidden folders": ([".git/1.jpg"], "no_class_folders", "contains nothing"),
    "no train folder": (["val/cat/1.jpg", "test/dog/1.jpg"], "train_missing", "test, val but no train"),
    "two validation folders": (
        ["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"],
        "split_ambiguous",
        "val and valid both mean val",
    ),
    "a test folder without labels": (
        ["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"],
        "no_class_folders",
        "test contains 1 files",
    ),
    "classes that train does not have": (
        ["train/a/1.jpg", "train/b/1.jpg", "val/c/1.jpg", "test/d/1.jpg"],
        "unknown_label",
        "'c' in val, 'd' in test",
    ),
    "a class in another case": (["Cat/1.jpg", "cat/1.jpg", "dog/1.jpg"], "label_collision", "'Cat' and 'cat'"),
    "a class in another case in another split": (
        ["train/Cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg"],
        "label_collision",
        "'Cat' and 'cat'",
    ),
    "composed and decomposed forms of a name": (
        ["caf\u00e9/1.jpg", "cafe\u0301/1.jpg"],
        "label_collision",
        r"'cafe\u0301' and 'caf\xe9'",
    ),
    "names that are not a line of text": (["a\nb/1.jpg", " c/1.jpg", "d/1.jpg"], "label_invalid", r"label 'a\nb'"),
}


@pytest.mark.parametrize(("names", "code", "words"), FOLDER_ERRORS.values(), ids=FOLDER_ERRORS)
def test_a_folder_without_usable_data_is_rejected(tmp_path: Path, names: list[str], code: str, words: str) -> None:
    (tmp_path / "d").mkdir()
    error = data_error(touch(tmp_path / "d", *names))
    assert error.code == code
    assert words in str(error)


def test_a_class_name_that_is_not_utf8_is_rejected_with_a_printable_message(tmp_path: Path) -> None:
    touch(tmp_path, "other/1.jpg")
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    error = data_error(tmp_path)
    assert error.code == "folder_unread"
    assert "caf" in str(error).encode().decode()


def test_a_link_to_the_only_other_class_is_named(tmp_path: Path) -> None:
    root = touch(tmp_path / "d", "cat/1.jpg")
    (root / "dog").symlink_to("/etc")
    assert "dog: the link leads to a folder outside the data" in str(data_error(root))


def test_a_folder_of_links_only_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "dog").symlink_to("/etc")
    assert "dog: the link leads to a folder outside the data" in str(data_error(tmp_path))


def test_a_missing_path_is_an_error_that_names_the_layouts(tmp_path: Path) -> None:
    error = data_error(tmp_path / "photos")
    assert error.code == "data_missing"
    assert "photos does not exist" in str(error)
    assert "path,label" in str(error)


def test_an_archive_is_to_be_extracted(tmp_path: Path) -> None:
    assert "is an archive; extract it" in str(data_error(touch(tmp_path, "photos.tar.gz") / "photos.tar.gz"))


def test_a_home_folder_that_no_shell_expanded_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(touch(tmp_path, "photos/a/1.jpg", "photos/b/1.jpg")))
    assert find_source("~/photos", tmp_path / "artifacts").root == str(tmp_path / "photos")


@pytest.mark.parametrize("name", ["photos.zip", "photo.jpg", "list.txt"])
def test_a_file_that_is_not_csv_is_rejected(tmp_path: Path, name: str) -> None:
    assert data_error(touch(tmp_path, name) / name).code == "layout_unknown"


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "list.csv").write_bytes(text.encode(encoding))
    return folder / "list.csv"


CSV_FILES = {
    "two columns": ("path,label\nx/a.jpg,cat\nb.jpg,dog\n", [("b.jpg", "dog", None, ""), ("x/a.jpg", "cat", None, "")]),
    "columns in another order, and one more": (
        "label,size,path\ncat,7,a.jpg\ndog,8,b.jpg\n",
        [("a.jpg", "cat", None, ""), ("b.jpg", "dog", None, "")],
    ),
    "splits": (
        "path,label,split\na.jpg,cat,train\nb.jpg,dog,train\nc.jpg,dog,valid\n",
        [("a.jpg", "cat", "train", ""), ("b.jpg", "dog", "train", ""), ("c.jpg", "dog", "val", "")],
    ),
    "empty splits, and groups": (
        "path,label,split,group\na.jpg,cat,,g1\nb.jpg,dog,,\n",
        [("a.jpg", "cat", None, "g1"), ("b.jpg", "dog", None, "")],
    ),
    "quotes, blank lines and CR LF": (
        'path,label\r\n\r\n"a,1.jpg","big ""cat"""\r\nb.jpg,dog\r\n',
        [("a,1.jpg", 'big "cat"', None, ""), ("b.jpg", "dog", None, "")],
    ),
    "byte order mark": ("\ufeffpath,label\na.jpg,cat\nb.jpg,dog\n", [("a.jpg", "cat", None, ""), ("b.jpg", "dog", None, "")]),
}


@pytest.mark.parametrize(("text", "rows"), CSV_FILES.values(), ids=CSV_FILES)
def test_a_csv_file_names_the_images(tmp_path: Path, text: str, rows: list[tuple[str, ...]]) -> None:
    source = find(table(tmp_path, text))
    assert source.layout == "csv"
    assert [(file.name, file.label, file.given, file.group) for file in source.files] == rows


def test_the_other_columns_of_a_csv_file_are_attributes_of_the_images(tmp_path: Path) -> None:
    source = find(table(tmp_path, "file;class;site;;hour\na.jpg;cat;north;x;7\nb.jpg;dog;;y;19\n"))
    assert [file.attributes for file in source.files] == [
        (("site", "north"), ("hour", "7")),
        (("site", ""), ("hour", "19")),
    ]


def test_paths_in_a_csv_file_are_absolute_or_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    source = find(table(tmp_path / "lists", f"path,label\n{tmp_path}/lists/in.jpg,a\n/far/off.jpg,b\nsub/../c.jpg,b\n"))
    assert [source.path(file) for file in source.files] == [
        "/far/off.jpg",
        f"{tmp_path.resolve()}/lists/in.jpg",
        f"{tmp_path.resolve()}/lists/sub/../c.jpg",
    ]


CSV_ERRORS = {
    "empty": ("", "csv_invalid", "found nothing"),
    "no header": ("a.jpg,cat\nb.jpg,dog\n", "csv_invalid", "found 'a.jpg,cat'"),
    "no label column": ("path,size\na.jpg,7\n", "csv_invalid", "found 'path,size'"),
    "two label columns": ("path,class,category\na.jpg,a,b\n", "csv_invalid", "'class' and 'category' have the same meaning"),
    "URLs (G5)": ("path,label\nhttps://x.org/a.jpg,cat\nb.jpg,dog\n", "csv_invalid", "is a URL; download the images first"),
    "a short row and a long one": ("path,label\na.jpg\nb.jpg,dog,x\nc.jpg,cat\n", "csv_invalid", "line 2: expected"),
    "an empty label": ("path,label\na.jpg,\nb.jpg,dog\n", "csv_invalid", "line 2: expected a path and a label"),
    "an unknown split": ("path,label,split\na.jpg,cat,holdout\n", "csv_invalid", "got 'holdout'"),
    "splits in some rows": ("path,label,split\na.jpg,a,train\nb.jpg,b,\n", "csv_invalid", "1 of 2 rows have no split"),
    "a NUL in a path": ("path,label\na\0.jpg,cat\n", "csv_invalid", "NUL"),
    "an open quote": ('path,label\n"a.jpg,cat\n', "csv_invalid", "not a CSV file: line 1: unexpected end"),
    "no rows": ("path,label\n", "need_two_classes", "lists no image"),
    "one class": ("path,label\na.jpg,cat\n", "need_two_classes", "only the class 'cat'"),
    "no train": ("path,label,split\na.jpg,cat,val\nb.jpg,dog,test\n", "train_missing", "found test, val"),
    "a class that train does not have": (
        "path,label,split\na.jpg,a,train\nb.jpg,b,train\nc.jpg,c,val\n",
        "unknown_label",
        "'c' in val",
    ),
    "blanks around a label": ("path,label\na.jpg, cat\nb.jpg,dog\n", "label_invalid", "' cat'"),
}


@pytest.mark.parametrize(("text", "code", "words"), CSV_ERRORS.values(), ids=CSV_ERRORS)
def test_a_bad_csv_file_is_rejected(tmp_path: Path, text: str, code: str, words: str) -> None:
    error = data_error(table(tmp_path, text))
    assert error.code == code
    assert words in str(error)


def test_all_bad_rows_are_reported_at_once(tmp_path: Path) -> None:
    error = data_error(table(tmp_path, "path,label,split\na.jpg,,\n,dog,\nc.jpg,cat,x\n"))
    assert all(f"line {number}" in str(error) for number in (2, 3, 4))


def test_a_csv_file_in_another_encoding_is_rejected(tmp_path: Path) -> None:
    assert data_error(table(tmp_path, "path,label\ncafé.jpg,a\nb.jpg,b\n", "latin-1")).code == "csv_invalid"


def test_a_long_list_is_shortened_in_messages() -> None:
    assert summarize(["a", "b"]) == "a, b"
    assert summarize(map(str, range(1005)), limit=2) == "0, 1 and 1,003 more"


REAL = {"hymenoptera": ("splits", 398, 2), "flowers17": ("top", 1360, 17), "xsdd_steel": ("top", 1360, 7)}


@pytest.mark.parametrize(("name", "layout", "files", "classes"), [(n, *r) for n, r in REAL.items()], ids=REAL)
def test_real_data_is_found(tmp_path: Path, name: str, layout: str, files: int, classes: int) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {SHARED / name}: the real photos are not part of the repository")
    source = find_source(str(SHARED / name), tmp_path)
    assert (source.layout, len(source.files), len(source.labels)) == (layout, files, classes)


AMBIGUOUS = {
    "classes inside years (F3)": ["2023/ants/1.jpg", "2023/bees/1.jpg", "2024/ants/2.jpg", "2024/bees/2.jpg"],
    "a hierarchy of classes (F3)": ["Fruit/Apple/1.jpg", "Fruit/Pear/1.jpg", "Vegetables/Leek/1.jpg", "Packages/2.jpg"],
    "the same folders of photos and masks": ["a/images/1.jpg", "a/masks/1.png", "b/images/1.jpg", "b/masks/1.png"],
    "a hierarchy in splits": [
        "train/Fruit/Apple/1.jpg",
        "train/Fruit/Pear/1.jpg",
        "train/Milk/Soy/1.jpg",
        "test/Milk/Soy/2.jpg",
    ],
    "splits in the class folders": ["a/train/1.jpg", "a/test/2.jpg", "b/train/1.jpg", "b/test/2.jpg"],
}


@pytest.mark.parametrize("names", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_two_plausible_readings_stop_and_are_listed(tmp_path: Path, names: list[str]) -> None:
    error = data_error(touch(tmp_path / "d", *names))
    assert error.code == "layout_ambiguous"
    first = "splits" if names[0].startswith("train/") else "top"
    assert f"choose with --layout {first} or --layout leaf" in str(error)


def test_an_ambiguous_folder_is_described_with_its_classes(tmp_path: Path) -> None:
    message = str(data_error(touch(tmp_path / "d", *AMBIGUOUS["classes inside years (F3)"])))
    assert "top: 2 classes '2023' (2 files), '2024' (2 files), or leaf: 2 classes 'ants' (2 files), 'bees' (2 files)" in message


CHOSEN = {
    "classes inside years, top": ("classes inside years (F3)", "top", ("2023", "2024")),
    "classes inside years, leaf": ("classes inside years (F3)", "leaf", ("ants", "bees")),
    "a hierarchy, top": ("a hierarchy of classes (F3)", "top", ("Fruit", "Packages", "Vegetables")),
    "a hierarchy, leaf": ("a hierarchy of classes (F3)", "leaf", ("Apple", "Leek", "Packages", "Pear")),
    "a hierarchy in splits, splits": ("a hierarchy in splits", "splits", ("Fruit", "Milk")),
    "a hierarchy in splits, leaf": ("a hierarchy in splits", "leaf", ("Apple", "Pear", "Soy")),
    "a hierarchy in splits, top": ("a hierarchy in splits", "top", ("test", "train")),
}


@pytest.mark.parametrize(("case", "layout", "labels"), CHOSEN.values(), ids=CHOSEN)
def test_the_layout_can_be_chosen(tmp_path: Path, case: str, layout: str, labels: tuple[str, ...]) -> None:
    source = find(touch(tmp_path / "d", *AMBIGUOUS[case]), layout=layout)
    assert (source.layout, source.labels) == (layout, labels)
    assert bool(source.given) == ("in splits" in case and layout != "top")


CLEAR = {
    "folders in one class only": ["a/1.jpg", "a/more/2.jpg", "b/1.jpg"],
    "one folder in each class": ["a/photos/1.jpg", "b/pictures/1.jpg"],
    "the same folder without images": ["a/1.jpg", "a/meta/info.txt", "b/1.jpg", "b/meta/info.txt"],
}


@pytest.mark.parametrize("names", CLEAR.values(), ids=CLEAR)
def test_folders_in_classes_that_can_only_be_parts_of_them_do_not_stop(tmp_path: Path, names: list[str]) -> None:
    assert find(touch(tmp_path / "d", *names)).labels == ("a", "b")


def test_classes_of_the_same_name_in_several_folders_are_merged_and_reported(tmp_path: Path) -> None:
    source = find(touch(tmp_path / "d", *AMBIGUOUS["classes inside years (F3)"]), layout="leaf")
    assert notes(source)["leaves_merged"] == (
        "Folders of the same name are one class: 'ants' from 2 folders, 'bees' from 2 folders."
    )


@pytest.mark.parametrize(("data", "layout"), [("d", "csv"), ("list.csv", "leaf"), ("d", "splits")])
def test_a_layout_that_the_data_does_not_have_is_an_error(tmp_path: Path, data: str, layout: str) -> None:
    touch(tmp_path / "d", "a/1.jpg", "b/1.jpg")
    table(tmp_path, "path,label\nd/a/1.jpg,a\n")
    assert data_error(tmp_path / data, layout=layout).code in ("layout_unknown", "train_missing")


def test_hidden_folders_with_images_are_named_with_how_to_include_them(tmp_path: Path) -> None:
    """F7: two of four classes began with a dot and were not read."""
    root = touch(tmp_path / "d", ".NET/1.jpg", ".NET/2.jpg", "9mm/1.jpg", "22LR/1.jpg", ".cache/notes.txt")
    assert notes(find(root)) == {
        "hidden_skipped": "Not read, because the name starts with a dot: .NET/ (2 images); rename it, or set "
        "prepare.include_hidden to true."
    }
    assert find(root, include_hidden=True, ignore=(".cache/",)).labels == (".NET", "22LR", "9mm")


def test_leftovers_of_systems_are_skipped_counted_and_never_a_class(tmp_path: Path) -> None:
    """F6: the thumbnails of a NAS became data, and lost+found an empty class."""
    root = touch(tmp_path / "d", "ants/1.jpg", "ants/@eaDir/1.jpg/SYNOPHOTO_THUMB_S.jpg", "bees/2.jpg", "bees/Thumbs.db")
    (root / "lost+found").mkdir()
    (root / "System Volume Information").mkdir()
    source = find(root)
    assert source.labels == ("ants", "bees")
    assert [file.name for file in source.files] == ["ants/1.jpg", "bees/2.jpg"]
    assert notes(source)["leftovers_skipped"] == (
        "Skipped, as left by systems and tools: lost+found/ (Linux), ants/@eaDir/ (Synology), "
        "System Volume Information/ and 1 more (Windows)."
    )


def test_what_edgeline_wrote_into_the_data_folder_is_not_a_class(tmp_path: Path) -> None:
    """F4: the second run in a folder of photos published a class named artifacts."""
    root = touch(tmp_path / "d", "ants/1.jpg", "bees/2.jpg", "artifacts/.edgeline", "artifacts/store/d/1/golden/0.jpg")
    source = find(root)
    assert source.labels == ("ants", "bees")
    assert notes(source) == {"output_skipped": "Not read, because edgeline wrote it: artifacts/."}


def test_a_pattern_without_a_match_and_images_without_a_class_are_reported(tmp_path: Path) -> None:
    root = touch(tmp_path / "d", "a/1.jpg", "b/1.jpg", "stray.jpg", "b/2.png")
    assert notes(find(root, ignore=("*.gif", "*.png"))) == {
        "ignored": "Left out by prepare.ignore: b/2.png.",
        "ignore_unused": "prepare.ignore matches nothing: '*.gif'.",
        "images_without_class": "Images next to the class folders have no class and are not used: stray.jpg.",
    }


def test_a_table_next_to_images_without_class_folders_is_suggested(tmp_path: Path) -> None:
    assert f"use --data {tmp_path}/d/labels.csv" in str(data_error(touch(tmp_path / "d", "1.jpg", "labels.csv")))


HEADERS = {
    "filename,class": "filename,class\na.jpg,cat\nb.jpg,dog\n",
    "image,label": "image,label\na.jpg,cat\nb.jpg,dog\n",
    "file;category": "file;category\na.jpg;cat\nb.jpg;dog\n",
    "the line that Excel writes": "sep=;\r\npath;label\r\na.jpg;cat\r\nb.jpg;dog\r\n",
    "tabs and capitals": "File Name\tLabel\tSize\na.jpg\tcat\t1\nb.jpg\tdog\t2\n",
    "the documented name first": "path,file,label,class_name\na.jpg,0,cat,x\nb.jpg,1,dog,y\n",
}


@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS)
def test_columns_are_recognized_by_common_names(tmp_path: Path, text: str) -> None:
    """F3d."""
    assert listed(find(table(tmp_path, text))) == [("a.jpg", "cat", None), ("b.jpg", "dog", None)]


def test_how_a_table_was_read_is_shown(tmp_path: Path) -> None:
    """F3d."""
    assert notes(find(table(tmp_path, "file;category\na.jpg;cat\nb.jpg;dog\n"))) == {
        "csv_columns": "list.csv: separated by semicolons; columns read: 'file' as path, 'category' as label."
    }
    assert notes(find(table(tmp_path, "path,label\na.jpg,cat\nb.jpg,dog\n"))) == {}


def test_backslashes_and_blanks_in_paths_are_repaired_where_only_then_the_file_exists(tmp_path: Path) -> None:
    r"""G5; on Linux, `odd\name.jpg` is a file name."""
    touch(tmp_path, "x/a.jpg", "b.jpg", "odd\\name.jpg")
    source = find(table(tmp_path, "path,label\nx\\a.jpg,cat\n b.jpg,dog\nodd\\name.jpg,dog\nmissing\\c.jpg,cat\n"))
    assert [file.name for file in source.files] == ["b.jpg", "missing\\c.jpg", "odd\\name.jpg", "x/a.jpg"]
    assert notes(source) == {
        "csv_paths_repaired": "Paths found only with forward slashes or without surrounding blanks: 'x\\\\a.jpg' and 1 more."
    }


def test_a_table_with_groups_beside_class_folders_is_mentioned(tmp_path: Path) -> None:
    data = touch(tmp_path / "d", "dog/b.jpg", "cat/c.png")
    (data / "labels.csv").write_text("path,label,group\ndog/b.jpg,dog,1\ncat/c.png,cat,1\n")
    (data / "prices.csv").write_text("item,price\ntea,2\n")
    (data / "plain.csv").write_text("path,label\ndog/b.jpg,dog\ncat/c.png,cat\n")
    source = find(data)
    assert source.layout == "top"
    [message] = [finding.message for finding in source.findings if finding.code == "table_unread"]
    assert message.startswith("labels.csv is not read, because the folders give the classes; it lists images, with the column")
    assert message.endswith(f"--data {data}/labels.csv")


# Files of prepare.labels


def test_labeled_photos_of_another_folder_join_the_data(tmp_path: Path) -> None:
    data = touch(tmp_path / "d", "dog/b.jpg", "cat/c.png")
    inbox = touch(tmp_path / "inbox", "1.jpg", "2.jpg")
    (inbox / "labels.csv").write_text("path,label\n1.jpg,cat\n2.jpg,owl\n")
    source = find(data, labels=(str(inbox / "labels.csv"),))
    assert source.labels == ("cat", "dog", "owl")
    assert listed(source) == [
        (str(inbox / "1.jpg"), "cat", None),
        (str(inbox / "2.jpg"), "owl", None),
        ("cat/c.png", "cat", None),
        ("dog/b.jpg", "dog", None),
    ]
    assert [Path(source.path(file)).is_file() for file in source.files] == [True] * 4
    assert "2 labeled photos added; new classes: 'owl'" in notes(source)["labels_added"]


def test_labeled_photos_join_the_training_images_of_data_with_splits(tmp_path: Path) -> None:
    data = touch(tmp_path / "d", "train/dog/b.jpg", "train/cat/c.png", "test/dog/e.jpg", "test/cat/f.png")
    (data.parent / "labels.csv").write_text("path,label\nd/train/dog/b.jpg,dog\nnew.jpg,cat\n")
    source = find(data, labels=(str(data.parent / "labels.csv"),))
    assert (str(tmp_path / "new.jpg"), "cat", "train") in listed(source)
    assert len(source.files) == 5  # one row lists an image that the data has with that label


def test_a_labels_file_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    data = touch(tmp_path / "d", "dog/b.jpg", "cat/c.png")
    labels = tmp_path / "labels.csv"
    assert data_error(data, labels=(str(labels),)).code == "labels_missing"
    labels.write_text("path,label,split\nd/dog/b.jpg,dog,train\n")
    assert data_error(data, labels=(str(labels),)).code == "labels_with_splits"
    labels.write_text("path,label\nd/dog/b.jpg,Dog\n")
    assert data_error(data, labels=(str(labels),)).code == "label_collision"
