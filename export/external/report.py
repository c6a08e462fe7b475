"""What the verification of a third-party file reports: `edgeline verify-onnx --json`."""

from typing import Any, Literal

from pydantic import Field

from edgeline.export.parity.report import Comparison, Divergence, OutputSimilarity
from edgeline.export.records import Document, MeasuredOn, Record


class FileDescription(Record):
    """One of the files that were compared."""

    name: str
    kind: str
    """Its format."""
    precision: str
    takes: str
    """Its input."""
    bytes: int
    sha256: str


class Normalization(Record):
    """How pixel values became the input of a float model."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    of: str = "values of 0 to 1"


class UnreadableFile(Record):
    """A file of the folder that is not a photo."""

    image: str
    why: str


class PhotoCounts(Record):
    """Images of a verification."""

    photos: int
    found: int
    """Files in the folder."""
    stress_images: int
    unreadable: tuple[UnreadableFile, ...]


class FileSubject(Document):
    """What was verified, against what and on which images."""

    schema_: Literal["edgeline.verification-of-file/1"] = Field("edgeline.verification-of-file/1", alias="schema")
    passed: bool
    file: FileDescription
    against: FileDescription | None
    preprocess: dict[str, Any]
    """As `PreprocessSpec.to_dict` writes it."""
    normalization: Normalization
    images: PhotoCounts


class FileFindings(Record):
    """What running the file found; what was not measured is None."""

    precision: str
    """The lower of the two files' precisions."""
    batches: tuple[int, ...]
    problems: tuple[str, ...]
    """Of the comparison with the reference too."""
    scores: str | None = None
    """What was compared: `logits` or `probabilities`."""
    levels_sqnr_db: dict[str, float] | None = None
    """How other levels of graph optimization compare with the usual one."""


class ReferenceComparison(Record):
    """How the file compares with its reference; None where there is none, or nothing to report."""

    similarity: OutputSimilarity | None = None
    thresholds: dict[str, float] | None = None
    """Those that applied."""
    comparisons: tuple[Comparison, ...] | None = None
    """One for each batch size, of float32 files."""
    divergence: Divergence | None = None


class FileReport(ReferenceComparison, FileFindings, FileSubject):
    """The findings about one file, and how they were made."""

    notes: tuple[str, ...]
    """The assumptions made, and what was not checked."""
    measured_on: MeasuredOn
