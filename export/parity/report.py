"""What comparisons report. Without torch and SciPy, so that reading a report is quick."""

import math

from edgeline.export.records import JsonFloat, Record


class ImageDifference(Record):
    """The largest differences of one image's outputs."""

    image: str
    difference: float
    """Of a probability."""
    logit_difference: float
    """As a share of the largest logit that PyTorch computed."""


class Flip(ImageDifference):
    """An image with another best class."""

    margin: float
    """Between PyTorch's best two classes."""


class Comparison(Record):
    """Result of a comparison of two sets of outputs."""

    images: int
    batch: int
    max_difference: float
    """Of a probability."""
    max_logit_difference: float
    """As a share of the largest logit that PyTorch computed."""
    top1_agreement: float
    """Share of all images whose best class is the same."""
    top1_agreement_over_margin: float
    """The same over the images whose best two classes PyTorch separates by more than the margin."""
    flips: tuple[Flip, ...]
    worst: tuple[ImageDifference, ...]
    """Images with the largest differences."""
    problems: tuple[str, ...]


class OutputSimilarity(Record):
    """Figures of a comparison of a variant with the reference."""

    images: int
    sqnr_db: float
    """Energy of the reference's logits over that of the difference, in decibels."""
    cosine: JsonFloat
    """Mean cosine of the angle between the two logit vectors."""
    kl: JsonFloat
    """Mean Kullback-Leibler divergence of the variant's probabilities from the reference's, in nats."""
    max_difference: JsonFloat
    """Of a probability."""
    top1_agreement: float
    clear_agreement: float
    """Of the best class, over the images on which the reference is clear (see `tolerances.CLEAR_MARGIN`)."""
    top5_agreement: float
    """Mean share of the reference's best five classes (or all but one of fewer) that are among the variant's."""
    flips: int
    """Images with another best class."""
    largest_flipped_margin: float
    """The reference's margin on the clearest image that flipped; 0 where none did."""

    @property
    def finite(self) -> bool:
        """Whether every figure is a number."""
        return all(map(math.isfinite, (self.sqnr_db, self.kl, self.max_difference, self.cosine)))


class AccuracyDrop(Record):
    """The accuracies of a variant and of the reference on the same images, and their paired difference."""

    reference_top1: float
    top1: float
    top1_interval: tuple[float, float]
    """95 %, Wilson score."""
    images: int
    lost: int
    """Images that only the reference classifies correctly."""
    gained: int
    """Images that only the variant classifies correctly."""
    drop_points: float
    """Percentage points."""
    drop_interval_points: tuple[float, float]
    """95 %."""


class Layer(Record):
    """A layer's output in the file, compared with PyTorch's."""

    module: str
    """Path in the PyTorch network."""
    node: str
    """Name in the ONNX graph."""
    sqnr_db: float


class Divergence(Record):
    """Every layer's figures, in the graph's order, and the first that is out of tolerance."""

    first: Layer | None
    layers: tuple[Layer, ...]

    @property
    def problems(self) -> list[str]:
        """A sentence that names the first diverging layer; empty if there is none."""
        if self.first is None:
            return []
        return [
            f"the first of {len(self.layers)} layers to diverge is {self.first.module} (ONNX node {self.first.node}, SQNR "
            f"{self.first.sqnr_db:.0f} dB): look at it and at what comes before it"
        ]
