"""Verify the variants of a run: each from its file's bytes to probabilities, on the same images as the reference.

The checks are in `export.verification.variant_checks`, their thresholds in `export.tolerances`.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeline.export.converters.environments import PACKAGES, time_in_environment
from edgeline.export.parity.layerwise import IMAGES, find_divergence
from edgeline.export.parity.similarity import compare_outputs
from edgeline.export.variant_registry import REFERENCE, VARIANTS
from edgeline.export.variants_report import VariantFile
from edgeline.export.verification.context import Findings, VerificationContext
from edgeline.export.verification.report import Costs, FailedVariant, PassedVariant, UnrunVariant
from edgeline.export.verification.variant_checks import BEFORE_RUNNING, CHECKS, Candidate, accuracy_drop
from edgeline.pipeline.progress import track
from edgeline.serve.errors import EdgelineError
from edgeline.serve.runtime.backends import files_of, not_run_here
from edgeline.serve.runtime.benchmark import RUNS, costs, times_command
from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.runtime.provenance import provenance

Result = PassedVariant | UnrunVariant | FailedVariant


def verify_variants(made: Sequence[VariantFile], folder: Path, context: VerificationContext) -> list[Result]:
    """Verify every variant that was made.

    Args:
        made: as `variants.json` lists them.
        folder: where the files are.
        context: what they are compared with.

    Returns:
        A result for each, those that were not made included.
    """
    return [_verify(entry, folder, context) for entry in track(made, "verifying variants", len(made))]


def _verify(entry: VariantFile, folder: Path, context: VerificationContext) -> Result:
    if not entry.made:
        return FailedVariant(**dict(entry), problems=[entry.why])
    spec = VARIANTS[entry.name]
    parts = {name: (folder / name).read_bytes() for name in files_of(spec.format, spec.file)}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    common = dict(entry) | {"sha256": digests[spec.file], "files": digests, "bytes": sum(map(len, parts.values()))}
    candidate = Candidate(spec=spec, path=folder / spec.file, saturates=entry.saturates, context=context)
    try:
        findings = evaluate_variant(candidate)
    except EdgelineError as error:  # it breaks the contract, or does not load or run
        return FailedVariant(**common, problems=[str(error)])
    found, problems = common | dict(findings.figures), list(findings.problems)
    if problems:
        if spec.format == "onnx":
            images_NHW3 = np.stack(context.pixels[:IMAGES])
            quantized = spec.precision == "int8"
            found["divergence"] = find_divergence(
                context.deployed, candidate.model, context.spec, images_NHW3, quantized=quantized
            )
            problems += found["divergence"].problems
        return FailedVariant(**found, problems=problems)
    return UnrunVariant(**found) if "not_run" in found else PassedVariant(**found)


def evaluate_variant(candidate: Candidate) -> Findings:
    """Run a variant's checks, and measure its times and memory.

    Returns:
        The problems, and as figures the fields of its result. `not_run` is among them if the variant runs on other machines
        only; then the checks that need it to run are left out.

    Raises:
        EdgelineError: a check cannot be run at all, for example because the file does not load.
    """
    problems: list[str] = []
    figures: dict[str, Any] = {}
    not_run = not_run_here(candidate.spec.format)
    for name in candidate.spec.checks:
        if not_run is not None and name not in BEFORE_RUNNING:
            continue
        findings = CHECKS[name](candidate)
        problems += findings.problems
        figures |= findings.figures
    if not_run is not None:
        return Findings(problems, figures | {"not_run": not_run})
    return Findings(problems, figures | dict(measure_costs(candidate)))


def describe_reference(context: VerificationContext) -> PassedVariant:
    """The figures of the float32 reference, measured as those of its variants are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, REFERENCE.file)
        path.write_bytes(context.model)
        measured = measure_costs(Candidate(spec=REFERENCE, path=path, saturates=True, context=context))
    digest = hashlib.sha256(context.model).hexdigest()
    return PassedVariant(
        name=REFERENCE.name,
        file=REFERENCE.file,
        format=REFERENCE.format,
        precision=REFERENCE.precision,
        sha256=digest,
        files={REFERENCE.file: digest},
        bytes=len(context.model),
        similarity=compare_outputs(context.expected, context.outputs),
        accuracy=accuracy_drop(context, context.outputs),
        **dict(measured),
    )


def measure_costs(candidate: Candidate) -> Costs:
    """Latency, cold start and memory; for the format of another runtime, in that runtime's environment."""
    spec, context = candidate.spec, candidate.context
    if spec.converter is None:
        saturates = candidate.may_saturate or spec is REFERENCE
        found = costs(candidate.path, spec.format, context.timed_image, context.spec, variant=spec.name, saturates=saturates)
        return Costs.model_validate(found)
    latency: dict[str, Any] = {}
    for threads in dict.fromkeys((1, usable_cores())):
        times = time_in_environment(spec.format, candidate.path, context.spec, context.environments, threads)
        latency[f"threads_{threads}"] = times | {"runs": RUNS}
    how = provenance(times_command(spec.name), {"batch": 1, "runs": RUNS, "runtime": spec.format, "image": "black"})
    how["versions"] |= dict(package.split("==") for package in PACKAGES[spec.format])  # of the environment that ran it
    return Costs.model_validate({"latency": latency, "start": times, "measured_on": how})
