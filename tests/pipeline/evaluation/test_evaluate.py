from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeline.pipeline.data.samples import Prepared, Sample
from edgeline.pipeline.evaluation.evaluate import build_evaluation, compute_logits, evaluate
from edgeline.pipeline.evaluation.insight import FILE_NAME as INSIGHT
from edgeline.pipeline.evaluation.metrics import best_temperature, calibration_error, nll, softmax, wilson_interval
from edgeline.pipeline.evaluation.report import FILE_NAME, read_evaluation
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.checkpoint import load_checkpoint
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.training.search.report import ScannedSetting, Sweep, TrainedSetting
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec, preprocess

CPU = torch.device("cpu")


def samples_of(targets: list[int] | np.ndarray, labels: list[str]) -> list[Sample]:
    given = {"split": "test", "group": "", "sha256": "0" * 64, "pixels": "", "width": 1, "height": 1}
    return [
        Sample(path=f"/data/{number}.png", name=f"{labels[i]}/{number:03}.png", label=labels[i], index=int(i), **given)  # type: ignore[arg-type]
        for number, i in enumerate(targets)
    ]


def logits_for(*predicted: int, classes: int = 3, confidence: float = 2.0) -> np.ndarray:
    """Rows of zeros, except for the predicted class."""
    return (np.eye(classes, dtype=np.float32) * confidence)[list(predicted)]


def test_the_confusion_matrix_has_the_true_class_in_its_rows() -> None:
    samples = samples_of([0, 0, 0, 1, 1, 2], ["a", "b", "c"])
    found = evaluate(logits_for(0, 0, 1, 1, 1, 0), samples, ["a", "b", "c"], temperature=1.0, bins=15)
    assert found.confusion == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert (found.top1.correct, found.top1.total, found.images) == (4, 6, 6)
    assert found.top1.value == pytest.approx(4 / 6)
    assert (found.top1.low, found.top1.high) == wilson_interval(4, 6)
    # Class c is never predicted: all zeros, and no division by zero.
    assert found.classes[2].model_dump() == {"label": "c", "precision": 0, "recall": 0, "f1": 0, "support": 1}


def random_logits(classes: int, images: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes)
    targets_N = rng.integers(0, classes, images)
    logits_NK = rng.normal(0, 1, (images, classes)).astype(np.float32)
    logits_NK[np.arange(images), targets_N] += 1
    return logits_NK, targets_N


@pytest.mark.parametrize("classes", [2, 5, 6, 20])
def test_every_metric_equals_that_of_scikit_learn(classes: int) -> None:
    from sklearn.metrics import (  # imports for a second, in every worker
        confusion_matrix,
        precision_recall_fscore_support,
        top_k_accuracy_score,
    )

    labels = [f"class {index}" for index in range(classes)]
    logits_NK, targets_N = random_logits(classes)
    found = evaluate(logits_NK, samples_of(targets_N, labels), labels, temperature=1.3, bins=15)
    predicted_N = logits_NK.argmax(1)
    assert found.confusion == confusion_matrix(targets_N, predicted_N).tolist()
    observed = [[getattr(report, name) for report in found.classes] for name in ("precision", "recall", "f1", "support")]
    np.testing.assert_allclose(observed, precision_recall_fscore_support(targets_N, predicted_N), rtol=0, atol=1e-12)
    macro = precision_recall_fscore_support(targets_N, predicted_N, average="macro")[:3]
    assert list(found.macro.model_dump().values()) == pytest.approx(list(macro), abs=1e-12)
    if classes <= 5:
        assert found.top5 is None
    else:
        assert found.top5 is not None
        expected = top_k_accuracy_score(targets_N, logits_NK, k=5, labels=range(classes))
        assert found.top5.value == pytest.approx(expected, abs=1e-12)


def test_calibration_is_reported_before_and_after_temperature_scaling() -> None:
    logits_NK, targets_N = random_logits(4)
    logits_NK *= 5
    temperature = best_temperature(logits_NK, targets_N)
    found = evaluate(logits_NK, samples_of(targets_N, list("abcd")), list("abcd"), temperature=temperature, bins=10).calibration
    assert (found.temperature, found.bins) == (temperature, 10)
    assert found.ece_before == calibration_error(softmax(logits_NK), targets_N, 10)
    assert found.ece_after == calibration_error(softmax(logits_NK / temperature), targets_N, 10)
    assert found.nll_before == nll(logits_NK, targets_N)
    assert found.nll_after < found.nll_before
    assert found.ece_after < found.ece_before


def test_mistakes_are_listed_by_confidence_and_without_absolute_paths() -> None:
    samples = samples_of([0, 1, 2, 0], ["a", "b", "c"])
    logits_NK = logits_for(1, 1, 0, 2) * np.array([[1], [1], [3], [2]], np.float32)
    found = evaluate(logits_NK, samples, ["a", "b", "c"], temperature=2.0, bins=15).mistakes
    assert [(m.image, m.label, m.predicted) for m in found] == [
        ("c/002.png", "c", "a"),
        ("a/003.png", "a", "c"),
        ("a/000.png", "a", "b"),
    ]
    assert found[0].probability == pytest.approx(softmax(np.array([[3.0, 0, 0]]))[0, 0])


