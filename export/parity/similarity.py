"""Similarity of the outputs of two versions of one model that are not expected to be equal, for example int8 and float32.

Shapes: N images, K classes.
"""

import numpy as np
from scipy.special import log_softmax

from edgeline.export.parity.compare import Outputs
from edgeline.export.parity.report import AccuracyDrop, OutputSimilarity
from edgeline.export.tolerances import CLEAR_MARGIN
from edgeline.pipeline.evaluation.metrics import paired_drop, wilson_interval
from edgeline.pipeline.thresholds import Int8Thresholds

TOP = 5
EXACT_DB = 200.0
"""Stands for the infinite ratio of two equal arrays, which JSON cannot represent."""


def compare_outputs(expected: Outputs, observed: Outputs) -> OutputSimilarity:
    """Compare a variant's outputs with the reference's, float32 (N, K) each."""
    reference_NK, logits_NK = (outputs.logits_NK.astype(np.float64) for outputs in (expected, observed))
    margin_N = np.diff(np.sort(expected.probabilities_NK, axis=1)[:, -2:], axis=1).ravel()
    same_N = expected.probabilities_NK.argmax(1) == observed.probabilities_NK.argmax(1)
    clear_N = margin_N > CLEAR_MARGIN
    log_p_NK = log_softmax(reference_NK, axis=1)
    log_q_NK = log_softmax(logits_NK, axis=1)
    norms_N = np.linalg.norm(reference_NK, axis=1) * np.linalg.norm(logits_NK, axis=1)
    count = min(TOP, reference_NK.shape[1] - 1)
    best_NT, other_NT = (np.argsort(-array_NK, axis=1, kind="stable")[:, :count] for array_NK in (reference_NK, logits_NK))
    shared = np.mean([len(set(a) & set(b)) / count for a, b in zip(best_NT.tolist(), other_NT.tolist(), strict=True)])
    return OutputSimilarity(
        images=len(same_N),
        sqnr_db=sqnr_db(reference_NK, logits_NK),
        cosine=float(((reference_NK * logits_NK).sum(1) / np.maximum(norms_N, np.finfo(float).tiny)).mean()),
        kl=float((np.exp(log_p_NK) * (log_p_NK - log_q_NK)).sum(1).mean()),
        max_difference=float(np.abs(expected.probabilities_NK - observed.probabilities_NK).max()),
        top1_agreement=float(same_N.mean()),
        clear_agreement=float(same_N[clear_N].mean()) if clear_N.any() else 1.0,
        top5_agreement=float(shared),
        flips=int((~same_N).sum()),
        largest_flipped_margin=float(margin_N[~same_N].max()) if not same_N.all() else 0.0,
    )


def sqnr_db(expected: np.ndarray, observed: np.ndarray) -> float:
    """Signal to quantization noise ratio of two arrays of one shape, in decibels, at most `EXACT_DB`; its negative for NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        noise = float(np.square(expected - observed).sum())
    signal = float(np.square(expected).sum())
    if not np.isfinite(noise):
        return -EXACT_DB
    if noise == 0:
        return EXACT_DB
    return min(EXACT_DB, 10 * float(np.log10(max(signal, np.finfo(float).tiny) / noise)))


def drop_between(expected: Outputs, observed: Outputs, targets_N: np.ndarray) -> AccuracyDrop:
    """Compare the accuracies of a variant and of the reference on labeled images.

    Args:
        expected: outputs of the reference.
        observed: outputs of the variant.
        targets_N: class indices.
    """
    right_N, still_N = (outputs.probabilities_NK.argmax(1) == targets_N for outputs in (expected, observed))
    lost, gained = int((right_N & ~still_N).sum()), int((~right_N & still_N).sum())
    drop, low, high = (100 * share for share in paired_drop(lost, gained, len(targets_N)))
    return AccuracyDrop(
        reference_top1=float(right_N.mean()),
        top1=float(still_N.mean()),
        top1_interval=wilson_interval(int(still_N.sum()), len(targets_N)),
        images=len(targets_N),
        lost=lost,
        gained=gained,
        drop_points=drop,
        drop_interval_points=(low, high),
    )


def failed_thresholds(similarity: OutputSimilarity, drop: AccuracyDrop | None, thresholds: Int8Thresholds) -> list[str]:
    """Describe each threshold that a variant fails; empty if it passes."""
    if not similarity.finite:
        return ["its outputs contain NaN or infinity"]
    failed = []
    if similarity.sqnr_db < thresholds.min_sqnr_db:
        failed.append(f"SQNR {similarity.sqnr_db:.1f} dB, at least {thresholds.min_sqnr_db:g} required")
    if similarity.top1_agreement < thresholds.min_agreement:
        failed.append(
            f"same best class on {similarity.top1_agreement:.2%} of images, at least {thresholds.min_agreement:.2%} required"
        )
    if similarity.clear_agreement < thresholds.min_clear_agreement:
        failed.append(
            f"same best class on {similarity.clear_agreement:.2%} of the images on which the reference is clear (margin over "
            f"{CLEAR_MARGIN:g}), at least {thresholds.min_clear_agreement:.2%} required"
        )
    if similarity.kl > thresholds.max_kl:
        failed.append(f"KL divergence {similarity.kl:.3g}, at most {thresholds.max_kl:g} allowed")
    if similarity.max_difference > thresholds.max_difference:
        failed.append(
            f"a probability differs by {similarity.max_difference:.2g}, at most {thresholds.max_difference:g} allowed"
        )
    if drop is not None and drop.drop_points > thresholds.max_drop:
        low, high = drop.drop_interval_points
        failed.append(
            f"accuracy drops by {drop.drop_points:.2f} points (95 % interval {low:.2f} to {high:.2f}), at most "
            f"{thresholds.max_drop:g} allowed"
        )
    return failed
