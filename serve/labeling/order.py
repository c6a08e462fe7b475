"""The order in which photos are shown for labeling: those from which a model learns most come first.

    order = label_order(uncertainty_N, embedding_NC)

In blocks of `BLOCK` photos: the `CANDIDATES` times as many most uncertain ones are the candidates, and of these, one after the
other, the one that lies farthest from all that were chosen before. So each block is uncertain and varied, and ten photos of one
scene do not come in a row. A margin as the uncertainty and a varied choice among the candidates is the scheme of Citovsky et
al., "Batch Active Learning at Scale" (2021), here with the farthest-first choice of Sener and Savarese, "Active Learning for
Convolutional Neural Networks: A Core-Set Approach" (2018), which needs no clustering. `benchmarks/labeling.py` compares it with
random order and with the margin alone.

Shapes: N photos, C features, M candidates.
"""

import numpy as np

BLOCK = 10
"""Photos that are chosen from the same candidates."""
CANDIDATES = 5
"""Candidates for each photo of a block."""
VARIED = 1000
"""Photos that are ordered in blocks; whatever follows them is ordered by uncertainty, to save time."""


def label_order(uncertainty_N: np.ndarray, embedding_NC: np.ndarray | None = None) -> list[int]:
    """Order photos for labeling.

    Args:
        uncertainty_N: 1 minus the difference of the two highest probabilities.
        embedding_NC: features; None orders by the uncertainty alone.

    Returns:
        The indexes of all photos, the one to label first at the front. Equal photos stay in their order.
    """
    by_uncertainty: list[int] = np.argsort(-uncertainty_N, kind="stable").tolist()
    if embedding_NC is None or len(by_uncertainty) < 3:
        return by_uncertainty
    spread_C = embedding_NC.std(0, dtype=np.float64)
    scaled_NC = (embedding_NC / (spread_C + 1e-3 * max(float(spread_C.mean()), 1e-12))).astype(np.float32)
    squares_N = np.square(scaled_NC).sum(1)
    nearest_N = np.full(len(scaled_NC), np.inf, np.float32)  # squared distance to the chosen ones
    order: list[int] = []
    while by_uncertainty and len(order) < VARIED:
        candidates_M = np.array(by_uncertainty[: BLOCK * CANDIDATES])
        block: list[int] = []
        while len(block) < min(BLOCK, len(by_uncertainty)):
            at = int(nearest_N[candidates_M].argmax())  # at first all are infinite: the most uncertain one
            chosen = int(candidates_M[at])
            candidates_M = np.delete(candidates_M, at)
            block.append(chosen)
            distance_N = squares_N + squares_N[chosen] - 2 * (scaled_NC @ scaled_NC[chosen])
            nearest_N = np.minimum(nearest_N, distance_N)
        order += block
        by_uncertainty = [index for index in by_uncertainty if index not in block]
    return order + by_uncertainty
