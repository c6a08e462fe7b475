import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeline.flows.step_lines import step_lines
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.evaluation.plots import write_sweep_png
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.runs.run import StepResult
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.context import TrainingContext, TrainingResult
from edgeline.pipeline.training.search.report import FILE_NAME, ScannedSetting, describe_sweep, read_sweep, sweep_rows
from edgeline.pipeline.training.search.sweep import candidates, paired_difference
from edgeline.pipeline.training.strategies import head
from edgeline.serve.errors import ConfigError
from edgeline.serve.preprocess import PreprocessSpec


def fit(network: Network, prepared: Prepared, spec: PreprocessSpec, folder: Path, **settings: Any) -> TrainingResult:
    config = TrainConfig(**{"strategy": "head", "sweep": True, "views": 0} | settings)
    given = {"spec": spec, "seed": 0, "folder": folder, "cache": folder / "cache", "device": torch.device("cpu")}
    return head.fit(TrainingContext(network=network, prepared=prepared, config=config, **given))


def test_a_sweep_replaces_settings_that_are_clearly_worse_and_trains_as_without_a_sweep(
    lite0: Network, shapes: Prepared, spec: PreprocessSpec, tmp_path: Path
) -> None:
    result = fit(lite0, shapes, spec, tmp_path, dropout=0.999, epochs=4)
    sweep = read_sweep(tmp_path)
    assert sweep is not None
    assert sweep.chosen > 0
    chosen, default = sweep.trained[sweep.chosen], sweep.trained[0]
    assert default.dropout == 0.999
    assert chosen.difference > sweep.deviations * chosen.error
    assert chosen.accuracy == pytest.approx(default.accuracy + chosen.difference)
    assert (result.calibration.logits_NK.argmax(1) == result.calibration.targets_N).mean() == pytest.approx(chosen.accuracy)
    assert result.findings[0].message == describe_sweep(sweep)
    assert f"chose dropout {chosen.dropout:g}" in result.findings[0].message
    # The scan has each strength of both penalties, and every candidate of it is one of its settings.
    assert len(sweep.scanned) == 50
    assert {setting.dropout for setting in sweep.trained} <= {
        0.999,
        *(s.strength for s in sweep.scanned if s.penalty == "dropout"),
    }

    weight_KD = lite0.classifier.weight.detach().clone()
    changes = {name: getattr(chosen, name) for name in ("learning_rate", "weight_decay", "dropout", "label_smoothing", "views")}
    alone = fit(lite0, shapes, spec, tmp_path, epochs=4, **changes | {"sweep": False})
    assert torch.equal(lite0.classifier.weight, weight_KD)
    assert (alone.calibration.logits_NK == result.calibration.logits_NK).all()


@pytest.mark.long
def test_a_sweep_keeps_the_configured_settings_unless_others_are_better_by_more_than_noise(
    lite0: Network, shapes: Prepared, spec: PreprocessSpec, tmp_path: Path
) -> None:
    result = fit(lite0, shapes, spec, tmp_path, views=2, epochs=5)
    first = (tmp_path / FILE_NAME).read_bytes()
    sweep = read_sweep(tmp_path)
    assert sweep is not None
    assert sweep.chosen == 0
    assert "kept the configured settings" in result.findings[0].message
    assert "within noise" in result.findings[0].message
    assert {setting.views for setting in sweep.scanned} == {0, 1, 2}
    fit(lite0, shapes, spec, tmp_path, views=2, epochs=5)
    assert (tmp_path / FILE_NAME).read_bytes() == first
    write_sweep_png(tmp_path / "sweep.png", sweep)
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    (tmp_path / "findings.json").write_text(json.dumps([]))
    lines = step_lines(StepResult("train", tmp_path, reused=False, seconds=1.0))
    assert len(lines) == 1 + len(sweep.trained)
    assert any(line.startswith("as configured (chosen)") for line in lines)


def scanned(strength: float, accuracy: float, **changes: Any) -> ScannedSetting:
    given = {"penalty": "dropout", "class_weights": "balanced", "views": 4, "macro_recall": accuracy}
    return ScannedSetting(**given | {"strength": strength, "accuracy": accuracy} | changes)


def test_candidates_are_the_best_of_the_scan_that_differ_and_single_changes_of_the_rest() -> None:
    settings = [
        scanned(0.48, 0.99),  # next to the configured 0.5
        scanned(0.8, 0.97),
        scanned(0.84, 0.98),
        scanned(0.2, 0.96, views=0),
        scanned(0.3, 1.0, penalty="ridge"),
        scanned(0.1, 1.0, class_weights="none"),
        scanned(0.0, 0.5),
        scanned(0.96, 0.4),
    ]
    found = candidates(TrainConfig(), 4, settings)
    assert [(each.dropout, each.views) for each in found[:4]] == [(0.5, 4), (0.84, 4), (0.2, 0), (0.0, 4)]
    rates = [each.learning_rate / found[0].learning_rate for each in found[4:]]
    assert rates == pytest.approx([1 / 3, 3, 1, 1])
    assert [each.weight_decay for each in found[4:]] == [0.01, 0.01, 1.0, 0.01]
    assert [each.label_smoothing for each in found[4:]] == [0, 0, 0, 0.1]
    assert {each.class_weights for each in found} == {"balanced"}


def test_a_difference_is_paired_and_its_error_counts_groups() -> None:
    one_N, other_N = np.array([1, 1, 1, 1, 0, 1, 1, 1]) > 0, np.array([0, 0, 0, 1, 1, 1, 1, 1]) > 0
    difference, error = paired_difference(one_N, other_N, list("abcdefgh"))
    assert difference == 2 / 8
    assert error == pytest.approx(math.sqrt(4) / 8)
    assert paired_difference(one_N, other_N, list("aaadefgh"))[1] == pytest.approx(math.sqrt(9 + 1) / 8)


def test_the_table_begins_with_the_most_accurate_and_marks_the_chosen(evaluated_sweep: Path) -> None:
    sweep = read_sweep(evaluated_sweep)
    assert sweep is not None
    rows = sweep_rows(sweep)
    assert [row["Setting"] for row in rows] == ["dropout 0.8, views 2", "as configured (chosen)"]
    assert rows[0]["To the configured, points"] == "+1.0 ± 0.9"


@pytest.fixture
def evaluated_sweep(tmp_path: Path) -> Path:
    given = {"learning_rate": 5e-4, "weight_decay": 0.01, "label_smoothing": 0, "epoch": 40, "loss": 0.3, "macro_recall": 0.9}
    trained = [
        {**given, "dropout": 0.5, "views": 4, "accuracy": 0.9, "difference": 0, "error": 0},
        {**given, "dropout": 0.8, "views": 2, "accuracy": 0.91, "difference": 0.01, "error": 0.009},
    ]
    sweep = {"images": 300, "folds": 5, "scanned": [], "trained": trained, "chosen": 0, "deviations": 1.6}
    (tmp_path / FILE_NAME).write_text(json.dumps(sweep))
    return tmp_path


@pytest.mark.parametrize("strategy", ["few-shot", "lp-ft", "full", "gradual", "differential", "scratch"])
def test_a_sweep_with_a_strategy_that_has_other_settings_is_a_contradiction(strategy: str) -> None:
    with pytest.raises(ConfigError, match=f"strategy={strategy} has others; set strategy=head or strategy=auto"):
        load_config(None, [f"train.strategy={strategy}", "train.sweep=true"])
