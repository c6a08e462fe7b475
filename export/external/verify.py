"""Verify a third-party ONNX classifier against the model it was exported from.

Photos go through edgeline's one preprocessing; the file and its reference (TorchScript, an exported PyTorch program, or
another ONNX file) get the same pixels, each in the layout and type of its input. Two float32 models must be equal within the
tolerances of `export.parity.compare`; a file of lower precision must meet the thresholds of `export.parity.similarity`. The
file must also give the same outputs at every batch size, thread count and level of graph optimization. Without a reference
only the latter is checked.

Shapes: N images, H x W the model's input, K classes.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import softmax

from edgeline.export.external.diagnose import NORMALIZATIONS, ModelPair, diagnose_mismatch, diverging_layer
from edgeline.export.external.model import InputNormalization, Model, detect_format, read_file
from edgeline.export.external.onnx_model import nan_weights, open_onnx, operators_of, with_session
from edgeline.export.external.report import (
    FileDescription,
    FileFindings,
    FileReport,
    Normalization,
    PhotoCounts,
    ReferenceComparison,
    UnreadableFile,
)
from edgeline.export.external.torch_model import open_torch
from edgeline.export.parity.compare import Outputs, compare, logit_difference
from edgeline.export.parity.similarity import compare_outputs, failed_thresholds, sqnr_db
from edgeline.export.records import MeasuredOn
from edgeline.export.tolerances import MIN_SPREAD
from edgeline.export.verification.variant_checks import LEVELS, PROBE_IMAGES
from edgeline.pipeline.config import VerifyConfig
from edgeline.pipeline.data.stress_images import preprocessing_fingerprint, stress_images
from edgeline.pipeline.data.unlabeled import read_photos
from edgeline.serve.errors import VerificationError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.provenance import DEVICE, provenance, runtime_options

IMAGENET = InputNormalization(*next(iter(NORMALIZATIONS.values())))
PRECISIONS = ("int8", "float16", "float32")
RUN_TOLERANCES = {"float32": 1e-4, "float16": 1e-3, "int8": 5e-3}
"""Largest change of a logit between two ways of running a file, as a share of the largest logit: about one step of int8."""
FLOORS = {"float32": 1e-30, "float16": 6e-8, "int8": 2.0**-8}
"""The smallest probability that a precision can represent; logarithms of smaller ones carry no information."""


@dataclass(frozen=True, kw_only=True)
class VerificationRequest:
    """The file to verify, its reference, and how pixels are fed to both."""

    file: Path
    """ONNX."""
    data: Path
    """A folder of photos."""
    against: Path | None = None
    """The reference: TorchScript, a torch.export program, or ONNX."""
    trusted: bool = False
    """Whether code in the reference may run."""
    normalization: InputNormalization = IMAGENET
    size: tuple[int, int] | None = None
    """Height and width, for a file whose input size is free."""
    crop_fraction: float = PreprocessSpec(height=1, width=1).crop_fraction
    interpolation: str = PreprocessSpec(height=1, width=1).interpolation
    config: VerifyConfig = field(default_factory=VerifyConfig)


def verify_external(request: VerificationRequest) -> FileReport:
    """Verify a third-party ONNX file.

    Returns:
        The report: `passed` is whether every check passed, `problems` lists those that did not, `notes` the assumptions.

    Raises:
        VerificationError: one of the files cannot be verified at all.
        DataError: there are no photos.
        ManifestError: the preprocessing is out of range.
    """
    model = open_onnx(request.file, read_file(request.file), request.size)
    reference = _open_reference(request, model)
    spec = PreprocessSpec(
        height=model.input.height,
        width=model.input.width,
        crop_fraction=request.crop_fraction,
        interpolation=request.interpolation,
    )
    photos = read_photos(request.data, spec, request.config.images)
    stress = preprocessing_fingerprint(spec)
    names = [*(f"stress:{name}" for name in stress), *photos.names]
    pixels = [*stress.values(), *photos.pixels]
    findings, comparison = _check_file(model, reference, names, pixels, request)
    measured_on = provenance("edgeline verify-onnx FILE --data DIR", runtime_options(), packages=(*DEVICE, "torch", "onnx"))
    return FileReport(
        passed=not findings.problems,
        file=_describe(request.file, model),
        against=_describe(request.against, reference) if reference and request.against else None,
        preprocess=spec.to_dict(),
        normalization=Normalization(mean=request.normalization.mean, std=request.normalization.std),
        images=PhotoCounts(
            photos=len(photos.names),
            found=photos.found,
            stress_images=len(stress),
            unreadable=tuple(UnreadableFile(image=name, why=why) for name, why in photos.unreadable),
        ),
        **dict(findings),
        **dict(comparison),
        notes=tuple(_notes(request, model, reference)),
        measured_on=MeasuredOn.model_validate(measured_on),
    )


def as_outputs(scores_NK: np.ndarray, *, probabilities: bool, floor: float) -> Outputs:
    """Convert scores so that those of both models can be compared.

    Args:
        scores_NK: logits, or probabilities.
        probabilities: whether one of the models returns probabilities only: then logits are their logarithms.
        floor: the smallest probability distinguished from 0.
    """
    if not probabilities:
        return Outputs(softmax(scores_NK, axis=1), scores_NK)
    share_NK = scores_NK if is_distribution(scores_NK) else softmax(scores_NK, axis=1)
    return Outputs(share_NK, np.log(np.maximum(share_NK, np.float32(floor))))


def is_distribution(scores_NK: np.ndarray) -> bool:
    """Whether scores are probabilities: none below 0 and a sum of 1, within the precision of int8."""
    return bool((scores_NK >= 0).all() and (np.abs(scores_NK.sum(1) - 1) < 0.02).all())


def _check_file(
    model: Model, reference: Model | None, names: Sequence[str], pixels: Sequence[np.ndarray], request: VerificationRequest
) -> tuple[FileFindings, ReferenceComparison]:
    config, normalization = request.config, request.normalization
    precision = min((m.precision for m in (model, reference) if m is not None), key=PRECISIONS.index)
    scores, problems = _run_batches(model, pixels, normalization, config)
    first = next(iter(scores))
    truth_NK = None if reference is None else reference.predict(pixels, normalization, reference.input.batch or 1)
    if truth_NK is not None and truth_NK.shape != scores[first].shape:
        raise VerificationError(
            f"{model.name} has {scores[first].shape[1]} classes, the reference has {truth_NK.shape[1]}: they are different "
            "models; check --against",
            code="classes_differ",
        )
    batches = tuple(scores)
    if invalid := _nan_weights(model) + _non_finite(model, scores[first], names) + _non_finite(reference, truth_NK, names):
        return FileFindings(precision=precision, batches=batches, problems=(*problems, *invalid)), ReferenceComparison()
    probabilities = is_distribution(scores[first]) or (truth_NK is not None and is_distribution(truth_NK))
    view = partial(as_outputs, probabilities=probabilities, floor=FLOORS[precision])
    observed = {batch: view(scores_NK) for batch, scores_NK in scores.items()}
    inconsistent, levels_sqnr_db = _check_consistency(model, pixels, normalization, view, observed)
    problems += inconsistent
    if np.ptp(observed[first].logits_NK, axis=0).max() < MIN_SPREAD * _largest(observed[first]):
        problems.append(f"{model.name} returns the same output for every image")
    comparison = ReferenceComparison()
    if reference is not None and truth_NK is not None:
        pair = ModelPair(file=model, reference=reference, normalization=normalization, view=view, precision=precision)
        differences, comparison = _compare_with_reference(pair, view(truth_NK), observed, names, config)
        if differences:
            place, divergence = diverging_layer(pair, pixels[len(stress_images()) :])
            comparison = comparison.model_copy(update={"divergence": divergence})
            problems += [*differences, *diagnose_mismatch(pair, pixels[:PROBE_IMAGES]), *([place] if place else [])]
    findings = FileFindings(
        precision=precision,
        batches=batches,
        problems=tuple(problems),
        scores="probabilities" if probabilities else "logits",
        levels_sqnr_db=levels_sqnr_db,
    )
    return findings, comparison


def _run_batches(
    model: Model, pixels: Sequence[np.ndarray], normalization: InputNormalization, config: VerifyConfig
) -> tuple[dict[int, np.ndarray], list[str]]:
    """Scores by batch size, and the failures at batch sizes other than the first."""
    first, *others = [model.input.batch] if model.input.batch else [1, config.odd_batch, config.max_batch]
    scores, problems = {first: model.predict(pixels, normalization, first)}, []
    for batch in others:
        try:
            scores[batch] = model.predict(pixels, normalization, batch)
        except VerificationError as error:
            problems.append(str(error))
    return scores, problems


def _check_consistency(
    model: Model,
    pixels: Sequence[np.ndarray],
    normalization: InputNormalization,
    view: Callable[[np.ndarray], Outputs],
    observed: dict[int, Outputs],
) -> tuple[list[str], dict[str, float]]:
    """Changes with batch size, repetition, thread count and optimization level; and SQNR in dB by optimization level."""
    first, probed = next(iter(observed)), pixels[:PROBE_IMAGES]
    usual = observed[first][:PROBE_IMAGES]
    tolerance = RUN_TOLERANCES[model.precision] * _largest(observed[first])
    moved = {f"at batch {batch}": logit_difference(observed[first], other) for batch, other in observed.items()}
    moved["when run again"] = logit_difference(usual, view(model.predict(probed, normalization, first)))
    one_thread = with_session(model, threads=1).predict(probed, normalization, first)
    moved["on one thread"] = logit_difference(usual, view(one_thread))
    levels_db = {}
    for level in LEVELS:
        other = view(with_session(model, level=level).predict(probed, normalization, first))
        levels_db[level] = sqnr_db(usual.logits_NK.astype(np.float64), other.logits_NK.astype(np.float64))
        if model.precision == "float32":  # lower precisions round differently at other levels: reported, not a failure
            moved[f"at the level {level} of graph optimization"] = logit_difference(usual, other)
    problems = [
        f"{model.name} gives different outputs {how}: a logit changes by {by:.2g}, at most {tolerance:.2g} is allowed"
        for how, by in moved.items()
        if by > tolerance
    ]
    if problems and "DynamicQuantizeLinear" in operators_of(model):
        problems.append("it quantizes dynamically: one scale per batch, so the output for an image depends on the others")
    return problems, levels_db


def _compare_with_reference(
    pair: ModelPair, expected: Outputs, observed: dict[int, Outputs], names: Sequence[str], config: VerifyConfig
) -> tuple[list[str], ReferenceComparison]:
    """Compare the file's outputs with the reference's, at the thresholds of the lower of their precisions."""
    similarity = compare_outputs(expected, next(iter(observed.values())))
    if pair.precision != "float32":
        thresholds = config.int8 if pair.precision == "int8" else config.fp16
        applied = thresholds.model_dump(exclude={"max_drop"})  # the photos have no labels
        return failed_thresholds(similarity, None, thresholds), ReferenceComparison(similarity=similarity, thresholds=applied)
    comparisons = [
        compare(names, expected, other, config, batch=batch, reference=pair.reference.name) for batch, other in observed.items()
    ]
    # A problem that occurs at every batch size is reported once.
    problems = next(([f"batch {c.batch}: {problem}" for problem in c.problems] for c in comparisons if c.problems), [])
    applied = {"max_difference": config.max_difference, "margin": config.margin, "top1_agreement_over_margin": 1.0}
    return problems, ReferenceComparison(similarity=similarity, thresholds=applied, comparisons=tuple(comparisons))


def _open_reference(request: VerificationRequest, model: Model) -> Model | None:
    if request.against is None:
        return None
    data = read_file(request.against)
    format = detect_format(request.against, data)
    if format == "ONNX":
        reference = open_onnx(request.against, data, request.size)
    else:
        reference = open_torch(request.against, data, format, default=model.input, trusted=request.trusted)
    if (reference.input.height, reference.input.width) != (model.input.height, model.input.width):
        raise VerificationError(
            f"the input of {model.name} is {model.input}, that of {reference.name} is {reference.input}: the sizes differ; "
            "check --against",
            code="sizes_differ",
        )
    return reference


def _nan_weights(model: Model) -> list[str]:
    names = nan_weights(model)
    return [f"{len(names)} of its weights contain NaN: {', '.join(names[:3])}"] if names else []


def _non_finite(model: Model | None, scores_NK: np.ndarray | None, names: Sequence[str]) -> list[str]:
    if model is None or scores_NK is None or (finite_N := np.isfinite(scores_NK).all(1)).all():
        return []
    invalid = [names[i] for i in np.flatnonzero(~finite_N).tolist()]
    return [f"{model.name} returns NaN or infinity for {len(invalid)} of {len(names)} images ({', '.join(invalid[:3])})"]


def _largest(outputs: Outputs) -> float:
    return max(1.0, float(np.abs(outputs.logits_NK).max()))


def _describe(path: Path, model: Model) -> FileDescription:
    data = read_file(path)
    return FileDescription(
        name=model.name,
        kind=model.format,
        precision=model.precision,
        takes=str(model.input),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _notes(request: VerificationRequest, model: Model, reference: Model | None) -> list[str]:
    """The assumptions made, and what was not checked."""
    notes = []
    if model.input.dtype == "uint8" and (reference is None or reference.input.dtype == "uint8"):
        notes.append("the input is raw pixels: mean and std are not used")
    elif request.normalization == IMAGENET:
        notes.append("mean and std are ImageNet's; set --mean and --std if the model was trained with others")
    if model.input.batch:
        notes.append(f"its batch size is fixed: run at batch {model.input.batch} only")
    if reference is None:
        notes.append("not compared with a reference: it runs and gives consistent outputs; whether they are right is unknown")
    return notes
