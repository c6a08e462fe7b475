"""The data sets that strategies are compared on: real photos, whole or with few images of each class, with fixed splits.

    write_subset("flowers17-10", seed=0, Path("build/data"))

A subset is a CSV file with the columns path, label, split and group. Photos are ordered by a hash of the seed and their name.
"""

import csv
import hashlib
from collections import defaultdict
from pathlib import Path

from common import SHARED

from edgeline.pipeline.sources.digits import write_digits

SUBSETS = {
    "hymenoptera": "its own split, 245 photos",
    "flowers17": "all 1,360, a quarter of them test",
    "flowers17-10": "10 photos of each class, 20 others are test",
    "xsdd_steel": "all 1,360, a quarter of them test",
    "blood_cells-5": "5 cells of each class; up to 100 cells of each class from other smears are test",
    "digits-20": "20 images of each class, 40 others are test",
}
"""By name: what it is."""
EACH = {f"flowers17-{count}": (count, 10, 30) for count in (2, 3, 5, 10)} | {"digits-20": (20, 20, 60)}
"""Of each class: number of training images, and position of the first test image and of the one after the last."""


def write_subset(name: str, seed: int, folder: Path) -> Path:
    """Write the CSV file of a subset, or return the data set's own folder if that defines the split.

    Raises:
        SystemExit: the photos are not on this machine.
    """
    source = name.rpartition("-")[0] or name
    if source == "digits":
        photos = write_digits(folder / "digits")
    elif (photos := SHARED / source).is_dir():
        pass
    else:
        raise SystemExit(f"{photos} does not exist; {name} is made of it")
    if name == "hymenoptera":
        return photos
    path = folder / f"{name}-{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split", "group"))
        writer.writerows(_rows(name, seed, photos))
    return path


def _rows(name: str, seed: int, photos: Path) -> list[tuple[str, str, str, str]]:
    if name == "blood_cells-5":
        return _cells_of_few_smears(photos, seed)
    by_class: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(photos.glob("*/*")):
        by_class[path.parent.name].append(path)
    rows = []
    for label, paths in sorted(by_class.items()):
        paths.sort(key=lambda path: _order(seed, f"{label}/{path.name}"))
        most = len(paths) - len(paths) // 4
        train, first, end = EACH.get(name, (most, most, len(paths)))
        rows += [(str(path), label, "train", "") for path in paths[:train]]
        rows += [(str(path), label, "test", "") for path in paths[first:end]]
    return rows


def _cells_of_few_smears(photos: Path, seed: int) -> list[tuple[str, str, str, str]]:
    with (photos / "labels.csv").open(newline="") as file:
        cells = sorted(csv.DictReader(file), key=lambda row: _order(seed, row["path"]))
    smears = sorted({cell["group"] for cell in cells}, key=lambda smear: _order(seed, smear))
    training = set(smears[: len(smears) // 3])
    count: dict[tuple[str, str], int] = defaultdict(int)
    rows = []
    for cell in cells:
        split, maximum = ("train", 5) if cell["group"] in training else ("test", 100)
        if count[cell["label"], split] < maximum:
            count[cell["label"], split] += 1
            rows.append((str(photos / cell["path"]), cell["label"], split, cell["group"]))
    return rows


def _order(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
