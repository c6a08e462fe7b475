"""The gate for the variants: each from its file's bytes to probabilities, on the same images as the reference.

Equality is not asked of them but similarity to PyTorch, at thresholds that depend on the precision
(`pipeline.config.Int8Thresholds`). What must not change the answers at all is how a variant is run: the batch size, the number
of threads. What a lower level of graph optimization changes is told: for int8 it is the rounding of a simulation in float.

Shapes: N images, K classes, H x W the model's input.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeline.export import file_names
from edgeline.export.converters.environments import FOLDER, PACKAGES, opened, time_there
from edgeline.export.graph.contract import check_graph
from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.parity.compare import MIN_SPREAD, Outputs, run_session
from edgeline.export.parity.layerwise import IMAGES, find_divergence
from edgeline.export.parity.similarity import compare_outputs, drop_between, failed_thresholds, sqnr_db
from edgeline.export.quantization.qdq_check import check_quantized
from edgeline.export.quantization.static_int8 import saturates
from edgeline.export.variants import KINDS
from edgeline.export.verification.coreml import check_structure
from edgeline.export.verification.explanations import Evidence, judge_evidence
from edgeline.pipeline.config import Int8Thresholds, VerifyConfig
from edgeline.pipeline.progress import track
from edgeline.serve.errors import EdgelineError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.backends import files_of, not_run_here
from edgeline.serve.runtime.benchmark import RUNS, costs, times_command
from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.runtime.provenance import provenance
from edgeline.serve.runtime.session import create_session

PROBED = 24
"""Images that the other thread counts and optimization levels are tried on."""
FLOAT32 = Int8Thresholds(
    min_sqnr_db=100, min_agreement=0.99, min_clear_agreement=1, max_kl=1e-6, max_difference=1e-4, max_drop=0
)
"""A float32 file in another format computes the same; 120 dB were seen."""
REFERENCE = {"name": "onnx-fp32", "file": file_names.MODEL, "format": "onnx", "precision": "float32"}
LEVELS = ("extended", "disable_all")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What variants are held against, the same for all of them."""

    reference: bytes
    """The float32 ONNX file that they were made of."""
    deployed: CalibratedModel
    """The network, to find where a variant that fails diverges from it."""
    spec: PreprocessSpec
    pixels: Sequence[np.ndarray]
    """Of each image, uint8 (H, W, 3)."""
    expected: Outputs
    """What PyTorch gives for them."""
    evidence: Evidence | None = None
    """What it sees where, in some of them, if the files are to explain themselves."""
    tested: Sequence[tuple[int, int]]
    """Position and true class of the images that count for accuracy."""
    scene: bytes
    """An image's bytes to time with."""
    metadata: dict[str, str]
    """What each file must say of its origin."""
    config: VerifyConfig
    """Batches and thresholds."""
    opset: int | None
    """The operator set that a file may use at most; any where None."""
    environments: Path = FOLDER
    """Where the runtimes that stay apart are installed."""


def verify_variants(made: Sequence[dict[str, Any]], folder: Path, measure: Measure) -> list[dict[str, Any]]:
    """Judge every variant that was made.

    Args:
        made: entries of `variants.json`.
        folder: where the files lie.
        measure: what they are held against.

    Returns:
        An entry a variant, with `passed` and `problems`; those that were not made are passed on as they are. `passed` is None
        and `not_run` says why where a variant runs on other machines only, and what can be checked here holds.
    """
    judged = []
    for entry in track(made, "verifying variants", len(made)):
        if not entry["made"]:
            judged.append(entry | {"passed": False, "problems": [entry["why"]]})
            continue
        parts = {name: (folder / name).read_bytes() for name in files_of(entry["format"], entry["file"])}
        model = parts[entry["file"]]
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
        found: dict[str, Any] = {"sha256": digests[entry["file"]], "files": digests, "bytes": sum(map(len, parts.values()))}
        try:
            found |= _judge(entry, folder / entry["file"], measure)
        except EdgelineError as error:  # it breaks the contract, or does not load or run
            found |= {"passed": False, "problems": [str(error)]}
        if not found["passed"] and entry["format"] == "onnx" and "similarity" in found:
            quantized = entry["precision"] == "int8"
            images_NHW3 = np.stack(measure.pixels[:IMAGES])
            place, found["divergence"] = find_divergence(
                measure.deployed, model, measure.spec, images_NHW3, None, quantized=quantized
            )
            found["problems"] += [place] if place else []
        judged.append(entry | found)
    return judged


