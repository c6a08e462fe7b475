"""Faults of a published artifact. Those that a capable attacker could leave are sealed: every hash is correct again."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from tests.support.faults.surgery import mutate
from tests.support.faults.weights import head_of_an_older_run

Seal = Callable[..., Path]


def read(folder: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return held


def change(folder: Path, **fields: Any) -> None:
    """Change the manifest and nothing else."""
    (folder / "manifest.json").write_text(json.dumps(read(folder) | fields))


def shift_labels(folder: Path, seal: Seal) -> None:
    labels = read(folder)["labels"]
    relabel(folder, seal, [*labels[1:], labels[0]])


def relabel(folder: Path, seal: Seal, labels: list[str]) -> None:
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    seal(folder, labels=labels)


# Labels.


def labels_shifted_by_one(folder: Path, seal: Seal) -> None:
    shift_labels(folder, seal)


def labels_shifted_by_one_and_the_models_own_removed(folder: Path, seal: Seal) -> None:
    graph = onnx.load(folder / "model.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, folder / "model.onnx")
    shift_labels(folder, seal)


def a_labels_file_in_another_order(folder: Path, seal: Seal) -> None:
    lines = (folder / "labels.txt").read_text().splitlines()
    (folder / "labels.txt").write_text("".join(f"{line}\n" for line in reversed(lines)))
    seal(folder)


def a_label_twice(folder: Path, seal: Seal) -> None:
    labels = read(folder)["labels"]
    relabel(folder, seal, [*labels[:-1], labels[0]])


def a_label_too_many(folder: Path, seal: Seal) -> None:
    relabel(folder, seal, [*read(folder)["labels"], "cloud"])


# Metadata.


def a_newer_schema(folder: Path, seal: Seal) -> None:
    change(folder, schema="edgeline.artifact/2")


def a_variant_that_names_another_file(folder: Path, seal: Seal) -> None:
    variants = read(folder)["variants"]
    change(folder, variants=[variants[0] | {"file": "model.onxx"}, *variants[1:]])


def an_accuracy_that_is_not_a_number(folder: Path, seal: Seal) -> None:
    change(folder, metrics={"accuracy": float("nan")})


def a_size_that_is_not_the_models(folder: Path, seal: Seal) -> None:
    change(folder, preprocess=read(folder)["preprocess"] | {"height": 240, "width": 240})


def another_filter(folder: Path, seal: Seal) -> None:
    change(folder, preprocess=read(folder)["preprocess"] | {"interpolation": "bilinear"})


def another_crop(folder: Path, seal: Seal) -> None:
    change(folder, preprocess=read(folder)["preprocess"] | {"crop_fraction": 1.0})


def pictures_as_blue_green_red(folder: Path, seal: Seal) -> None:
    change(folder, preprocess=read(folder)["preprocess"] | {"color": "BGR"})


def an_unlimited_tolerance(folder: Path, seal: Seal) -> None:
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    (folder / "golden" / "golden.json").write_text(json.dumps(golden | {"tolerance": float("inf")}))
    seal(folder)


# Files.


def one_bit(folder: Path, seal: Seal) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def a_truncated_model(folder: Path, seal: Seal) -> None:
    os.truncate(folder / "model.onnx", 1000)


def a_file_that_is_missing(folder: Path, seal: Seal) -> None:
    (folder / "card.md").unlink()


def a_file_too_many(folder: Path, seal: Seal) -> None:
    (folder / "golden" / "extra.png").touch()


def a_link_in_place_of_a_file(folder: Path, seal: Seal) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere")


def two_golden_pictures_swapped(folder: Path, seal: Seal) -> None:
    one, other = (
        folder / sample["file"] for sample in json.loads((folder / "golden" / "golden.json").read_text())["samples"][1:3]
    )
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    seal(folder)


def the_model_of_an_older_run(folder: Path, seal: Seal) -> None:
    older = mutate((folder / "model.onnx").read_bytes(), head_of_an_older_run)
    (folder / "model.onnx").write_bytes(older)
    verification = json.loads((folder / "verification.json").read_text())
    verification["model_sha256"] = hashlib.sha256(older).hexdigest()
    (folder / "verification.json").write_text(json.dumps(verification))
    seal(folder)
