"""The answers of an evaluated run to its test images, and what it has learned from: what a comparison needs of a model."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeline.pipeline.data.samples import read_prepared
from edgeline.pipeline.evaluation.report import read_evaluation
from edgeline.pipeline.runs.receipts import read_receipt
from edgeline.pipeline.runs.run import Run, open_run
from edgeline.serve.artifact import manifest as manifests
from edgeline.serve.artifact.manifest import Manifest
from edgeline.serve.artifact.reader import resolve
from edgeline.serve.errors import ArtifactError, ConfigError, DataError, EdgelineError

ANSWERS = "test.npz"
"""In the folder of the evaluation."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one test image."""

    image: str
    label: str
    predicted: str
    group: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """The answers of a model to its test split, and what it has learned from."""

    name: str
    test: Mapping[str, Answer]
    """By the pixel digest of the image."""
    learned: frozenset[str]
    """Pixel digests of the images in train and validation, and of test images that have a near-duplicate there."""


def find_evaluated_run(path: Path, artifacts: Path) -> tuple[str, Run]:
    """Find the run that a path stands for.

    Args:
        path: a run's folder, a published version's folder, or the folder of a name in the store for its stable version.
        artifacts: folder of the runs, for a version that is not in the store next to them.

    Returns:
        A name for messages, and the run.

    Raises:
        ConfigError: the path is neither, or the run that published the version is not there any more.
    """
    if (path / "config.json").is_file():
        return path.resolve().name, open_run(path)
    try:
        folder = resolve(path)
    except ArtifactError as error:
        raise ConfigError(f"{path} is neither a run folder nor a published artifact; {error}") from error
    manifest = Manifest.from_json((folder / manifests.FILE_NAME).read_bytes())
    name = f"{manifest.name} version {manifest.version}"
    own = folder.resolve().parents[2]  # <artifacts>/store/<name>/<version>
    for runs in dict.fromkeys((own / "runs", artifacts.resolve() / "runs")):
        same = [
            candidate
            for candidate in sorted(runs.glob(f"{manifest.name}-*"))
            if checkpoint_sha256(candidate) == manifest.provenance.get("checkpoint_sha256")
        ]
        # Runs with other settings may have equal weights; one that stopped before its evaluation has no answers.
        for candidate in sorted(same, key=lambda folder: not (folder / "evaluate" / ANSWERS).is_file()):
            return name, open_run(candidate)
    raise ConfigError(
        f"{name}: the run that published it is not in {own / 'runs'}, and only the run has the answers to its test images; "
        "name the folder of artifacts with --artifacts, or run it again",
        code="run_missing",
    )


def read_answers(run: Run, name: str) -> Answers:
    """Read the answers of an evaluated run.

    Raises:
        EdgelineError: the run has not been evaluated.
    """
    folder = run.step("evaluate")
    if not (folder / ANSWERS).is_file():
        raise EdgelineError(f"{run.folder} has not been evaluated; run `edgeline evaluate {run.folder}`", code="step_missing")
    prepared = read_prepared(run.step("prepare"))
    labels = read_evaluation(folder).labels
    test = prepared.of("test")
    with np.load(folder / ANSWERS, allow_pickle=False) as saved:
        predicted_N, targets_N = saved["probabilities"].argmax(1), saved["targets"]
    if targets_N.tolist() != [sample.index for sample in test]:
        raise DataError(f"{folder} is of other data than {run.step('prepare')}; run `edgeline evaluate {run.folder}` again")
    leaked = _names_with_copies(run.step("prepare") / "near_duplicates.csv")
    return Answers(
        name=name,
        test={
            sample.pixels: Answer(sample.name, sample.label, labels[index], sample.group)
            for sample, index in zip(test, predicted_N, strict=True)
        },
        learned=frozenset(s.pixels for s in prepared.samples if s.split != "test" or s.name in leaked),
    )


def _names_with_copies(table: Path) -> set[str]:
    """Names of test images that have a near-duplicate in another split, from `near_duplicates.csv`."""
    if not table.is_file():
        return set()
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != row["other_split"]]
    return {
        row[name] for row in rows for name, split in (("path", "split"), ("other_path", "other_split")) if row[split] == "test"
    }


def checkpoint_sha256(run: Path) -> str | None:
    """The digest of the weights of a run's folder; None if it has not been trained."""
    receipt = read_receipt(run / "train")
    return receipt["files"].get("checkpoint.safetensors", {}).get("sha256") if receipt else None