def _judge(entry: dict[str, Any], path: Path, measure: Measure) -> dict[str, Any]:
    expected, pixels, spec, config = measure.expected, measure.pixels, measure.spec, measure.config
    kind = KINDS[entry["name"]]
    problems: list[str] = []
    if kind.format == "onnx":
        check_graph(path.read_bytes(), spec, classes=expected.logits_NK.shape[1], opset=measure.opset)
        if kind.precision == "int8":
            check_quantized(path.read_bytes(), measure.reference)
    at_risk = kind.precision == "int8" and entry.get("saturates") is not False
    if kind.format in ("onnx", "ort"):  # the other formats have no room for what a file says of itself
        problems = _strangers(create_session(path.read_bytes()), measure.metadata)
    if kind.format == "onnx" and kind.precision == "int8" and not at_risk and saturates(path.read_bytes()):
        problems.append("two products may exceed 16 bits, although it is said that they cannot; make the variants again")
    if kind.format == "coreml":
        structure, problems = check_structure(
            path,
            measure.reference,
            spec=spec,
            expected=expected,
            pixels=pixels,
            thresholds=config.fp16,
            environments=measure.environments,
        )
        if (why := not_run_here(kind.format)) is not None:
            return {"passed": False if problems else None, "problems": problems, "not_run": why, "structure": structure}
    open_model = partial(opened, kind.format, path, measure.environments, saturates=at_risk)
    with open_model() as session:
        by_batch = {batch: run_session(session, pixels, batch) for batch in (1, config.odd_batch, config.max_batch)}
    observed = by_batch[1]
    problems += [
        f"batch {batch} gives other answers than batch 1: a logit differs by {difference:.2g}"
        for batch, outputs in by_batch.items()
        if (difference := logit_difference(observed, outputs)) > _tolerance(kind.precision, observed)
    ]
    with open_model(threads=1) as session:
        alone = run_session(session, pixels[:PROBED], 1)
    if (difference := logit_difference(_first(observed), alone)) > _tolerance(kind.precision, observed):
        problems.append(f"one thread gives other answers than {usable_cores()}: a logit differs by {difference:.2g}")
    similarity = compare_outputs(expected, observed)
    drop = _accuracy(observed, measure)
    thresholds = {"int8": config.int8, "float32": FLOAT32}.get(kind.precision, config.fp16)
    problems += failed_thresholds(similarity, drop, thresholds)
    explanation = None
    if measure.evidence is not None and kind.format in ("onnx", "ort"):
        session = create_session(path.read_bytes(), saturates=at_risk)
        explanation, unlike = judge_evidence(session, measure.evidence, kind.precision, min_sqnr_db=thresholds.min_sqnr_db)
        problems += unlike
    if (most := float(np.abs(observed.probabilities_NK.sum(1) - 1).max())) > 1e-3:
        problems.append(f"the file's probabilities do not sum to 1 (off by {most:.3g}); is the softmax missing?")
    if np.ptp(np.nan_to_num(observed.logits_NK), axis=0).max() < MIN_SPREAD * max(1.0, np.abs(expected.logits_NK).max()):
        problems.append("the file gives the same answer for every image")
    return {
        "passed": not problems,
        "problems": problems,
        "thresholds": thresholds.model_dump(),
        "similarity": similarity.figures,
        "explanation": explanation,
        "accuracy": drop,
        "levels_sqnr_db": _levels(path.read_bytes(), observed, pixels) if kind.format == "onnx" else {},
        **_costs(entry, path, measure, saturates=at_risk),
    }


