"""The gate for the variants: each from its file's bytes to probabilities, on the same images as the reference.

Equality is not asked of them but likeness to PyTorch, at bars that depend on the precision (`pipeline.config.Bars`). What
must not change the answers at all is how a variant is run: the batch size, the number of threads. What a lower level of
graph optimisation changes is told: for int8 it is the rounding of a simulation in float.

Shapes: N images, K classes, H x W the model's input.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from export.comparison import MIN_SPREAD, Outputs, run_session
from export.coreml_structure import check_structure
from export.divergence import IMAGES, explain
from export.environments import opened, time_there
from export.graph import check_graph
from export.likeness import drop_between, liken, sqnr_db, unmet
from export.to_onnx import Deployed
from export.variants import KINDS
from pipeline.config import Bars, VerifyConfig
from pipeline.progress import track
from serve.errors import EdgelineError
from serve.formats import files_of, not_run_here
from serve.latency import measure as time_session
from serve.preprocess import PreprocessSpec
from serve.runtime import create_session, usable_cores

PROBED = 24
"""Images that the other thread counts and optimisation levels are tried on."""
FLOAT32 = Bars(min_sqnr_db=100, min_agreement=0.99, min_clear_agreement=1, max_kl=1e-6, max_difference=1e-4, max_drop=0)
"""A float32 file in another format computes the same; 120 dB were seen."""
LEVELS = ("extended", "disable_all")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What variants are held against, the same for all of them."""

    deployed: Deployed
    """The network, to find where a variant that fails diverges from it."""
    spec: PreprocessSpec
    pixels: Sequence[np.ndarray]
    """Of each image, uint8 (H, W, 3)."""
    expected: Outputs
    """What PyTorch gives for them."""
    tested: Sequence[tuple[int, int]]
    """Position and true class of the images that count for accuracy."""
    scene: bytes
    """An image's bytes to time with."""
    metadata: dict[str, str]
    """What each file must say of its origin."""
    config: VerifyConfig
    """Batches and bars."""
    opset: int | None
    """The operator set that a file may use at most; any where None."""
    environments: Path
    """Where the runtimes that stay apart are installed."""
    reference: bytes
    """The ONNX file, which held."""


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
        if not found["passed"] and entry["format"] == "onnx" and "likeness" in found:
            quantised = entry["precision"] == "int8"
            images_NHW3 = np.stack(measure.pixels[:IMAGES])
            place, found["divergence"] = explain(measure.deployed, model, measure.spec, images_NHW3, None, quantised=quantised)
            found["problems"] += [place] if place else []
        judged.append(entry | found)
    return judged


def _judge(entry: dict[str, Any], path: Path, measure: Measure) -> dict[str, Any]:
    expected, pixels, spec, config = measure.expected, measure.pixels, measure.spec, measure.config
    kind = KINDS[entry["name"]]
    open_model = partial(opened, kind.format, path, measure.environments)
    problems: list[str] = []
    if kind.format == "onnx":
        check_graph(path.read_bytes(), spec, classes=expected.logits_NK.shape[1], opset=measure.opset)
    if kind.format in ("onnx", "ort"):  # the other formats have no room for what a file says of itself
        problems = _strangers(create_session(path.read_bytes()), measure.metadata)
    if kind.format == "coreml":
        structure, problems = check_structure(
            path,
            measure.reference,
            spec=spec,
            expected=expected,
            pixels=pixels,
            bars=config.fp16,
            environments=measure.environments,
        )
        if (why := not_run_here(kind.format)) is not None:
            return {"passed": False if problems else None, "problems": problems, "not_run": why, "structure": structure}
    with open_model() as session:
        by_batch = {batch: run_session(session, pixels, batch) for batch in (1, config.odd_batch, config.max_batch)}
    observed = by_batch[1]
    problems += [
        f"batch {batch} gives other answers than batch 1: a logit differs by {difference:.2g}"
        for batch, outputs in by_batch.items()
        if (difference := _difference(observed, outputs)) > _tolerance(kind.precision, observed)
    ]
    with open_model(threads=1) as session:
        alone = run_session(session, pixels[:PROBED], 1)
    if (difference := _difference(_first(observed), alone)) > _tolerance(kind.precision, observed):
        problems.append(f"one thread gives other answers than {usable_cores()}: a logit differs by {difference:.2g}")
    likeness = liken(expected, observed)
    positions = [position for position, _ in measure.tested]
    targets_N = np.array([index for _, index in measure.tested])
    drop = drop_between(_take(expected, positions), _take(observed, positions), targets_N) if positions else None
    bars = {"int8": config.int8, "float32": FLOAT32}.get(kind.precision, config.fp16)
    problems += unmet(likeness, drop, bars)
    if np.ptp(np.nan_to_num(observed.logits_NK), axis=0).max() < MIN_SPREAD * max(1.0, np.abs(expected.logits_NK).max()):
        problems.append("the file gives the same answer for every image")
    return {
        "passed": not problems,
        "problems": problems,
        "bars": bars.model_dump(),
        "likeness": asdict(likeness),
        "accuracy": drop,
        "levels_sqnr_db": _levels(path.read_bytes(), observed, pixels) if kind.format == "onnx" else {},
        **_times(kind.format, path, measure),
    }


def _times(format: str, path: Path, measure: Measure) -> dict[str, Any]:
    """Latency on one thread and on all, and what a fresh process takes to start."""
    spec = measure.spec
    if format in ("onnx", "ort"):
        model = path.read_bytes()
        taken: dict[str, Any] = {
            f"threads_{threads}": asdict(time_session(create_session(model, threads=threads), measure.scene, spec))
            for threads in (1, usable_cores())
        }
        return {"latency": taken, "start": cold_start(path, format, spec)}
    size, environments = (spec.height, spec.width), measure.environments
    taken = {f"threads_{n}": time_there(format, path, size, environments, n) for n in (1, usable_cores())}
    return {"latency": taken, "start": taken[f"threads_{usable_cores()}"]}


def _levels(model: bytes, observed: Outputs, pixels: Sequence[np.ndarray]) -> dict[str, float]:
    """What other levels of graph optimisation make of an ONNX file; the other formats are optimised already."""
    found = {}
    for level in LEVELS:
        outputs = run_session(create_session(model, level=level), pixels[:PROBED], 1)
        found[level] = sqnr_db(_first(observed).logits_NK.astype(np.float64), outputs.logits_NK.astype(np.float64))
    return found


def cold_start(path: Path, format: str, spec: PreprocessSpec) -> dict[str, float]:
    """Start a process that loads a model and answers: what `serve.latency.start` tells."""
    command = [sys.executable, "-m", "serve.latency", str(path), str(spec.height), str(spec.width), format]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(done.stdout))


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


def _difference(one: Outputs, other: Outputs) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(np.abs(one.logits_NK - other.logits_NK), nan=np.inf).max())


def _first(outputs: Outputs) -> Outputs:
    return Outputs(outputs.probabilities_NK[:PROBED], outputs.logits_NK[:PROBED])


def _take(outputs: Outputs, positions: list[int]) -> Outputs:
    return Outputs(outputs.probabilities_NK[positions], outputs.logits_NK[positions])
