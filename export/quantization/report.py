"""What the int8 recipe search reports: each recipe that was tried, and the one that was chosen."""

from edgeline.export.parity.report import OutputSimilarity
from edgeline.export.records import JsonFloat, MeasuredOn, Record


class CalibrationImages(Record):
    """The training images that the ranges were measured on."""

    images: int
    sha256: str
    """Digest of their digests."""


class ValidationImages(Record):
    """The images that the recipes were compared on."""

    split: str = "val"
    images: int


class TriedRecipe(Record):
    """One recipe, compared with the float32 file on validation images."""

    recipe: str
    holds: bool
    """Whether it is within all thresholds."""
    failed_thresholds: tuple[str, ...]
    bytes: int
    size_ratio: float
    """Of the file, to the reference's."""
    integer_share: float
    """Of the multiply-adds, those that ONNX Runtime computes in integers."""
    similarity: OutputSimilarity
    p50_ms: float | None = None
    """Of one image on one thread; only of recipes that passed."""


class QatReport(Record):
    """Result of fine-tuning with int8 rounding; only `failed` if it was not possible."""

    epochs: int | None = None
    images: int | None = None
    losses: tuple[JsonFloat, ...] = ()
    seconds: float | None = None
    failed: str | None = None


class Int8Report(Record):
    """How int8 was chosen."""

    target: str
    calibration: CalibrationImages
    evaluated_on: ValidationImages
    exact_precision_setting: bool
    """Whether the processor needed the setting with which int8 products do not saturate."""
    tried: tuple[TriedRecipe, ...]
    tuning: QatReport | None = None
    chosen: str | None = None
    """The recipe; None if none is worth shipping, for the reason in `why`."""
    why: str | None = None
    float32_p50_ms: float | None = None
    speedup: float | None = None
    timed_on: str | None = None
    """The profile of the processor, as in `export.target`."""
    measured_on: MeasuredOn | None = None
