"""The gate for a classifier that edgeline did not train: an ONNX file from elsewhere, held against what it was made from.

Real photos go through the one preprocessing; the file and its reference (TorchScript, an exported PyTorch program, or
another ONNX file) are given the same pixels, each in the layout and type that it takes. Float against float must be equal,
at the thresholds of `export.parity.compare`; a file of lower precision must be like it, at those of
`export.parity.similarity`. And however the file is run (batch, threads, level of graph optimization), it must answer alike.
Without a reference only that is judged.

Shapes: N images, H x W the model's input, K classes.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from edgeline.export.external.diagnose import NORMALIZATIONS, Pair, diverging_layer, suspect
from edgeline.export.external.model import Feed, Program, kind_of, read_file
from edgeline.export.external.onnx_model import in_session, nan_weights, open_onnx, operators_of
from edgeline.export.external.torch_model import open_torch
from edgeline.export.parity.compare import Outputs, compare, logit_difference
from edgeline.export.parity.similarity import compare_outputs, failed_thresholds, sqnr_db
from edgeline.export.thresholds import MIN_SPREAD
from edgeline.export.verification.variant_checks import LEVELS, PROBE_IMAGES
from edgeline.pipeline.config import VerifyConfig
from edgeline.pipeline.data.stress_images import preprocessing_fingerprint, stress_images
from edgeline.pipeline.data.unlabeled import read_photos
from edgeline.serve.errors import VerificationError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.provenance import DEVICE, provenance, runtime_options

IMAGENET = Feed(*next(iter(NORMALIZATIONS.values())))
PRECISIONS = ("int8", "float16", "float32")
ALIKE = {"float32": 1e-4, "float16": 1e-3, "int8": 5e-3}
"""How far a logit may move when only the way of running changes, as a share of the largest: about a step of int8."""
FLOORS = {"float32": 1e-30, "float16": 6e-8, "int8": 2.0**-8}
"""The smallest probability that a precision can tell from 0; beneath it their logarithms say nothing."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be judged, and how it is fed."""

    file: Path
    """ONNX."""
    data: Path
    """A folder of photos."""
    against: Path | None = None
    """TorchScript, a program of torch.export, or ONNX."""
    trusted: bool = False
    """Whether the code of the reference may run."""
    feed: Feed = IMAGENET
    size: tuple[int, int] | None = None
    """Height and width, for a file that leaves them free."""
    crop_fraction: float = PreprocessSpec(height=1, width=1).crop_fraction
    interpolation: str = PreprocessSpec(height=1, width=1).interpolation
    config: VerifyConfig = field(default_factory=VerifyConfig)


def verify_foreign(request: Request) -> dict[str, Any]:
    """Judge an ONNX file from elsewhere.

    Returns:
        The report; `passed` says whether all thresholds hold, `problems` which do not, `notes` what was taken for granted.

    Raises:
        VerificationError: one of the files cannot be judged at all.
        DataError: there are no photos.
        ManifestError: the preprocessing is out of range.
    """
    program = open_onnx(request.file, read_file(request.file), request.size)
    reference = _open_reference(request, program)
    spec = PreprocessSpec(
        height=program.port.height,
        width=program.port.width,
        crop_fraction=request.crop_fraction,
        interpolation=request.interpolation,
    )
    photos = read_photos(request.data, spec, request.config.images)
    hard = preprocessing_fingerprint(spec)
    names = [*(f"hard:{name}" for name in hard), *photos.names]
    pixels = [*hard.values(), *photos.pixels]
    judged = _judge(program, reference, names, pixels, request)
    return {
        "schema": "edgeline.verification-of-file/1",
        "passed": not judged["problems"],
        "file": _describe(request.file, program),
        "against": _describe(request.against, reference) if reference and request.against else None,
        "preprocess": spec.to_dict(),
        "normalization": {"mean": request.feed.mean, "std": request.feed.std, "of": "values of 0 to 1"},
        "images": {
            "photos": len(photos.names),
            "found": photos.found,
            "stress_images": len(hard),
            "unreadable": [{"image": name, "why": why} for name, why in photos.unreadable],
        },
        **judged,
        "notes": _notes(request, program, reference),
        "measured_on": provenance(
            "edgeline verify --onnx FILE --data DIR", runtime_options(), packages=(*DEVICE, "torch", "onnx")
        ),
    }


