"""Near-duplicates stay in one split, and a near-copy that is added later joins the split of its photo (F6, D20)."""

import csv
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance

from edgeline.pipeline.config import PipelineConfig, load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import Sample, read_prepared
from edgeline.pipeline.runs.findings import read_findings
from edgeline.pipeline.runs.run import Run
from tests.support.cases import cases

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "hymenoptera" / "train"
EACH = 10


@pytest.fixture(name="data")
def real_photos(tmp_path: Path) -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED}: the real photos are not part of the repository")
    for label in ("ants", "bees"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for path in sorted((SHARED / label).iterdir())[:EACH]:
            picture = Image.open(path).convert("RGB")
            picture.thumbnail((320, 320))
            picture.save(tmp_path / "data" / label / path.name, quality=92)
    return tmp_path / "data"


def config(data: Path, **settings: str) -> PipelineConfig:
    overrides = [f"prepare.{name}={value}" for name, value in settings.items()]
    return load_config(None, overrides, data=str(data), artifacts=str(data.parent / "artifacts"))


def samples(run: Run) -> dict[str, Sample]:
    return {sample.name: sample for sample in read_prepared(run.step("prepare")).samples}


def copy_of(path: Path, name: str, *, kind: str) -> None:
    picture = Image.open(path).convert("RGB")
    width, height = picture.size
    if kind == "reduced":
        picture.resize((width // 2, height // 2)).save(path.with_name(name))
    elif kind == "re-encoded":
        picture.save(path.with_name(name), quality=40)
    elif kind == "cropped":
        picture.crop((width // 40, height // 40, width - width // 40, height - height // 40)).save(path.with_name(name))
    else:
        ImageEnhance.Brightness(picture).enhance(1.1).save(path.with_name(name))


KINDS = ["reduced", "re-encoded", "cropped", "brighter"]


def test_copies_of_every_kind_are_in_the_split_of_their_photo_and_listed(data: Path) -> None:
    photos = {label: sorted((data / label).iterdir()) for label in ("ants", "bees")}
    for index, kind in enumerate(KINDS):
        for label in photos:
            copy_of(photos[label][index], f"zz-{kind}.jpg", kind=kind)
    run, result = prepare(config(data))
    found = samples(run)
    for index, kind in enumerate(KINDS):
        for label in photos:
            photo, copy = found[f"{label}/{photos[label][index].name}"], found[f"{label}/zz-{kind}.jpg"]
            assert (photo.split, photo.group) == (copy.split, copy.group)
    assert len({sample.group for sample in found.values()}) == 2 * EACH
    with (result.folder / "near_duplicates.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(KINDS)
    assert all(row["split"] == row["other_split"] and row["other_path"].partition("/")[2].startswith("zz-") for row in rows)
    assert (result.folder / "near_duplicates.html").read_text().count("<img ") == 2 * len(rows)
    [finding] = read_findings([result.folder])
    assert finding.message.startswith("Near-duplicates, kept in one split (near_duplicates.csv, with pictures")


@pytest.mark.parametrize("kind", cases({kind: kind for kind in KINDS}, quick=["reduced"]))
def test_a_copy_that_is_added_later_joins_the_split_of_its_photo(data: Path, kind: str) -> None:
    before = samples(prepare(config(data))[0])
    photos = [next(photo for photo in before.values() if photo.split == split) for split in ("train", "val", "test")]
    for photo in photos:
        copy_of(Path(photo.path), f"aa-{Path(photo.path).name}", kind=kind)  # before its photo in the order of names
    after = samples(prepare(config(data))[0])
    for photo in photos:
        label, _, file = photo.name.partition("/")
        copy = after[f"{label}/aa-{file}"]
        assert (copy.split, copy.group) == (after[photo.name].split, after[photo.name].group) == (photo.split, photo.group)


def test_a_larger_copy_that_is_added_later_does_not_move_its_photo(data: Path) -> None:
    before = samples(prepare(config(data))[0])
    for path in sorted(data.glob("*/*.jpg")):
        picture = Image.open(path)
        picture.resize((2 * picture.width, 2 * picture.height)).save(path.with_name(f"aa-{path.name}"))
    after = samples(prepare(config(data))[0])
    assert {name: (after[name].split, after[name].group) for name in before} == {
        name: (photo.split, photo.group) for name, photo in before.items()
    }


def test_copies_across_given_splits_are_reported_and_not_moved(data: Path) -> None:
    (data / "train").mkdir()
    for label in ("ants", "bees"):
        (data / label).rename(data / "train" / label)
        (data / "test" / label).mkdir(parents=True)
        for path in sorted((data / "train" / label).iterdir())[:3]:
            path.rename(data / "test" / label / path.name)
    photo = sorted((data / "train" / "ants").iterdir())[0]
    Image.open(photo).resize((150, 100)).save(data / "test" / "ants" / "reduced.jpg")
    run, result = prepare(config(data))
    assert samples(run)["test/ants/reduced.jpg"].split == "test"
    messages = {finding.code: finding.message for finding in read_findings([result.folder])}
    assert f"1 pairs, test/ants/reduced.jpg and train/ants/{photo.name} for example" in messages["near_leaked"]


def test_the_search_can_be_turned_off(data: Path) -> None:
    copy_of(sorted((data / "ants").iterdir())[0], "zz.jpg", kind="reduced")
    run, result = prepare(config(data, near_duplicates="ignore"))
    assert len({sample.group for sample in samples(run).values()}) == 2 * EACH + 1
    assert not read_findings([result.folder])