def describe_reference(observed: Outputs, measure: Measure) -> dict[str, Any]:
    """The figures of the float32 reference, as `verify_variants` gives them: the row that the others are read against.

    Args:
        observed: what it gives for the images.
        measure: as for the variants.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, REFERENCE["file"])
        path.write_bytes(measure.reference)
        taken = _costs(REFERENCE, path, measure, saturates=True)
    return {
        **REFERENCE,
        "passed": True,
        "problems": [],
        "bytes": len(measure.reference),
        "sha256": hashlib.sha256(measure.reference).hexdigest(),
        "similarity": compare_outputs(measure.expected, observed).figures,
        "accuracy": _accuracy(observed, measure),
        **taken,
    }


def _costs(entry: Mapping[str, Any], path: Path, measure: Measure, *, saturates: bool) -> dict[str, Any]:
    """Latency, cold start and memory; of another runtime's formats in that runtime's environment."""
    name, format = entry["name"], entry["format"]
    if format not in PACKAGES:
        return costs(path, format, measure.scene, measure.spec, variant=name, saturates=saturates)
    latency, start = {}, {}
    for threads in dict.fromkeys((1, usable_cores())):
        found = time_there(format, path, measure.spec, measure.environments, threads)
        start = {key: found[key] for key in ("import_ms", "load_ms", "first_answer_ms", "peak_mb")}
        latency[f"threads_{threads}"] = {"p50_ms": found["p50_ms"], "p95_ms": found["p95_ms"], "runs": RUNS}
    how = provenance(times_command(name), {"batch": 1, "runs": RUNS, "runtime": format, "image": "black"})
    how["versions"] |= dict(package.split("==") for package in PACKAGES[format])  # it is not this environment that ran it
    return {"latency": latency, "start": start, "measured_on": how}


def _accuracy(observed: Outputs, measure: Measure) -> dict[str, Any] | None:
    """On the test images, and how far it is from PyTorch's on the same ones; None where there are none."""
    if not measure.tested:
        return None
    positions = [position for position, _ in measure.tested]
    targets_N = np.array([index for _, index in measure.tested])
    return drop_between(_take(measure.expected, positions), _take(observed, positions), targets_N)


def _levels(model: bytes, observed: Outputs, pixels: Sequence[np.ndarray]) -> dict[str, float]:
    """What other levels of graph optimization make of an ONNX file; the other formats are optimized already."""
    found = {}
    for level in LEVELS:
        outputs = run_session(create_session(model, level=level), pixels[:PROBED], 1)
        found[level] = sqnr_db(_first(observed).logits_NK.astype(np.float64), outputs.logits_NK.astype(np.float64))
    return found


def _strangers(session: Any, metadata: dict[str, str]) -> list[str]:
    found = session.get_modelmeta().custom_metadata_map
    return [
        f"the file says {key} = {found.get(key)!r}, this run has {value!r}; make the variants again"
        for key, value in metadata.items()
        if found.get(key) != value
    ]


def _tolerance(precision: str, outputs: Outputs) -> float:
    """Integers add up to the same in any order; float32 in another order differs in the last bits."""
    return 1e-4 * max(1.0, float(np.abs(np.nan_to_num(outputs.logits_NK)).max())) if precision != "int8" else 1e-5


def logit_difference(one: Outputs, other: Outputs) -> float:
    """The largest difference of any logit; infinite where one of the two is not finite."""
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(np.abs(one.logits_NK - other.logits_NK), nan=np.inf).max())


def _first(outputs: Outputs) -> Outputs:
    return Outputs(outputs.probabilities_NK[:PROBED], outputs.logits_NK[:PROBED])


def _take(outputs: Outputs, positions: list[int]) -> Outputs:
    return Outputs(outputs.probabilities_NK[positions], outputs.logits_NK[positions])