def as_outputs(scores_NK: np.ndarray, *, probabilities: bool, floor: float) -> Outputs:
    """Bring scores to where those of both sides can be compared.

    Args:
        scores_NK: logits, or probabilities.
        probabilities: whether one side gives nothing but probabilities: then the logits are their logarithms.
        floor: the smallest probability that is told from 0.
    """
    if not probabilities:
        return Outputs(softmax(scores_NK, axis=1), scores_NK)
    share_NK = scores_NK if is_distribution(scores_NK) else softmax(scores_NK, axis=1)
    return Outputs(share_NK, np.log(np.maximum(share_NK, np.float32(floor))))


def is_distribution(scores_NK: np.ndarray) -> bool:
    """Whether scores are probabilities: none under 0 and their sum 1, as far as an int8 can tell."""
    return bool((scores_NK >= 0).all() and (np.abs(scores_NK.sum(1) - 1) < 0.02).all())


def _judge(
    program: Program, reference: Program | None, names: Sequence[str], pixels: Sequence[np.ndarray], request: Request
) -> dict[str, Any]:
    config, feed = request.config, request.feed
    precision = min((p.precision for p in (program, reference) if p is not None), key=PRECISIONS.index)
    scores, problems = _run_batches(program, pixels, feed, config)
    first = next(iter(scores))
    truth_NK = None if reference is None else reference.ask(pixels, feed, reference.port.batch or 1)
    if truth_NK is not None and truth_NK.shape != scores[first].shape:
        raise VerificationError(
            f"{program.name} has {scores[first].shape[1]} classes, what it is held against has {truth_NK.shape[1]}: they are "
            "not one model; look at --against",
            code="classes_differ",
        )
    report: dict[str, Any] = {"precision": precision, "batches": list(scores), "problems": problems}
    report |= dict.fromkeys(("scores", "levels_sqnr_db", "similarity", "thresholds", "comparisons", "divergence"))
    if found := _nan_weights(program) + _broken(program, scores[first], names) + _broken(reference, truth_NK, names):
        problems += found
        return report
    probabilities = is_distribution(scores[first]) or (truth_NK is not None and is_distribution(truth_NK))
    view = partial(as_outputs, probabilities=probabilities, floor=FLOORS[precision])
    report["scores"] = "probabilities" if probabilities else "logits"
    observed = {batch: view(scores_NK) for batch, scores_NK in scores.items()}
    ways, report["levels_sqnr_db"] = _other_ways(program, pixels, feed, view, observed)
    problems += ways
    if np.ptp(observed[first].logits_NK, axis=0).max() < MIN_SPREAD * _largest(observed[first]):
        problems.append(f"{program.name} gives the same answer for every image")
    if reference is not None and truth_NK is not None:
        pair = Pair(file=program, reference=reference, feed=feed, view=view, precision=precision)
        unlike, figures = _hold(pair, view(truth_NK), observed, names, config)
        report |= figures
        if unlike:
            place, report["divergence"] = diverging_layer(pair, pixels[len(stress_images()) :])
            problems += [*unlike, *suspect(pair, pixels[:PROBE_IMAGES]), *([place] if place else [])]
    return report


def _run_batches(
    program: Program, pixels: Sequence[np.ndarray], feed: Feed, config: VerifyConfig
) -> tuple[dict[int, np.ndarray], list[str]]:
    """Scores by batch size, and what fails at other batch sizes than the first."""
    first, *others = [program.port.batch] if program.port.batch else [1, config.odd_batch, config.max_batch]
    scores, problems = {first: program.ask(pixels, feed, first)}, []
    for batch in others:
        try:
            scores[batch] = program.ask(pixels, feed, batch)
        except VerificationError as error:
            problems.append(str(error))
    return scores, problems


