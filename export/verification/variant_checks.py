"""The checks of the release gate for variants, each a function that returns findings.

`export.variant_registry` lists the checks of each variant, in order. A variant is not expected to equal PyTorch but to be
similar, within the thresholds of its precision. How it is run must not change its outputs: neither the batch size nor the
number of threads.

Shapes: N images, K classes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgeline.export.converters.environments import opened
from edgeline.export.graph.contract import check_graph
from edgeline.export.parity.compare import Outputs, implausible, logit_difference, run_session
from edgeline.export.parity.report import AccuracyDrop
from edgeline.export.parity.similarity import compare_outputs, drop_between, failed_thresholds, sqnr_db
from edgeline.export.quantization.qdq_check import check_quantized
from edgeline.export.quantization.static_int8 import saturates
from edgeline.export.variant_registry import Check, VariantSpec
from edgeline.export.verification.context import Findings, VerificationContext
from edgeline.export.verification.coreml import check_structure
from edgeline.export.verification.explanations import compare_maps
from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.runtime.session import create_session

PROBE_IMAGES = 24
"""Images that other thread counts and optimization levels are tried on."""
LEVELS = ("extended", "disable_all")
"""Levels of graph optimization that are compared with the one that ships."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A variant's file, and what it is compared with. Its outputs are computed once."""

    spec: VariantSpec
    path: Path
    saturates: bool | None
    """As the variants step reported; None if it was not checked."""
    context: VerificationContext

    @cached_property
    def model(self) -> bytes:
        """The file."""
        return self.path.read_bytes()

    @property
    def may_saturate(self) -> bool:
        """Whether it must be run with the setting that keeps int8 products from saturating."""
        return self.spec.precision == "int8" and self.saturates is not False

    def open(self, threads: int | None = None) -> AbstractContextManager[Any]:
        """Load it in the runtime of its format."""
        return opened(self.spec.format, self.path, self.context.environments, threads, saturates=self.may_saturate)

    @cached_property
    def by_batch(self) -> dict[int, Outputs]:
        """Its outputs for all images, by batch size."""
        config = self.context.config
        with self.open() as session:
            return {
                batch: run_session(session, self.context.pixels, batch) for batch in (1, config.odd_batch, config.max_batch)
            }

    @property
    def outputs(self) -> Outputs:
        """Its outputs for all images, one at a time."""
        return self.by_batch[1]

    @property
    def max_rerun_difference(self) -> float:
        """Maximum change of a logit when only the way of running changes."""
        thresholds = self.spec.thresholds
        largest = max(1.0, float(np.abs(np.nan_to_num(self.outputs.logits_NK)).max()))
        return thresholds.max_rerun_difference * (largest if thresholds.rerun_is_relative else 1)


def check_onnx_graph(candidate: Candidate) -> Findings:
    """The graph contract."""
    context = candidate.context
    check_graph(candidate.model, context.spec, classes=context.classes, opset=context.opset)
    return Findings()


def check_int8_parameters(candidate: Candidate) -> Findings:
    """Scales, zero points and integers."""
    check_quantized(candidate.model, candidate.context.model)
    return Findings()


def check_metadata(candidate: Candidate) -> Findings:
    """The origin that the file states. Formats of other runtimes cannot store it."""
    found = create_session(candidate.model).get_modelmeta().custom_metadata_map
    return Findings(candidate.context.metadata_mismatches(found, "make the variants again"))


def check_saturation(candidate: Candidate) -> Findings:
    """What the variants step reported about saturating products."""
    if candidate.may_saturate or not saturates(candidate.model):
        return Findings()
    return Findings(["two products may exceed 16 bits, but variants.json rules that out; make the variants again"])


def check_coreml_package(candidate: Candidate) -> Findings:
    """What can be read in a Core ML package, which may not run here."""
    context = candidate.context
    structure, problems = check_structure(candidate.path, context, candidate.spec.thresholds.similarity(context.config))
    return Findings(problems, {"structure": structure})


