"""Lay out the files of an artifact and write its manifest.

manifest.json  labels.txt  model.onnx  golden/  evaluation.json  verification.json  statistics.json  images.npz
report.html  card.md
"""

import shutil
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import onnx

from edgeline.export import file_names
from edgeline.export.graph.cam_outputs import shapes_of
from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.publishing import golden, report
from edgeline.export.publishing.drift_baseline import write_baseline
from edgeline.export.publishing.variant_table import figures
from edgeline.export.records import MeasuredOn
from edgeline.export.variant_registry import REFERENCE, VARIANTS
from edgeline.export.verification.report import PassedVariant, UnrunVariant, VerificationReport
from edgeline.export.verification.verify import choose_samples
from edgeline.pipeline.data.image_record import FILE_NAME as RECORD
from edgeline.pipeline.data.image_record import newest_record, write_record
from edgeline.pipeline.data.samples import read_prepared
from edgeline.pipeline.evaluation.report import FILE_NAME as EVALUATION_NAME
from edgeline.pipeline.evaluation.report import Evaluation, read_evaluation
from edgeline.pipeline.models.checkpoint import load_checkpoint
from edgeline.pipeline.names import SPLITS
from edgeline.pipeline.runs.atomic_files import file_digest
from edgeline.pipeline.runs.receipts import read_receipt
from edgeline.pipeline.runs.run import Run, stated_config
from edgeline.serve.artifact import manifest as manifests
from edgeline.serve.artifact.cam_outputs import EMBEDDING, EVIDENCE
from edgeline.serve.artifact.manifest import FileEntry, Manifest, Variant
from edgeline.serve.artifact.training_features import FILE_NAME as FEATURES_NAME
from edgeline.serve.drift.report import FILE_NAME as STATISTICS_NAME
from edgeline.serve.errors import VerificationError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.backends import files_of

MODEL_FILES = frozenset(name for spec in (REFERENCE, *VARIANTS.values()) for name in files_of(spec.format, spec.file))
MEANINGS = {
    EVIDENCE: "class activation map: the mean over the positions is the class's logit; ONNX and ORT files only",
    EMBEDDING: "the features that the classifier reads; ONNX and ORT files only",
}
ROLES = {
    "labels.txt": "labels",
    EVALUATION_NAME: "evaluation",
    file_names.VERIFICATION: "verification",
    STATISTICS_NAME: "statistics",
    FEATURES_NAME: "statistics",
    RECORD: "data",
    "report.html": "report",
    "card.md": "card",
}


def write_bundle(run: Run, folder: Path, verification: VerificationReport, *, version: int, content: str) -> Manifest:
    """Write every file of an artifact into an empty folder.

    Args:
        run: what it is made from.
        folder: empty.
        verification: of the run, passed.
        version: the number it will be published under.
        content: digest of all that the artifact is made from.

    Raises:
        VerificationError: a file changed since it was verified.
    """
    network, checkpoint = load_checkpoint(run.step("train"))
    evaluation = read_evaluation(run.step("evaluate"))
    prepared = read_prepared(run.step("prepare"))
    held_out = choose_samples([*prepared.of("test"), *prepared.of("val")], len(prepared.samples))

    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in checkpoint.labels), encoding="utf-8")
    for step, name in (("export", file_names.MODEL), ("evaluate", EVALUATION_NAME), ("verify", file_names.VERIFICATION)):
        shutil.copyfile(run.step(step) / name, folder / name)
    if file_digest(folder / file_names.MODEL) != verification.model_sha256:
        raise VerificationError("the ONNX file changed while it was packaged; publish again", code="not_verified")
    # A variant that cannot run here ships with a note; everything that can be checked here has passed.
    shipped = list(verification.shipped)
    for variant in shipped:
        _copy_variant(run.step("variants"), folder, variant)
    source = golden.GoldenSource(
        deployed=CalibratedModel(network, evaluation.calibration.temperature),
        spec=checkpoint.preprocess,
        labels=checkpoint.labels,
        samples=held_out,
    )
    golden.write_golden(
        folder,
        source,
        run.config.publish,
        variants=[VARIANTS[variant.name] for variant in shipped],
        environments=run.config.environments,
    )
    write_baseline(folder, run, checkpoint)
    write_record(folder / RECORD, prepared.samples, newest_record(run.config.store / run.config.artifact_name))
    provenance = {
        "content_sha256": content,
        "edgeline": package_version("edgeline"),
        "backbone": checkpoint.model,
        "weights": Path(checkpoint.weights).name,
        "strategy": checkpoint.strategy,
        "seed": checkpoint.seed,
        "trained_on": checkpoint.device,
        "versions": checkpoint.versions,
        "checkpoint_sha256": file_digest(run.step("train") / "checkpoint.safetensors"),
        "preprocess_sha256": checkpoint.preprocess.digest(),
        "data_sha256": prepared.fingerprint,
        "images": {split: len(prepared.of(split)) for split in SPLITS},
        "config": stated_config(run.config),
        "measured_on": {name: how.to_dict() for name, how in _measured_on(run, evaluation, verification).items()},
    }
    assert verification.reference is not None, "a report that passed has the reference's figures"
    summary = {
        "passed": verification.passed,
        "images": verification.images.to_dict(),
        "max_difference": verification.max_difference,
        "top1_agreement": verification.top1_agreement,
        "p50_ms": list(verification.reference.latency.values())[-1].p50_ms,
        "cpu": verification.measured_on.machine["cpu"],
    }
    metrics = {
        "top1": evaluation.top1.model_dump(),
        "macro_f1": evaluation.macro.f1,
        "ece": evaluation.calibration.ece_after,
        "temperature": evaluation.calibration.temperature,
    }
    report.write_report(folder / "report.html", run, evaluation, verification, provenance)
    report.write_card(folder / "card.md", run, evaluation, verification, provenance)
    max_batch = run.config.verify.max_batch
    variants = [_variant(entry, max_batch) for entry in (verification.reference, *shipped)]
    manifest = Manifest(
        name=run.config.artifact_name,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        labels=checkpoint.labels,
        preprocess=checkpoint.preprocess,
        inputs=(_input(checkpoint.preprocess),),
        outputs=_outputs(folder / file_names.MODEL, len(checkpoint.labels)),
        variants=tuple(variants),
        files=tuple(_entries(folder)),
        metrics=metrics,
        verification=summary,
        provenance=provenance,
    )
    data = manifest.to_json()
    assert Manifest.from_json(data) == manifest, "a manifest must be read back as it was written"
    (folder / manifests.FILE_NAME).write_bytes(data)
    return manifest