def _other_ways(
    program: Program,
    pixels: Sequence[np.ndarray],
    feed: Feed,
    view: Callable[[np.ndarray], Outputs],
    observed: dict[int, Outputs],
) -> tuple[list[str], dict[str, float]]:
    """What changes with the batch, when asked again, on one thread, and at other levels of optimization (SQNR in dB)."""
    first, probed = next(iter(observed)), pixels[:PROBE_IMAGES]
    usual = observed[first][:PROBE_IMAGES]
    tolerance = ALIKE[program.precision] * _largest(observed[first])
    moved = {f"at batch {batch}": logit_difference(observed[first], other) for batch, other in observed.items()}
    moved["when asked again"] = logit_difference(usual, view(program.ask(probed, feed, first)))
    moved["on one thread"] = logit_difference(usual, view(in_session(program, threads=1).ask(probed, feed, first)))
    levels_db = {}
    for level in LEVELS:
        other = view(in_session(program, level=level).ask(probed, feed, first))
        levels_db[level] = sqnr_db(usual.logits_NK.astype(np.float64), other.logits_NK.astype(np.float64))
        if program.precision == "float32":  # what lower precisions round otherwise there is told, not judged
            moved[f"at the level {level} of graph optimization"] = logit_difference(usual, other)
    problems = [
        f"{program.name} gives other answers {how}: a logit moves by {by:.2g}, at most {tolerance:.2g} is allowed"
        for how, by in moved.items()
        if by > tolerance
    ]
    if problems and "DynamicQuantizeLinear" in operators_of(program):
        problems.append("it quantizes dynamically: one scale for a whole batch, so an image's answer depends on the others")
    return problems, levels_db


def _hold(
    pair: Pair, expected: Outputs, observed: dict[int, Outputs], names: Sequence[str], config: VerifyConfig
) -> tuple[list[str], dict[str, Any]]:
    """Hold the file's answers against the reference's, at the thresholds of the lower of their precisions."""
    similarity = compare_outputs(expected, next(iter(observed.values())))
    if pair.precision != "float32":
        thresholds = config.int8 if pair.precision == "int8" else config.fp16
        held = thresholds.model_dump(exclude={"max_drop"})  # the photos have no labels
        return failed_thresholds(similarity, None, thresholds), {"similarity": similarity.to_dict(), "thresholds": held}
    comparisons = [
        compare(names, expected, other, config, batch=batch, reference=pair.reference.name) for batch, other in observed.items()
    ]
    # What is wrong at every batch size is said once.
    unlike = next(([f"batch {c.batch}: {problem}" for problem in c.problems] for c in comparisons if c.problems), [])
    held = {"max_difference": config.max_difference, "margin": config.margin, "top1_agreement_over_margin": 1.0}
    return unlike, {"similarity": similarity.to_dict(), "thresholds": held, "comparisons": [c.to_dict() for c in comparisons]}


def _open_reference(request: Request, program: Program) -> Program | None:
    if request.against is None:
        return None
    data = read_file(request.against)
    kind = kind_of(request.against, data)
    if kind == "ONNX":
        reference = open_onnx(request.against, data, request.size)
    else:
        reference = open_torch(request.against, data, kind, like=program.port, trusted=request.trusted)
    if (reference.port.height, reference.port.width) != (program.port.height, program.port.width):
        raise VerificationError(
            f"{program.name} takes {program.port}, {reference.name} {reference.port}: another size; look at --against",
            code="sizes_differ",
        )
    return reference


def _nan_weights(program: Program) -> list[str]:
    found = nan_weights(program)
    return [f"{len(found)} of its weights hold NaN: {', '.join(found[:3])}"] if found else []


def _broken(program: Program | None, scores_NK: np.ndarray | None, names: Sequence[str]) -> list[str]:
    if program is None or scores_NK is None or (finite_N := np.isfinite(scores_NK).all(1)).all():
        return []
    broken = [names[i] for i in np.flatnonzero(~finite_N).tolist()]
    return [f"{program.name} gives NaN or infinity for {len(broken)} of {len(names)} images ({', '.join(broken[:3])})"]


def _largest(outputs: Outputs) -> float:
    return max(1.0, float(np.abs(outputs.logits_NK).max()))


def _describe(path: Path, program: Program) -> dict[str, Any]:
    data = read_file(path)
    return {
        "name": program.name,
        "kind": program.kind,
        "precision": program.precision,
        "takes": str(program.port),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _notes(request: Request, program: Program, reference: Program | None) -> list[str]:
    """What was taken for granted, and what was not looked at."""
    notes = []
    if program.port.dtype == "uint8" and (reference is None or reference.port.dtype == "uint8"):
        notes.append("pixels are fed as bytes: mean and std are not used")
    elif request.feed == IMAGENET:
        notes.append("mean and std are ImageNet's; give --mean and --std where the file was made for others")
    if program.port.batch:
        notes.append(f"its batch is fixed: run at batch {program.port.batch} only")
    if reference is None:
        notes.append(
            "nothing was compared with another program: it runs, and alike in every way; whether it is right is not known"
        )
    return notes
