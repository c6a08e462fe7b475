"""Findings of a verification: the variants that do not ship, and those that could not be run."""

from collections.abc import Iterator

from edgeline.export.verification.report import FailedVariant, UnrunVariant, VerificationReport
from edgeline.pipeline.runs.findings import Finding


def find_in_verification(report: VerificationReport) -> Iterator[Finding]:
    """A finding for each variant that failed or was not run."""
    for variant in report.variants:
        if isinstance(variant, UnrunVariant):
            yield Finding(code="variant_not_run", message=_not_run_line(variant))
        elif isinstance(variant, FailedVariant):
            yield Finding(code="variant_left_out", message=f"{variant.name} is not shipped: {'; '.join(variant.problems)}.")


def _not_run_line(variant: UnrunVariant) -> str:
    structure = variant.structure
    found = f"its inputs, outputs and {structure.weights} weights are those of the network"
    if (similarity := structure.similarity) is not None:
        found += (
            f"; its graph, computed by PyTorch, has the same best class on {similarity.top1_agreement:.2%} of "
            f"{similarity.images} images, SQNR {similarity.sqnr_db:.0f} dB"
        )
    return (
        f"{variant.name} ({variant.bytes / 1e6:.1f} MB) is shipped and was not run here ({variant.not_run}): {found}; "
        "`edgeline check` verifies it there."
    )
