"""What the release gate reports: `verification.json`.

    python -m edgeline.export.verification.report > docs/schemas/verification.schema.json

writes its JSON Schema.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from edgeline.export.parity.report import AccuracyDrop, Comparison, Divergence, OutputSimilarity
from edgeline.export.quantization.report import Int8Report
from edgeline.export.records import Document, JsonFloat, MeasuredOn, Record
from edgeline.export.variants_report import VariantFile
from edgeline.pipeline.thresholds import Int8Thresholds


class ImageCounts(Record):
    """Images of a verification."""

    held_out: int
    stress_images: int

    @property
    def total(self) -> int:
        """All images."""
        return self.held_out + self.stress_images


class ReferenceThresholds(Record):
    """Thresholds of the reference."""

    max_difference: float
    margin: float
    top1_agreement_over_margin: float = 1.0


class Accuracy(Record):
    """Accuracy on the test images, with its 95 % Wilson score interval."""

    value: float
    low: float
    high: float
    correct: int
    total: int


class Latency(Record):
    """Milliseconds of one image."""

    p50_ms: float
    p95_ms: float
    preprocess_p50_ms: float | None = None
    """Decoding and resizing; not measured of other runtimes."""
    runs: int


class ColdStart(Record):
    """What a fresh process takes to load a model and classify one image."""

    import_ms: float
    load_ms: float
    first_answer_ms: float
    peak_mb: float

    @property
    def total_ms(self) -> float:
        """Milliseconds until the first image is classified."""
        return self.import_ms + self.load_ms + self.first_answer_ms


class Costs(Record):
    """Times and memory of a variant."""

    latency: dict[str, Latency]
    """By number of threads: `threads_1`, and `threads_N` for all cores."""
    start: ColdStart
    measured_on: MeasuredOn


class MapFigures(Record):
    """How a file's class activation maps compare with PyTorch's."""

    images: int
    max_difference: float
    """Of a value of a map, as a share of the largest."""
    sqnr_db: float
    """Of the maps."""
    embedding_sqnr_db: float
    adds_up: float
    """Largest difference of the mean of a map from the file's own logit, as a share of the image's largest logit."""


class PackageStructure(Record):
    """What was read in a Core ML package where Core ML does not run."""

    model_config = ConfigDict(extra="allow")

    kind: str
    weights: int
    """Arrays that were compared with the ONNX file's."""
    similarity: OutputSimilarity | None = None
    """Of its graph, computed by PyTorch; None if it has operators that are not computed here."""


class Variant(VariantFile):
    """A variant as verified: its files by their SHA-256, and its size."""

    sha256: str | None = None
    """Of the file that the manifest names."""
    files: dict[str, str] = {}
    bytes: int | None = None
    problems: tuple[str, ...] = ()


class PassedVariant(Variant, Costs):
    """A variant that was run here and passed, or the reference."""

    passed: Literal[True] = True
    sha256: str
    bytes: int
    thresholds: Int8Thresholds | None = None
    similarity: OutputSimilarity
    explanation: MapFigures | None = None
    accuracy: AccuracyDrop | None
    """None if there are no test images."""
    levels_sqnr_db: dict[str, float] = {}
    """Of ONNX files: how other levels of graph optimization compare with the one that ships."""


class UnrunVariant(Variant):
    """A variant that runs on other machines only; what can be checked of it here passed."""

    passed: None = None
    sha256: str
    bytes: int
    not_run: str
    """Why."""
    structure: PackageStructure


class FailedVariant(Variant):
    """A variant that is not shipped, with the figures that are available."""

    passed: Literal[False] = False
    problems: tuple[str, ...] = Field(min_length=1)
    not_run: str | None = None
    structure: PackageStructure | None = None
    thresholds: Int8Thresholds | None = None
    similarity: OutputSimilarity | None = None
    explanation: MapFigures | None = None
    accuracy: AccuracyDrop | None = None
    levels_sqnr_db: dict[str, float] = {}
    latency: dict[str, Latency] = {}
    start: ColdStart | None = None
    measured_on: MeasuredOn | None = None
    divergence: Divergence | None = None
    """Of ONNX files: the first layer that differs."""


def _outcome(value: Any) -> str:
    passed = value.get("passed") if isinstance(value, dict) else value.passed
    return "not run" if passed is None else "passed" if passed else "failed"


VariantResult = Annotated[
    Annotated[PassedVariant, Tag("passed")] | Annotated[UnrunVariant, Tag("not run")] | Annotated[FailedVariant, Tag("failed")],
    Discriminator(_outcome),
]
"""By `passed`: true, null or false."""


class VerificationReport(Document):
    """Results of the release gate for one run."""

    schema_: Literal["edgeline.verification/2"] = Field("edgeline.verification/2", alias="schema")
    model_sha256: str
    """Of the float32 ONNX file."""
    passed: bool
    problems: tuple[str, ...]
    thresholds: ReferenceThresholds
    images: ImageCounts
    test_accuracy: Accuracy | None
    """Of the ONNX file; None if no test image was compared."""
    max_difference: float
    max_logit_difference: float
    top1_agreement: float
    pixel_drift_since_training: JsonFloat | None = None
    """Mean difference of the stress images' pixels from those at training time, of 255."""
    comparisons: tuple[Comparison, ...]
    """One for each batch size."""
    divergence: Divergence | None = None
    explanation: MapFigures | None = None
    reference: PassedVariant | None = None
    """The float32 file's figures; None if it failed."""
    variants: tuple[VariantResult, ...] = ()
    int8: Int8Report | None = None
    """How int8 was chosen, if it was requested."""
    measured_on: MeasuredOn
    inputs: dict[str, str] = {}
    """Digests of the results that were verified, by step."""

    @property
    def measured(self) -> tuple[PassedVariant, ...]:
        """The reference and the variants that ship and were run here."""
        rows = () if self.reference is None else (self.reference,)
        return (*rows, *(variant for variant in self.variants if isinstance(variant, PassedVariant)))

    @property
    def shipped(self) -> Iterator[PassedVariant | UnrunVariant]:
        """The variants that ship."""
        return (variant for variant in self.variants if not isinstance(variant, FailedVariant))


def verification_schema() -> str:
    """The JSON Schema of `verification.json`."""
    return json.dumps(VerificationReport.model_json_schema(by_alias=True), indent=1) + "\n"


if __name__ == "__main__":
    print(verification_schema(), end="")
