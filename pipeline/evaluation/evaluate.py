"""Measure a checkpoint on the untouched test split, and calibrate its confidence on the validation split.

    python -m edgeline.pipeline.evaluation.evaluate > docs/schemas/evaluation.schema.json

writes the JSON Schema of the result anew, for readers in other languages.

Shapes: N images, K classes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from edgeline.pipeline.data.samples import Sample, read_prepared, stream_pixels
from edgeline.pipeline.evaluation.metrics import best_temperature, calibration_error, nll, softmax, wilson_interval
from edgeline.pipeline.evaluation.plots import write_confusion_png, write_reliability_png
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.checkpoint import load_checkpoint
from edgeline.pipeline.models.devices import choose_device, memory_errors, to_device
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.training.features import CPU_BATCH
from edgeline.pipeline.training.train import CALIBRATION
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec

FILE_NAME = "evaluation.json"


class Record(BaseModel):
    """Frozen, and complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Share(Record):
    """A share of images, with its 95 % Wilson score interval."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    correct: int
    total: int


class ClassReport(Record):
    """How one class fares."""

    label: str
    precision: float = Field(ge=0, le=1, description="0 where nothing was called by this label.")
    recall: float = Field(ge=0, le=1)
    f1: float = Field(ge=0, le=1)
    support: int = Field(description="Test images of the class.")


class Average(Record):
    """Mean over the classes, each counting alike."""

    precision: float
    recall: float
    f1: float


class Calibration(Record):
    """Confidence against accuracy, before and after temperature scaling."""

    temperature: float = Field(
        gt=0, description="Fitted on validation (Guo et al. 2017); the exported logits are divided by it."
    )
    bins: int
    ece_before: float = Field(description="Expected calibration error on test, at temperature 1.")
    ece_after: float
    nll_before: float = Field(description="Mean negative log-likelihood on test, at temperature 1.")
    nll_after: float


class Mistake(Record):
    """A test image that was called by another label."""

    image: str
    label: str
    predicted: str
    probability: float


class Evaluation(Record):
    """What `evaluation.json` holds."""

    schema_: Literal["edgeline.evaluation/1"] = Field("edgeline.evaluation/1", alias="schema", serialization_alias="schema")
    labels: list[str]
    images: int
    device: str = Field("cpu", description="What computed the logits, in float32: `cpu` or `cuda`.")
    top1: Share
    top5: Share | None = Field(description="Absent for five classes or fewer, where it says nothing.")
    classes: list[ClassReport]
    macro: Average
    confusion: list[list[int]] = Field(description="Row: the true label, column: the predicted one, in the order of labels.")
    calibration: Calibration
    mistakes: list[Mistake] = Field(description="The most confident ones, at most 50.")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def build_evaluation(run: Run, folder: Path) -> None:
    """Evaluate a run's checkpoint into the step's folder: numbers, two plots and the test split's probabilities."""
    network, checkpoint = load_checkpoint(run.step("train"))
    prepared = read_prepared(run.step("prepare"))
    device = choose_device(run.config.train.device)
    network.to(device)
    test = prepared.of("test")
    test_logits_NK = compute_logits(network, test, checkpoint.preprocess, device)
    with np.load(run.step("train") / CALIBRATION, allow_pickle=False) as calibration:
        temperature = best_temperature(calibration["logits"], calibration["targets"])
    evaluation = evaluate(test_logits_NK, test, checkpoint.labels, temperature=temperature, bins=run.config.evaluate.bins)
    evaluation = evaluation.model_copy(update={"device": device.type})
    (folder / FILE_NAME).write_text(evaluation.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
    probabilities_NK = softmax(test_logits_NK / temperature)
    np.savez_compressed(folder / "test.npz", probabilities=probabilities_NK, targets=_targets(test))
    write_confusion_png(folder / "confusion.png", np.asarray(evaluation.confusion), checkpoint.labels)
    write_reliability_png(folder / "reliability.png", probabilities_NK, _targets(test), run.config.evaluate.bins)


def read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluate step's result."""
    return Evaluation.model_validate_json((folder / FILE_NAME).read_text(encoding="utf-8"))


def evaluation_schema() -> str:
    """The JSON Schema of `evaluation.json`, as text."""
    return json.dumps(Evaluation.model_json_schema(by_alias=True), indent=1, ensure_ascii=False) + "\n"


def compute_logits(
    network: Network, samples: Sequence[Sample], spec: PreprocessSpec, device: torch.device, batch_size: int = CPU_BATCH
) -> np.ndarray:
    """Run a network in evaluation mode over samples, from their files on, in float32.

    Returns:
        float32, shape (N, K), on the host.

    Raises:
        DataError: a file is gone or changed.
        TrainingError: a logit is not finite, which no figure and no ranking could be made from.
    """
    network.eval()
    batches = track(stream_pixels(samples, spec, batch_size), "evaluating images", len(samples), step=batch_size)
    torch.backends.cudnn.allow_tf32 = False  # or a GPU's convolutions round to 10 bits
    with torch.inference_mode(), memory_errors(batch_size):
        logits = [network(to_device(torch.from_numpy(batch_NHW3), device)).float().cpu() for batch_NHW3 in batches]
    logits_NK = torch.cat(logits).numpy()
    finite_N = np.isfinite(logits_NK).all(1)
    if not finite_N.all():
        raise TrainingError(
            f"the network gives no finite numbers for {len(finite_N) - finite_N.sum()} of {len(finite_N)} images, the first "
            f"being {samples[int(finite_N.argmin())].name}; look at that image, or train again at a lower train.learning_rate",
            code="logits_not_finite",
        )
    return logits_NK


def evaluate(
    logits_NK: np.ndarray, samples: Sequence[Sample], labels: Sequence[str], *, temperature: float, bins: int
) -> Evaluation:
    """Compute every figure from the logits of a test split.

    Args:
        logits_NK: float32, before temperature scaling.
        samples: whose they are.
        labels: class names in index order.
        temperature: fitted elsewhere, on validation.
        bins: of the calibration error.
    """
    targets_N = _targets(samples)
    plain_NK, scaled_NK = softmax(logits_NK), softmax(logits_NK / temperature)
    predicted_N = scaled_NK.argmax(1)
    confusion = np.zeros((len(labels), len(labels)), int)
    np.add.at(confusion, (targets_N, predicted_N), 1)
    classes = _class_reports(confusion, labels)
    rank_N = (logits_NK > logits_NK[np.arange(len(logits_NK)), targets_N, None]).sum(1)
    return Evaluation(
        labels=list(labels),
        images=len(samples),
        top1=_share(int((predicted_N == targets_N).sum()), len(samples)),
        top5=_share(int((rank_N < 5).sum()), len(samples)) if len(labels) > 5 else None,
        classes=classes,
        macro=Average(**{name: float(np.mean([getattr(c, name) for c in classes])) for name in ("precision", "recall", "f1")}),
        confusion=confusion.tolist(),
        calibration=Calibration(
            temperature=temperature,
            bins=bins,
            ece_before=calibration_error(plain_NK, targets_N, bins),
            ece_after=calibration_error(scaled_NK, targets_N, bins),
            nll_before=nll(logits_NK, targets_N),
            nll_after=nll(logits_NK / temperature, targets_N),
        ),
        mistakes=_mistakes(scaled_NK, predicted_N, samples, labels),
    )


def _targets(samples: Sequence[Sample]) -> np.ndarray:
    return np.array([sample.index for sample in samples])


def _share(correct: int, total: int) -> Share:
    low, high = wilson_interval(correct, total)
    return Share(value=correct / total, low=low, high=high, correct=correct, total=total)


def _class_reports(confusion: np.ndarray, labels: Sequence[str]) -> list[ClassReport]:
    hits, called, support = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
    reports = []
    for index, label in enumerate(labels):
        precision = float(hits[index] / called[index]) if called[index] else 0.0
        recall = float(hits[index] / support[index]) if support[index] else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        reports.append(ClassReport(label=label, precision=precision, recall=recall, f1=f1, support=int(support[index])))
    return reports


def _mistakes(
    probabilities_NK: np.ndarray, predicted_N: np.ndarray, samples: Sequence[Sample], labels: Sequence[str], most: int = 50
) -> list[Mistake]:
    wrong = [
        Mistake(
            image=sample.name,
            label=sample.label,
            predicted=labels[predicted],
            probability=float(probabilities_K[predicted]),
        )
        for sample, predicted, probabilities_K in zip(samples, predicted_N, probabilities_NK, strict=True)
        if predicted != sample.index
    ]
    return sorted(wrong, key=lambda mistake: -mistake.probability)[:most]


if __name__ == "__main__":
    print(evaluation_schema(), end="")
