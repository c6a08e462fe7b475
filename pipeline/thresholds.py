"""Thresholds of the release gate: how far a compressed variant may differ from PyTorch.

Those of the float32 file are `verify.max_difference` and `verify.margin` (`pipeline.config.VerifyConfig`). To add a
threshold, add a field here; `export.parity.similarity.failed_thresholds` compares it with what was measured.
"""

from pydantic import BaseModel, ConfigDict, Field


class Int8Thresholds(BaseModel):
    """Thresholds of the int8 variants, on the held-out images and the stress images."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_sqnr_db: float = Field(15.0, description="Minimum signal-to-quantization-noise ratio of the logits, in decibels.")
    min_agreement: float = Field(0.96, ge=0, le=1, description="Minimum share of images with the same top class.")
    min_clear_agreement: float = Field(
        0.99, ge=0, le=1, description="The same among images whose top two probabilities differ by more than 0.1."
    )
    max_kl: float = Field(0.02, gt=0, description="Maximum mean Kullback-Leibler divergence of the probabilities, in nats.")
    max_difference: float = Field(0.9, gt=0, le=1, description="Maximum difference of a probability.")
    max_drop: float = Field(
        1.0, ge=0, description="Maximum loss of accuracy on the held-out images, in percentage points, paired."
    )


class Fp16Thresholds(Int8Thresholds):
    """Thresholds of the half-precision variant."""

    min_sqnr_db: float = Field(40.0, description="Minimum signal-to-quantization-noise ratio of the logits, in decibels.")
    min_agreement: float = Field(0.99, ge=0, le=1, description="Minimum share of images with the same top class.")
    min_clear_agreement: float = Field(
        1.0, ge=0, le=1, description="The same among images whose top two probabilities differ by more than 0.1."
    )
    max_kl: float = Field(1e-3, gt=0, description="Maximum mean Kullback-Leibler divergence of the probabilities, in nats.")
    max_difference: float = Field(0.1, gt=0, le=1, description="Maximum difference of a probability.")
    max_drop: float = Field(
        0.5, ge=0, description="Maximum loss of accuracy on the held-out images, in percentage points, paired."
    )