def test_at_most_fifty_mistakes_are_listed() -> None:
    samples = samples_of([0] * 60, ["a", "b"])
    logits_NK = np.stack([np.zeros(60), np.arange(1, 61) / 10], axis=1).astype(np.float32)
    found = evaluate(logits_NK, samples, ["a", "b"], temperature=1.0, bins=15)
    assert len(found.mistakes) == 50
    assert found.mistakes[0].image == "a/059.png"
    assert found.top1.correct == 0


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_logits_are_computed_from_the_files_in_order(
    batch_size: int, small: Network, shapes: Prepared, spec: PreprocessSpec
) -> None:
    nn.init.normal_(small.classifier.weight)
    small.train()  # compute_logits switches to evaluation mode
    observed_NK = compute_logits(small, shapes.of("val"), spec, CPU, batch_size)
    pixels_NHW3 = np.stack([preprocess(Path(s.path).read_bytes(), spec) for s in shapes.of("val")])
    with torch.inference_mode():
        expected_NK = small.eval()(torch.from_numpy(pixels_NHW3)).numpy()
    assert np.abs(expected_NK).max() > 0.1
    np.testing.assert_allclose(observed_NK, expected_NK, rtol=0, atol=1e-4 * np.abs(expected_NK).max())


def test_logits_that_are_not_finite_name_the_image(small: Network, shapes: Prepared, spec: PreprocessSpec) -> None:
    original = small.forward

    def broken(pixels_NHW3: torch.Tensor) -> torch.Tensor:
        logits_NK = original(pixels_NHW3)
        logits_NK[-1, 1] = torch.nan  # a stand-in: no image is known that does it
        return logits_NK

    small.forward = broken  # type: ignore[method-assign]
    message = r"not finite for 2 of 12 images, the first is frame/15\.png"
    with pytest.raises(TrainingError, match=message) as caught:
        compute_logits(small, shapes.of("val"), spec, CPU, batch_size=8)
    assert caught.value.code == "logits_not_finite"


# The whole step


def test_a_trained_run_is_evaluated_on_its_test_split(evaluated_run: Run, shapes: Prepared) -> None:
    found = read_evaluation(evaluated_run.step("evaluate"))
    assert (found.labels, found.images, found.top5) == (["disc", "frame", "stripes"], 12, None)
    assert found.top1.value >= 0.75
    assert [report.support for report in found.classes] == [4, 4, 4]
    assert np.sum(found.confusion) == 12


def test_probabilities_are_scaled_by_the_temperature_fitted_on_validation(evaluated_run: Run, shapes: Prepared) -> None:
    network, checkpoint = load_checkpoint(evaluated_run.step("train"))
    logits_NK = compute_logits(network, shapes.of("test"), checkpoint.preprocess, CPU)
    with np.load(evaluated_run.step("train") / "calibration.npz") as calibration:
        temperature = best_temperature(calibration["logits"], calibration["targets"])
    assert read_evaluation(evaluated_run.step("evaluate")).calibration.temperature == pytest.approx(temperature)
    with np.load(evaluated_run.step("evaluate") / "test.npz", allow_pickle=False) as saved:
        np.testing.assert_allclose(saved["probabilities"], softmax(logits_NK / temperature), rtol=0, atol=1e-6)
        assert saved["targets"].tolist() == [sample.index for sample in shapes.of("test")]


@pytest.mark.long
def test_evaluating_again_writes_the_same_bytes_and_the_plot_of_a_sweep(evaluated_run: Run, tmp_path: Path) -> None:
    swept, again = tmp_path / "swept", tmp_path / "again"
    (swept / "train").mkdir(parents=True)
    again.mkdir()
    (swept / "prepare").symlink_to(evaluated_run.step("prepare"))
    for file in evaluated_run.step("train").iterdir():
        (swept / "train" / file.name).symlink_to(file)
    given = {"learning_rate": 5e-4, "weight_decay": 0.01, "label_smoothing": 0, "epoch": 40, "loss": 0.3, "macro_recall": 0.9}
    setting = TrainedSetting(**given, dropout=0.5, views=4, accuracy=0.9, difference=0, error=0)
    scanned = ScannedSetting(penalty="ridge", strength=0.1, class_weights="none", views=0, accuracy=0.9, macro_recall=0.9)
    sweep = Sweep(
        images=48,
        folds=4,
        scanned=[scanned, scanned.model_copy(update={"penalty": "dropout"})],
        trained=[setting, setting],
        chosen=0,
        deviations=1.6,
    )
    (swept / "train" / "sweep.json").write_text(sweep.model_dump_json())

    build_evaluation(replace(evaluated_run, folder=swept), again)
    expected = evaluated_run.step("evaluate")
    names = sorted(path.relative_to(expected).as_posix() for path in expected.rglob("*") if path.is_file())
    written = sorted(path.relative_to(again).as_posix() for path in again.rglob("*") if path.is_file())
    assert written == sorted([*names, "sweep.png"])
    for name in names:
        assert (again / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.parametrize("name", ["confusion.png", "reliability.png", "history.png", "learning_curve.png", "embedding.png"])
def test_the_plots_are_not_empty(name: str, evaluated_run: Run) -> None:
    with Image.open(evaluated_run.step("evaluate") / name) as plot:
        assert plot.width > 300
        assert len(np.unique(np.asarray(plot.convert("L")))) > 20
        assert "Software" not in plot.info


@pytest.mark.parametrize("name", [FILE_NAME, INSIGHT, "findings.json"])
def test_the_report_has_no_absolute_paths(name: str, evaluated_run: Run, shapes: Prepared) -> None:
    text = (evaluated_run.step("evaluate") / name).read_text()
    assert str(Path(shapes.samples[0].path).parents[1]) not in text