def check_batch_sizes(candidate: Candidate) -> Findings:
    """Outputs that do not depend on the batch size."""
    alone = candidate.outputs
    return Findings(
        [
            f"batch {batch} gives different outputs from batch 1: a logit differs by {difference:.2g}"
            for batch, outputs in candidate.by_batch.items()
            if (difference := logit_difference(alone, outputs)) > candidate.max_rerun_difference
        ]
    )


def check_threads(candidate: Candidate) -> Findings:
    """Outputs that do not depend on the number of threads."""
    with candidate.open(threads=1) as session:
        alone = run_session(session, candidate.context.pixels[:PROBE_IMAGES], 1)
    difference = logit_difference(candidate.outputs[:PROBE_IMAGES], alone)
    if difference <= candidate.max_rerun_difference:
        return Findings()
    return Findings([f"one thread gives different outputs from {usable_cores()}: a logit differs by {difference:.2g}"])


def check_similarity(candidate: Candidate) -> Findings:
    """Similarity to PyTorch and the accuracy lost, within the thresholds of the precision."""
    context = candidate.context
    thresholds = candidate.spec.thresholds.similarity(context.config)
    similarity = compare_outputs(context.expected, candidate.outputs)
    drop = accuracy_drop(context, candidate.outputs)
    figures = {
        "thresholds": thresholds,
        "similarity": similarity,
        "accuracy": drop,
        "levels_sqnr_db": _other_levels(candidate) if candidate.spec.format == "onnx" else {},
    }
    return Findings(failed_thresholds(similarity, drop, thresholds), figures)


def check_activation_maps(candidate: Candidate) -> Findings:
    """Class activation maps and embeddings, if the run has them."""
    if candidate.context.expected_maps is None:
        return Findings()
    session = create_session(candidate.model, saturates=candidate.may_saturate)
    min_sqnr_db = candidate.spec.thresholds.similarity(candidate.context.config).min_sqnr_db
    figures, problems = compare_maps(
        session,
        candidate.context.expected_maps,
        min_sqnr_db=min_sqnr_db,
        max_sum_error=candidate.spec.thresholds.max_map_error,
    )
    return Findings(problems, {"explanation": figures})


def check_distribution(candidate: Candidate) -> Findings:
    """Probabilities that sum to 1, and outputs that depend on the image."""
    context = candidate.context
    return Findings(implausible(context.expected, candidate.outputs, images=len(context.pixels)))


CHECKS: dict[Check, Callable[[Candidate], Findings]] = {
    "onnx_graph": check_onnx_graph,
    "int8_parameters": check_int8_parameters,
    "metadata": check_metadata,
    "saturation": check_saturation,
    "coreml_package": check_coreml_package,
    "batch_sizes": check_batch_sizes,
    "threads": check_threads,
    "similarity": check_similarity,
    "activation_maps": check_activation_maps,
    "distribution": check_distribution,
}
"""By the name under which `VariantSpec.checks` lists it."""
BEFORE_RUNNING: frozenset[Check] = frozenset({"onnx_graph", "int8_parameters", "metadata", "saturation", "coreml_package"})
"""Checks that do not run the variant in its own runtime."""


def accuracy_drop(context: VerificationContext, outputs: Outputs) -> AccuracyDrop | None:
    """Accuracy on the test images and how far it is from PyTorch's; None if there are no test images."""
    if not context.labeled:
        return None
    positions, targets = zip(*context.labeled, strict=True)
    return drop_between(context.expected[list(positions)], outputs[list(positions)], np.array(targets))


def _other_levels(candidate: Candidate) -> dict[str, float]:
    """SQNR of other levels of graph optimization; files in other formats are already optimized."""
    logits_NK = candidate.outputs[:PROBE_IMAGES].logits_NK.astype(np.float64)
    found = {}
    for level in LEVELS:
        outputs = run_session(create_session(candidate.model, level=level), candidate.context.pixels[:PROBE_IMAGES], 1)
        found[level] = sqnr_db(logits_NK, outputs.logits_NK.astype(np.float64))
    return found
