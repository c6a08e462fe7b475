"""Tolerances of the release gate that are not settings.

The thresholds that a run may set, such as the smallest SQNR of int8, are in `pipeline.thresholds` (variants) and
`pipeline.config` (`verify`). `PRECISIONS` has what applies to a variant, by its precision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgeline.pipeline.config import VerifyConfig
from edgeline.pipeline.thresholds import Fp16Thresholds, Int8Thresholds

# Outputs

MIN_SPREAD = 1e-4
"""Smallest change of a logit over all images, as a share of the largest logit; below it the model ignores its input."""
MAX_SUM_ERROR = 1e-3
"""Largest deviation of a row of probabilities from a sum of 1; above it the softmax is missing."""
CLEAR_MARGIN = 0.1
"""An image whose best two classes the reference separates by more than this counts for `min_clear_agreement`."""
FLOAT32 = Int8Thresholds(
    min_sqnr_db=100, min_agreement=0.99, min_clear_agreement=1, max_kl=1e-6, max_difference=1e-4, max_drop=0
)
"""Of a float32 file in another format, which computes the same; 120 dB were measured."""

# Layers

FLOAT_LAYER_DB = 80.0
"""A float32 layer with a lower SQNR is wrong: 112 dB was the lowest of a correct one."""
INT8_LAYER_FALL_DB = 10.0
"""An int8 layer whose SQNR is this much lower than the previous layer's is where the loss happens."""

# int8 parameters

MIN_WEIGHTS_DB = 15.0
"""SQNR of a layer's int8 weights against the reference's: 8 bits keep 30 dB and more; another order, scale or layer leaves 8 or
less."""
SCALE_TOLERANCE = 1e-3
"""Relative difference of two scales; they are float32."""
RANGE_TOLERANCE = 0.05
"""How far a range may exceed the bound of a fused activation, relative: histograms end at the edge of a bin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """What a variant computes in, and the thresholds that apply to it."""

    similarity: Callable[[VerifyConfig], Int8Thresholds]
    """Thresholds of the comparison with PyTorch."""
    max_rerun_difference: float = 1e-4
    """Largest change of a logit with the batch size or the number of threads."""
    rerun_is_relative: bool = True
    """Whether that is a share of the largest logit; integer sums do not depend on their order."""
    max_map_error: float = 1e-3
    """How far the mean of a class activation map may be from the logit, as a share of the image's largest logit. Less than the
    golden samples allow. In int8 the averaged map is rounded once more before the classifier."""
    golden_outputs: Literal["PyTorch", "reference", "file"] = "file"
    """Whose outputs a device must reproduce: PyTorch's, at the tolerances of the reference or at its own; or the file's own,
    from the machine that verified it."""
    golden_tolerance: float | None = None
    """Largest difference of a golden probability between processors; by default the run's `publish.golden_tolerance`."""
    golden_logit_tolerance: float | None = None
    """The same of a golden logit, as a share of the largest."""


def int8_thresholds(config: VerifyConfig) -> Int8Thresholds:
    """Thresholds of int8 variants."""
    return config.int8


def fp16_thresholds(config: VerifyConfig) -> Fp16Thresholds:
    """Thresholds of half-precision variants."""
    return config.fp16


PRECISIONS = {
    "float32": Precision(similarity=lambda _: FLOAT32, max_map_error=1e-4, golden_outputs="reference"),
    "int8": Precision(
        similarity=int8_thresholds,
        max_rerun_difference=1e-5,
        rerun_is_relative=False,
        max_map_error=0.05,
        # A few values round to the next step where float scales are multiplied in another order: a logit difference of 0.022
        # was measured between x86 and ARM. Saturating products, or another layer's weights, make more.
        golden_tolerance=0.15,
        golden_logit_tolerance=0.06,
    ),
    "float16 weights": Precision(similarity=fp16_thresholds),
    # It may not run on the machine that verified it. Products have eleven bits, added in any order.
    "float16": Precision(
        similarity=fp16_thresholds, golden_outputs="PyTorch", golden_tolerance=0.03, golden_logit_tolerance=0.02
    ),
}
