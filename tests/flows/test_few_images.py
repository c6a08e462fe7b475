"""Classes of one image, from the photos to an evaluated checkpoint."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeline.flows.steps import execute
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.evaluation.report import read_evaluation
from edgeline.pipeline.models.checkpoint import read_settings

COUNTS = {"train": {"red": 1, "green": 1, "blue": 1}, "val": {"red": 1, "green": 1}, "test": {"red": 1, "green": 2}}
"""Of `blue` there is one image in all."""
COLORS = {"red": (200, 40, 30), "green": (30, 190, 50), "blue": (40, 30, 210)}
TINY = ["model=timm:test_efficientnet", "weights=none", "preprocess.size=32", "prepare.min_per_class=1", "train.epochs=5"]


@pytest.fixture(name="data")
def photos_of_three_colors(tmp_path: Path) -> Path:
    chance = random.Random(0)
    for split, counts in COUNTS.items():
        for label, count in counts.items():
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(count):
                noise = np.frombuffer(chance.randbytes(40 * 32 * 3), np.uint8).reshape(32, 40, 3) // 4
                pixels = (np.array(COLORS[label]) * 0.7 + noise).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{number}.png")
    return tmp_path / "data"


@pytest.mark.long
@pytest.mark.parametrize(
    "settings", [["train.strategy=auto"], ["train.strategy=head", "train.sweep=true"]], ids=["auto", "a sweep"]
)
def test_one_image_of_each_class_is_enough_for_an_evaluated_checkpoint(settings: list[str], data: Path, tmp_path: Path) -> None:
    run, _ = prepare(load_config(None, [*TINY, *settings], data=str(data), artifacts=str(tmp_path / "artifacts")))
    execute("train", run)
    execute("evaluate", run)
    assert read_settings(run.step("train")).labels == ("blue", "green", "red")
    with np.load(run.step("train") / "out_of_fold.npz") as held_out:
        assert sorted(held_out["targets"].tolist()) == [1, 1, 2, 2]  # the only blue image is never held out
        assert np.isfinite(held_out["logits"]).all()
    evaluation = read_evaluation(run.step("evaluate"))
    assert (evaluation.images, [entry.support for entry in evaluation.classes]) == (3, [0, 2, 1])