def _copy_variant(step: Path, folder: Path, variant: PassedVariant | UnrunVariant) -> None:
    """Copy a variant's files, which must be those that were verified.

    Raises:
        VerificationError: one has changed.
    """
    for name, sha256 in variant.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(step / name, folder / name)
        if file_digest(folder / name) != sha256:
            raise VerificationError(f"{name} changed while it was packaged; publish again", code="not_verified")
    operators = f"{variant.file}.operators.config"
    if (step / operators).is_file():
        shutil.copyfile(step / operators, folder / operators)


def _variant(entry: PassedVariant | UnrunVariant, max_batch: int) -> Variant:
    return Variant(
        name=entry.name,
        file=entry.file,
        format=entry.format,
        precision=entry.precision,
        max_batch=max_batch,
        verification=figures(entry),
    )


def _measured_on(run: Run, evaluation: Evaluation, verification: VerificationReport) -> dict[str, MeasuredOn]:
    """The run environment of each group of figures, by its name."""
    options = {
        "training": {"strategy": run.config.train.strategy, "seed": run.config.seed, "rest": "provenance.config"},
        "evaluation": {"device": evaluation.device, "precision": "float32", "bins": evaluation.calibration.bins},
    }
    receipts = {"training": read_receipt(run.step("train")), "evaluation": read_receipt(run.step("evaluate"))}
    # Receipts of earlier versions have no entry.
    found = {
        name: MeasuredOn.model_validate({**made["made"], "options": options[name]})
        for name, made in receipts.items()
        if made and "made" in made
    }
    if verification.int8 is not None and verification.int8.measured_on is not None:
        found["int8 choice"] = verification.int8.measured_on
    return found | {"verification": verification.measured_on}


def _input(spec: PreprocessSpec) -> dict[str, Any]:
    return {
        "name": "image",
        "dtype": "uint8",
        "shape": ["batch", spec.height, spec.width, 3],
        "layout": "NHWC",
        "color": spec.color,
        "range": [0, 255],
    }


def _outputs(model: Path, classes: int) -> tuple[dict[str, Any], ...]:
    outputs = [
        {"name": "probabilities", "dtype": "float32", "shape": ["batch", classes], "meaning": "softmax of the logits"},
        {"name": "logits", "dtype": "float32", "shape": ["batch", classes], "meaning": "temperature-scaled"},
    ]
    for name, shape in shapes_of(onnx.load(model)).items():
        outputs.append({"name": name, "dtype": "float32", "shape": ["batch", *shape], "meaning": MEANINGS[name]})
    return tuple(outputs)


def _entries(folder: Path) -> list[FileEntry]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [
        FileEntry(path=name, size=path.stat().st_size, sha256=file_digest(path), role=_role(name))
        for name, path in zip(names, paths, strict=True)
    ]


def _role(name: str) -> str:
    if name in MODEL_FILES:
        return "model"
    return "operators" if name.endswith(".operators.config") else ROLES.get(name, "golden")
