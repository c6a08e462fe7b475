import csv
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeline.pipeline.config import PipelineConfig, load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import Prepared, read_attributes, read_prepared
from edgeline.pipeline.runs.findings import read_findings
from edgeline.serve.errors import DataError, EdgelineError

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
TABLES = ["conflicts.csv", "duplicates.csv", "findings.json", "near_duplicates.csv", "near_duplicates.html", "receipt.json"]
TABLES += ["rejected.csv", "samples.csv", "summary.json"]


def photo(path: Path, number: int, **options: Any) -> Path:
    """Write a small image that is different for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", (8, 8), random.Random(number).randbytes(192)).save(path, options.pop("format", "PNG"), **options)
    return path


def photos(folder: Path, count: int, first: int) -> Path:
    for number in range(count):
        photo(folder / f"{number:03}.png", first + number)
    return folder


@pytest.fixture(name="data")
def ten_cats_and_ten_dogs(tmp_path: Path) -> Path:
    photos(tmp_path / "data" / "cat", 10, 1000)
    photos(tmp_path / "data" / "dog", 10, 2000)
    return tmp_path / "data"


def config(data: Path, **settings: Any) -> PipelineConfig:
    artifacts = data.parent / "artifacts"
    own = {key: settings.pop(key) for key in ("seed", "model") if key in settings}
    return load_config(None, [f"prepare.{key}={json.dumps(value)}" for key, value in settings.items()], **own).model_copy(
        update={"data": str(data), "artifacts": str(artifacts)}
    )


def prepared(data: Path, **settings: Any) -> tuple[Prepared, dict[str, Any]]:
    _, result = prepare(config(data, **settings))
    return read_prepared(result.folder), json.loads((result.folder / "summary.json").read_text())


def table(data: Path, name: str, **settings: Any) -> list[dict[str, str]]:
    _, result = prepare(config(data, **settings))
    with (result.folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def findings(data: Path, **settings: Any) -> dict[str, str]:
    """What prepare noticed, by code."""
    _, result = prepare(config(data, **settings))
    return {finding.code: finding.message for finding in read_findings([result.folder])}


def data_error(data: Path, **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        prepare(config(data, **settings))
    return caught.value


def splits(found: Prepared) -> dict[str, str]:
    return {sample.pixels: sample.split for sample in found.samples}


def tree(folder: Path) -> str:
    """Digest of every name, size, time, mode and content below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        digest.update(repr((str(path), state.st_size, state.st_mtime_ns, state.st_mode)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def test_photos_become_samples(data: Path) -> None:
    run, result = prepare(config(data))
    found = read_prepared(result.folder)
    assert found.labels == ("cat", "dog")
    assert sorted(path.name for path in result.folder.iterdir()) == TABLES
    assert run.folder.parent == data.parent / "artifacts" / "runs"
    assert Counter((s.label, s.split) for s in found.samples) == {
        (label, split): count for label in ("cat", "dog") for split, count in (("test", 2), ("val", 2), ("train", 6))
    }
    sample = found.samples[0]
    assert (sample.path, sample.index, sample.width, sample.height) == (str((data / "cat/000.png").resolve()), 0, 8, 8)
    assert sample.sha256 == hashlib.sha256((data / "cat/000.png").read_bytes()).hexdigest()


def test_the_summary_counts_everything(data: Path) -> None:
    (data / "README.txt").write_text("not an image, next to the classes")
    (data / "cat" / "notes.txt").write_text("not an image")
    (data / "cat" / "broken.jpg").write_bytes(b"not an image")
    (data / "cat" / ".hidden.jpg").write_bytes(b"skipped")
    photo(data / "cat" / "really-a-png.jpg", 1)
    shutil.copy(data / "dog" / "000.png", data / "dog" / "copy.png")
    photo(data / "dog" / "same.png", 1000)
    _, summary = prepared(data, seed=7)
    numbers = {key: summary[key] for key in summary if key != "fingerprint"}
    assert numbers == {
        "layout": "top",
        "labels": ["cat", "dog"],
        "seed": 7,
        "counts": {"cat": {"train": 6, "val": 2, "test": 2}, "dog": {"train": 6, "val": 2, "test": 2}},
        "found": 24,
        "kept": 20,
        "rejected": 1,
        "rejected_by_reason": {"not_an_image": 1},
        "ignored": 2,
        "duplicates": 1,
        "leaked": 0,
        "conflicts": 2,
        "near_duplicates": 0,
        "wrong_extension": 1,
    }
    assert set(findings(data, seed=7)) == {"rejected", "wrong_extension", "duplicates", "conflicts", "hidden_skipped"}


def test_a_second_call_reuses_the_result_of_the_first(data: Path) -> None:
    first_run, first = prepare(config(data))
    (data.parent / "artifacts" / "cache" / "images.sqlite").unlink()
    second_run, second = prepare(config(data))
    assert (first.reused, second.reused) == (False, True)
    assert first_run == second_run
    assert not (data.parent / "artifacts" / "cache" / "images.sqlite").exists()


def test_data_with_new_times_in_a_new_folder_is_the_same_data(data: Path, tmp_path: Path) -> None:
    run, _ = prepare(config(data))
    for path in data.rglob("*.png"):
        os.utime(path, (1, 1))
    assert prepare(config(data))[1].reused
    moved = data.rename(tmp_path / "moved")
    again, result = prepare(config(moved, seed=0).model_copy(update={"name": "data"}))
    assert again.folder == run.folder
    assert all(sample.path.startswith(str(moved.resolve())) for sample in read_prepared(result.folder).samples)


CHANGES = {
    "another photo": lambda data: photo(data / "cat" / "new.png", 1),
    "a photo removed": lambda data: (data / "cat" / "000.png").unlink(),
    "other pixels": lambda data: photo(data / "cat" / "000.png", 1),
    "another label": lambda data: (data / "cat" / "000.png").rename(data / "dog" / "moved.png"),
    "another name": lambda data: (data / "cat" / "000.png").rename(data / "cat" / "renamed.png"),
    "something rejected": lambda data: (data / "cat" / "link.png").symlink_to("/etc/hostname"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_data_makes_another_run(data: Path, change: Any) -> None:
    run, _ = prepare(config(data))
    change(data)
    assert prepare(config(data))[0].folder != run.folder


@pytest.mark.parametrize("settings", [{"seed": 1}, {"test_share": 0.3}, {"max_pixels": 1000}], ids=str)
def test_other_settings_make_another_run(data: Path, settings: dict[str, Any]) -> None:
    assert prepare(config(data))[0].folder != prepare(config(data, **settings))[0].folder


def test_a_damaged_result_is_built_again(data: Path) -> None:
    _, result = prepare(config(data))
    before = (result.folder / "samples.csv").read_bytes()
    (result.folder / "samples.csv").write_bytes(before[:-10])
    assert not prepare(config(data))[1].reused
    assert (result.folder / "samples.csv").read_bytes() == before


def test_starting_from_scratch_writes_the_same_tables(data: Path) -> None:
    tables = []
    for _ in range(2):
        _, result = prepare(config(data))
        # The receipt contains the time; the files that it lists are compared.
        tables.append({name: (result.folder / name).read_bytes() for name in TABLES if name != "receipt.json"})
        shutil.rmtree(data.parent / "artifacts")
    assert tables[0] == tables[1]


def test_one_more_photo_moves_at_most_two(data: Path) -> None:
    before, _ = prepared(data)
    for number in range(3):
        photo(data / "dog" / f"new{number}.png", number)
        after, _ = prepared(data)
        known, now = splits(before), splits(after)
        changed = Counter(s.label for s in after.samples if known.get(s.pixels, s.split) != now[s.pixels])
        assert changed["cat"] == 0
        assert changed["dog"] <= 2
        before = after


def test_the_users_files_are_not_changed(data: Path) -> None:
    (data / "cat" / "broken.jpg").write_bytes(b"not an image")
    (data / "cat" / "link.png").symlink_to("000.png")
    before = tree(data)
    prepare(config(data))
    prepare(config(data, seed=1))
    assert tree(data) == before


def test_rejected_and_ignored_files_are_listed_with_their_reason(data: Path) -> None:
    (data / "cat" / "=cmd().jpg").write_bytes(b"")
    (data / "cat" / "notes.txt").write_text("hello")
    with open(os.fsencode(data) + b"/dog/\xff.jpg", "wb"):
        pass
    assert [(row["path"], row["reason"]) for row in table(data, "rejected.csv")] == [
        ("dog/\\xff.jpg", "name_not_utf8"),
        ("cat/=cmd().jpg", "image_empty"),
        ("cat/notes.txt", "ignored"),
    ]
    assert all(row["message"] for row in table(data, "rejected.csv"))


def test_copies_are_listed_with_the_one_that_is_kept(data: Path) -> None:
    photo(data / "cat" / "zz-copy.bmp", 1003, format="BMP")
    found, _ = prepared(data)
    [kept] = [sample for sample in found.samples if sample.path.endswith("cat/003.png")]
    assert table(data, "duplicates.csv") == [{"path": "cat/zz-copy.bmp", "same_as": "cat/003.png", "split": kept.split}]


def test_an_image_with_two_labels_is_listed_and_left_out(data: Path) -> None:
    photo(data / "dog" / "no-dog.png", 1000)
    rows = table(data, "conflicts.csv")
    assert [tuple(row.values()) for row in rows] == [
        ("cat/000.png", "cat", "dog/no-dog.png", "dog"),
        ("dog/no-dog.png", "dog", "cat/000.png", "cat"),
    ]
    assert len(prepared(data)[0].samples) == 19


def given_splits(data: Path, **counts: int) -> Path:
    """Turn the data into train/ with ten images of each class, and other splits of new images."""
    for label in ("cat", "dog"):
        (data / "train").mkdir(exist_ok=True)
        (data / label).rename(data / "train" / label)
        for number, (split, count) in enumerate(counts.items()):
            photos(data / split / label, count, 10_000 * (number + 1) + (500 if label == "cat" else 0))
    return data


GIVEN = {
    "train and val: val is the test": ({"val": 4}, {"train": 8, "val": 2, "test": 4}, "validation was carved from train"),
    "train and test: validation is carved": ({"test": 4}, {"train": 8, "val": 2, "test": 4}, "has no val split"),
    "all three stay": ({"val": 3, "test": 4}, {"train": 10, "val": 3, "test": 4}, None),
}


@pytest.mark.parametrize(("folders", "counts", "warning"), GIVEN.values(), ids=GIVEN)
def test_given_splits_are_kept_and_missing_ones_carved_from_train(
    data: Path, folders: dict[str, int], counts: dict[str, int], warning: str | None
) -> None:
    found, summary = prepared(given_splits(data, **folders))
    assert summary["counts"] == {"cat": counts, "dog": counts}
    assert [warning in text for text in findings(data).values()] == ([True] if warning else [])
    held_out = {sample.path for sample in found.of("test")}
    assert all(f"/{max(folders, key=list(folders).index)}/" in path for path in held_out)


def test_the_other_columns_of_a_csv_file_are_kept_with_the_images(data: Path) -> None:
    rows = [f"{kind}/{number:03}.png,{kind},{number % 2}" for kind in ("cat", "dog") for number in range(10)]
    (data / "list.csv").write_text("\n".join(["path,label,site", *rows]))
    run, result = prepare(config(data / "list.csv"))
    found = read_attributes(result.folder)
    assert found.keys() == {"site"}
    for sample in read_prepared(result.folder).samples:
        assert found["site"][sample.pixels] == str(int(Path(sample.name).stem) % 2)
    (data / "list.csv").write_text("\n".join(["path,label,site", *rows]).replace(",0", ",2"))
    other, _ = prepare(config(data / "list.csv"))
    assert other.folder != run.folder, "another value is other data"
    assert read_attributes(prepare(config(data))[1].folder) == {}


def test_a_csv_file_with_splits_follows_the_same_rule(data: Path) -> None:
    rows = [
        f"{label}/{n:03}.png,{label},{'val' if n < 3 else 'train'},{n // 2}"
        for label in ("cat", "dog")
        for n in (*range(3), *range(4, 10))
    ]
    (data / "list.csv").write_text("\n".join(["path,label,split,group", *rows]))
    found, summary = prepared(data / "list.csv")
    assert summary["counts"]["cat"] == {"train": 4, "val": 2, "test": 3}
    assert {Path(sample.path).name for sample in found.of("test")} == {"000.png", "001.png", "002.png"}


def test_no_group_is_in_two_splits(data: Path) -> None:
    rows = [f"{label}/{n:03}.png,{label},g{n // 2}" for label in ("cat", "dog") for n in range(10)]
    (data / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    found, _ = prepared(data / "list.csv")
    assert {sample.group for sample in found.samples} == {"g0", "g1", "g2", "g3", "g4"}
    assert len({(sample.group, sample.split) for sample in found.samples}) == 5
    assert {sample.split for sample in found.samples} == {"train", "val", "test"}


def test_leaking_images_are_dropped_from_training_and_reported(data: Path) -> None:
    given_splits(data, val=3)
    shutil.copy(data / "train" / "cat" / "000.png", data / "val" / "cat" / "again.png")
    found, summary = prepared(data)
    assert summary["leaked"] == 1
    assert any("kept only in the held-out one: 1" in text for text in findings(data).values())
    [row] = table(data, "duplicates.csv")
    assert row == {"path": "train/cat/000.png", "same_as": "val/cat/again.png", "split": "test"}
    assert len(found.of("test")) == 7


def test_a_strong_imbalance_is_reported(data: Path) -> None:
    photos(data / "cat", 61, 1000)
    for path in sorted((data / "dog").iterdir())[3:]:
        path.unlink()
    assert "61 images of 'cat', 3 of 'dog'" in findings(data)["imbalance"]


def test_a_given_split_without_a_class_is_reported(data: Path) -> None:
    given_splits(data, val=3, test=3)
    shutil.rmtree(data / "test" / "cat")
    assert findings(data) == {"class_absent_in_test": "No image in test of 'cat': these classes are not measured there."}


def empty_class(data: Path) -> None:
    (data / "bird").mkdir()
    (data / "ant").mkdir()
    (data / "ant" / "notes.txt").write_text("none yet")


def two_small_classes(data: Path) -> None:
    photos(data / "ant", 2, 1)
    photos(data / "bee", 1, 10)


def copies_only(data: Path) -> None:
    for number in range(5):
        photo(data / "ant" / f"{number}.png", 1)


def many_broken(data: Path) -> None:
    for number in range(4):
        (data / "cat" / f"broken{number}.jpg").write_bytes(b"")


def empty_split(data: Path) -> None:
    given_splits(data, val=3)
    (data / "test" / "cat").mkdir(parents=True)


def leaking(data: Path) -> None:
    given_splits(data, test=3)
    shutil.copy(data / "train" / "cat" / "000.png", data / "test" / "cat" / "again.png")


def train_emptied_by_leaks(data: Path) -> None:
    given_splits(data, test=3, val=3)
    for number in range(10):
        shutil.copy(data / "train" / "cat" / f"{number:03}.png", data / "test" / "cat" / f"again{number}.png")


ERRORS = {
    "empty classes": (empty_class, {}, "empty_class", "no usable image of 'ant', 'bird'"),
    "too few in two classes": (two_small_classes, {}, "too_few_images", "'ant' has 2, 'bee' has 1;"),
    "five copies of one image": (copies_only, {}, "too_few_images", "'ant' has 1;"),
    "more required of each class": (lambda data: None, {"min_per_class": 11}, "too_few_images", "'cat' has 10, 'dog' has 10;"),
    "too many broken files": (many_broken, {}, "too_many_rejected", "4 of 24 files cannot be used"),
    "a split without images": (empty_split, {}, "empty_split", "no usable image in test"),
    "leaking images": (leaking, {"on_leakage": "stop"}, "split_leakage", "train/cat/000.png (train)"),
    "nothing left to train on": (train_emptied_by_leaks, {}, "too_few_images", "'cat' has 0 in train"),
}


@pytest.mark.parametrize(("change", "settings", "code", "words"), ERRORS.values(), ids=ERRORS)
def test_data_that_cannot_be_trained_on_is_rejected(
    data: Path, change: Any, settings: dict[str, Any], code: str, words: str
) -> None:
    change(data)
    error = data_error(data, **settings)
    assert error.code == code
    assert words in str(error)


@pytest.mark.parametrize("each", [1, 2])
def test_a_class_of_one_or_two_images_is_kept_if_the_data_has_its_own_splits_and_this_is_set(data: Path, each: int) -> None:
    given_splits(data, val=3, test=4)
    photos(data / "train" / "owl", each, 50_000)
    error = data_error(data)
    assert f"'owl' has {each};" in str(error)
    assert "or set prepare.min_per_class=1, because the data has its own val and test splits" in str(error)
    found, summary = prepared(data, min_per_class=1)
    assert summary["counts"]["owl"] == {"train": each, "val": 0, "test": 0}
    assert found.labels == ("cat", "dog", "owl")


ABSENT = {
    "no splits": ({}, "this has no test/ and no val/; add them"),
    "train and val": ({"val": 4}, "this has no test/; add it"),
    "train and test": ({"test": 4}, "this has no val/; add it"),
}


@pytest.mark.parametrize("min_per_class", [1, 2])
@pytest.mark.parametrize(("splits", "words"), ABSENT.values(), ids=ABSENT)
def test_one_or_two_images_for_each_class_need_given_splits(
    data: Path, splits: dict[str, int], words: str, min_per_class: int
) -> None:
    if splits:
        given_splits(data, **splits)
    error = data_error(data, min_per_class=min_per_class)
    assert error.code == "too_few_images"
    assert words in str(error)
    assert str(error).endswith("or set prepare.min_per_class=3")


def test_too_few_groups_for_the_splits_are_rejected(data: Path) -> None:
    rows = [f"{label}/{n:03}.png,{label},{label}{n % 2}" for label in ("cat", "dog") for n in range(10)]
    (data / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    error = data_error(data / "list.csv")
    assert error.code == "too_few_images"
    assert "'cat' has 2 in train that can be in different splits, and 3 are needed" in str(error)


def test_shared_groups_that_cannot_give_every_class_a_part_of_every_split_are_rejected(data: Path) -> None:
    """Each of three classes has three groups, but no assignment gives all classes a part of every split."""
    photos(data / "ant", 9, 3000)
    shared = {"ant": ["ab", "ac", "bc"], "cat": ["ab", "ac", "abc"], "dog": ["ab", "bc", "abc"]}
    rows = [f"{label}/{n:03}.png,{label},{groups[n % 3]}" for label, groups in shared.items() for n in range(9)]
    (data / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    error = data_error(data / "list.csv")
    assert error.code == "too_few_images"
    assert "make the groups smaller" in str(error)


def test_a_group_in_two_given_splits_is_rejected(data: Path) -> None:
    rows = [
        f"{label}/{n:03}.png,{label},{'test' if n < 3 else 'train'},g{n // 2}" for label in ("cat", "dog") for n in range(10)
    ]
    (data / "list.csv").write_text("\n".join(["path,label,split,group", *rows]))
    error = data_error(data / "list.csv")
    assert error.code == "group_leakage"
    assert "g1 (" in str(error)


def test_missing_files_of_a_csv_file_are_rejected(data: Path) -> None:
    rows = [f"{label}/{n:03}.png,{label}" for label in ("cat", "dog") for n in range(10)]
    (data / "list.csv").write_text("\n".join(["path,label", *rows, "gone.png,cat", "cat,cat"]))
    assert [(row["path"], row["reason"]) for row in table(data / "list.csv", "rejected.csv")] == [
        ("cat", "not_a_regular_file"),
        ("gone.png", "unreadable"),
    ]


def test_data_is_prepared_after_it_was_rejected_and_fixed(data: Path) -> None:
    many_broken(data)
    data_error(data)
    for path in data.glob("cat/broken*"):
        path.unlink()
    assert len(prepared(data)[0].samples) == 20


IN_A_PROCESS = """
import json, sys
from edgeline.pipeline.config import parse_config
from edgeline.pipeline.data.prepare import prepare
prepare(parse_config(json.loads(sys.argv[1])))
heavy = {"torch", "torchvision", "sklearn", "scipy", "pandas", "onnx", "onnxruntime", "prefect"}
print(sorted(sys.modules.keys() & heavy))
"""


def start(data: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", IN_A_PROCESS, config(data).model_dump_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
def test_several_processes_can_prepare_the_same_data(data: Path) -> None:
    several = [start(data) for _ in range(2)]
    outcomes = [(process.communicate()[1], process.returncode) for process in several]
    assert any(status == 0 for _, status in outcomes)
    assert all(status == 0 or "is in use by process" in errors for errors, status in outcomes)
    assert prepare(config(data))[1].reused


def test_preparing_imports_nothing_heavy(data: Path) -> None:
    output, errors = start(data).communicate()
    assert (output, errors) == ("[]\n", "")


AS_NOBODY = """
import json, os, sys
from edgeline.pipeline.config import parse_config
from edgeline.pipeline.data.prepare import prepare
warm, real = map(parse_config, json.loads(sys.argv[1]))
prepare(warm)                   # imports all that is needed, which another user may be unable to
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    if not os.access(sys.modules["edgeline.pipeline.data.prepare"].__file__, os.R_OK):
        sys.exit(77)
print(prepare(real)[1].folder)
"""


@pytest.fixture(name="public")
def folder_that_others_may_enter() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        yield Path(place)
        for folder in Path(place).glob("data/**/"):
            folder.chmod(0o755)  # a folder without permissions cannot be deleted


def test_unreadable_files_are_rejected_and_a_read_only_folder_suffices(public: Path) -> None:
    """Root can read everything, so a process of root becomes another user."""
    data = public / "data"
    for label, first in (("cat", 1000), ("dog", 2000)):
        photos(data / label, 10, first)
    photo(data / "cat" / "secret.png", 1).chmod(0)
    photos(data / "dog" / "locked", 2, 3000).chmod(0)
    data.chmod(0o555)
    warm = config(data).model_copy(update={"artifacts": str(public / "warm")})
    arguments = json.dumps([warm.model_dump(), config(data).model_dump()])
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, arguments], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this is root, and another user may not enter the folder of the source code")
    assert done.stderr == ""
    with Path(done.stdout.strip(), "rejected.csv").open(newline="") as file:
        rows = [(row["path"], row["reason"], row["message"]) for row in csv.DictReader(file)]
    assert rows == [(name, "unreadable", "cannot be read: Permission denied") for name in ("dog/locked", "cat/secret.png")]


def real(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {SHARED / name}: the real photos are not part of the repository")
    return SHARED / name


@pytest.mark.long
def test_all_ants_and_bees_are_valid_and_their_val_split_is_the_test_split(tmp_path: Path) -> None:
    _, result = prepare(load_config(data=str(real("hymenoptera")), artifacts=str(tmp_path)))
    summary = json.loads((result.folder / "summary.json").read_text())
    assert (summary["found"], summary["kept"], summary["rejected"]) == (398, 398, 0)
    assert [summary["counts"][label]["test"] for label in ("ants", "bees")] == [70, 83]
    assert any(sample.path.endswith("imageNotFound.gif") for sample in read_prepared(result.folder).samples)


@pytest.mark.long
def test_the_duplicates_among_steel_defects_are_found(tmp_path: Path) -> None:
    _, result = prepare(load_config(data=str(real("xsdd_steel")), artifacts=str(tmp_path)))
    summary = json.loads((result.folder / "summary.json").read_text())
    assert (summary["found"], summary["duplicates"], summary["conflicts"], summary["kept"]) == (1360, 9, 0, 1351)


@pytest.mark.long
def test_the_digits_are_prepared_in_the_same_way(tmp_path: Path) -> None:
    _, result = prepare(load_config(data="digits", artifacts=str(tmp_path)))
    found = read_prepared(result.folder)
    assert found.labels == tuple("0123456789")
    assert (len(found.samples), len(found.of("test")), len(found.of("val"))) == (1797, 359, 287)


def test_an_unusable_cache_is_a_known_error(data: Path) -> None:
    (data.parent / "artifacts").mkdir()
    (data.parent / "artifacts" / "cache").write_text("in the way")
    with pytest.raises(EdgelineError) as caught:
        prepare(config(data))
    assert caught.value.code == "cache_unusable"


def test_pictures_with_two_labels_are_the_error_if_a_class_has_too_few_others(data: Path) -> None:
    """F10: the message was that the class has no images."""
    for path in (data / "cat").iterdir():
        shutil.copy(path, data / "dog" / f"again-{path.name}")
    error = data_error(data)
    assert error.code == "label_conflict"
    assert "'cat' keeps 0 images, because 10 are also in 'dog'" in str(error)
    with open(re.findall(r"listed in (.+)\)", str(error))[0], newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 20


def test_masks_next_to_the_photos_are_named_and_can_be_left_out(data: Path) -> None:
    """F3b: 1,267 masks became photos of their class."""
    for number, name in enumerate(("cat/000.gif", "cat/001_mask.png", "dog/000.bmp")):
        Image.new("L", (8, 8), number).save(data / name)
    Image.new("L", (8, 8), 99).save(data / "cat" / "a-black-cat.png")
    message = findings(data)["masks"]
    assert "are read as images: 3 files, cat/000.gif for example" in message
    assert '--set \'prepare.ignore=["*.bmp", "*.gif", "*.png"]\'' in message
    assert "masks" not in findings(data, ignore=["*.gif", "*_mask.png", "*.bmp"])


def test_artifacts_in_the_data_folder_do_not_change_a_second_run(data: Path) -> None:
    """F4: `edgeline run --data .` in the folder of photos, twice."""
    inside = config(data).model_copy(update={"artifacts": str(data / "artifacts")})
    first, _ = prepare(inside)
    (data / "artifacts" / "store" / "data" / "1").mkdir(parents=True)
    photo(data / "artifacts" / "store" / "data" / "1" / "golden.png", 5)
    again, result = prepare(inside)
    assert (again.folder, result.reused) == (first.folder, True)
    elsewhere, _ = prepare(config(data))
    assert read_prepared(elsewhere.step("prepare")).labels == ("cat", "dog")
