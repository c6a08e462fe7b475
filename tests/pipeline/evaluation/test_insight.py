"""What an evaluation writes about data and mistakes, on a run whose labels and answers were changed on purpose."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.evaluation.insight import (
    PICTURES,
    Evaluated,
    Insight,
    check_labels,
    picture_mistakes,
    read_insight,
    write_insight,
)
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.runs.run import Run
from edgeline.serve.preprocess import PreprocessSpec


@pytest.fixture(name="evaluated")
def with_planted_errors(
    make_run: Callable[..., Run], shapes: Prepared, small: Network, spec: PreprocessSpec, tmp_path: Path
) -> Evaluated:
    """One training label is wrong, and two test images are classified wrongly."""
    disc, stripes = shapes.of("train")[3], shapes.labels.index("stripes")
    wrong = replace(disc, label="stripes", index=stripes)
    prepared = replace(shapes, samples=tuple(wrong if sample == disc else sample for sample in shapes.samples))
    run = make_run(tmp_path, prepared)
    learned = [*prepared.of("train"), *prepared.of("val")]
    logits_MK = 6 * np.eye(3, dtype=np.float32)[[0 if sample is wrong else sample.index for sample in learned]]
    run.step("train").mkdir()
    np.savez(
        run.step("train") / "out_of_fold.npz",
        logits=logits_MK,
        targets=[sample.index for sample in learned],
        images=[sample.sha256 for sample in learned],
    )
    probabilities_NK = np.full((12, 3), 0.1)
    answers = [sample.index for sample in prepared.of("test")]
    answers[5], answers[7] = 2, 0
    probabilities_NK[np.arange(12), answers] = 0.8
    probabilities_NK[7] = (0.9, 0.05, 0.05)
    return Evaluated(
        run=run,
        prepared=prepared,
        network=small,
        spec=spec,
        temperature=1.0,
        features_ND=np.zeros((12, 4), np.float32),
        probabilities_NK=probabilities_NK,
    )


def test_a_wrong_label_is_listed_with_the_right_class_and_its_picture(evaluated: Evaluated, tmp_path: Path) -> None:
    (tmp_path / PICTURES).mkdir()
    checked, found = check_labels(evaluated, tmp_path)
    assert checked == 48
    [error] = found
    assert (error.image, error.label, error.suggested, error.split) == ("disc/03.png", "stripes", "disc", "train")
    with Image.open(tmp_path / str(error.picture)) as picture:
        assert max(picture.size) == 160
    insight = Insight(labels_checked=checked, label_errors=found, learning_curve=None, slices=[], mistakes=[])
    write_insight(tmp_path, insight)
    assert read_insight(tmp_path) == insight
    with (tmp_path / "label_errors.csv").open() as file:
        [row] = csv.DictReader(file)
    assert (row["image"], row["label"], row["suggested"]) == ("disc/03.png", "stripes", "disc")


def test_a_run_without_out_of_fold_logits_has_no_label_errors(evaluated: Evaluated, tmp_path: Path) -> None:
    (evaluated.run.step("train") / "out_of_fold.npz").unlink()
    assert check_labels(evaluated, tmp_path) == (0, [])


def test_mistakes_have_pictures_and_heatmaps_the_most_confident_first(evaluated: Evaluated, tmp_path: Path) -> None:
    (tmp_path / PICTURES).mkdir()
    found = picture_mistakes(evaluated, tmp_path)
    assert [(each.label, each.predicted, each.probability) for each in found] == [
        ("frame", "disc", 0.9),
        ("frame", "stripes", 0.8),
    ]
    for each in found:
        for name in (each.picture, each.gradient):
            with Image.open(tmp_path / name) as picture:
                assert len(np.unique(np.asarray(picture.convert("L")))) > 10
                assert not picture.getexif()


def test_a_step_of_an_earlier_version_has_no_insight(tmp_path: Path) -> None:
    assert read_insight(tmp_path) is None
