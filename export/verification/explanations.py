"""Check the class activation maps and embeddings of a file: are they PyTorch's, and do the maps add up to the logits?

PyTorch's are computed from the network's own layers, the file's are its two outputs. Another layer's map, another order of
classes or positions, a forgotten temperature or bias therefore shows.

Shapes: N images, K classes, h x w positions, C features, H x W the model's input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgeline.export.graph.cam_outputs import unfit
from edgeline.export.parity.similarity import sqnr_db
from edgeline.export.verification.report import MapFigures
from edgeline.pipeline.explanation.heatmaps import last_map, recorded_maps
from edgeline.pipeline.models.backbones import Network
from edgeline.serve.artifact.cam_outputs import EMBEDDING, EVIDENCE
from edgeline.serve.errors import VerificationError

IMAGES = 24
"""Images that are compared: the stress images and the first held-out ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedMaps:
    """PyTorch's class activation maps and embeddings of some images."""

    pixels_NHW3: np.ndarray
    maps_NKhw: np.ndarray
    embedding_NC: np.ndarray


def expected_maps(network: Network, temperature: float, pixels: Sequence[np.ndarray]) -> ExpectedMaps:
    """Compute PyTorch's class activation maps for the first images.

    Args:
        network: in evaluation mode.
        temperature: of the calibration.
        pixels: of each image, uint8 (H, W, 3).

    Raises:
        ConfigError: the network has no map to compute them from.
    """
    pixels_NHW3 = np.stack(pixels[:IMAGES])
    # One at a time: the maps of a large network for all images at once would fill the memory.
    found = [pytorch_maps(network, temperature, pixels_HW3[None]) for pixels_HW3 in pixels_NHW3]
    maps_NKhw, embedding_NC = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return ExpectedMaps(pixels_NHW3=pixels_NHW3, maps_NKhw=maps_NKhw, embedding_NC=embedding_NC)


def pytorch_maps(network: Network, temperature: float, pixels_NHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute class activation maps in PyTorch, from the output of a layer of the network and not from any exported graph.

    Returns:
        Maps (N, K, h, w), divided by the temperature as logits are, and embeddings (N, C), float32.

    Raises:
        ConfigError: no layer's output, averaged over its positions, is the input of the classifier.
    """
    network = network.eval()
    with torch.inference_mode(), recorded_maps(network) as maps:
        embedding_NC = network.features(torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).contiguous().float())
        map_NChw = last_map(maps, embedding_NC)
        if map_NChw is None:
            raise unfit("no layer's output, averaged over its positions, is the input of the classifier")
        classifier = network.classifier
        sums_NKhw = torch.einsum("nchw,kc->nkhw", map_NChw, classifier.weight) + classifier.bias[:, None, None]
        return (sums_NKhw / temperature).numpy(), embedding_NC.numpy()


def compare_maps(
    session: Any,
    expected: ExpectedMaps,
    *,
    min_sqnr_db: float,
    max_sum_error: float,
    max_difference: float | None = None,
) -> tuple[MapFigures, list[str]]:
    """Compare a file's class activation maps and embeddings with PyTorch's.

    Args:
        session: of the file.
        expected: PyTorch's.
        min_sqnr_db: of maps and embeddings.
        max_sum_error: how far a map's mean may be from the logit, as a share of the image's largest logit.
        max_difference: as a share of the largest value; where values must be equal.

    Returns:
        The figures and the problems.

    Raises:
        VerificationError: the file does not have these outputs, or they have another shape.
    """
    outputs = {value.name for value in session.get_outputs()}
    if not outputs >= {EVIDENCE, EMBEDDING}:
        raise VerificationError(
            f"the file must have the outputs {EVIDENCE} and {EMBEDDING}, it has {', '.join(sorted(outputs))}"
        )
    logits_NK, maps_NKhw, embedding_NC = (
        np.concatenate(parts)
        for parts in zip(
            *(session.run(["logits", EVIDENCE, EMBEDDING], {"image": pixels_HW3[None]}) for pixels_HW3 in expected.pixels_NHW3),
            strict=True,
        )
    )
    if maps_NKhw.shape != expected.maps_NKhw.shape or embedding_NC.shape != expected.embedding_NC.shape:
        raise VerificationError(
            f"the file returns {EVIDENCE} {maps_NKhw.shape} and {EMBEDDING} {embedding_NC.shape}, PyTorch "
            f"{expected.maps_NKhw.shape} and {expected.embedding_NC.shape}"
        )
    with np.errstate(invalid="ignore"):
        difference_NKhw, error_NK = np.abs(maps_NKhw - expected.maps_NKhw), np.abs(maps_NKhw.mean((2, 3)) - logits_NK)
    largest = max(1.0, float(np.abs(expected.maps_NKhw).max()))
    # Of each image's own largest logit, as in a device's golden samples.
    largest_N1 = np.maximum(1.0, np.abs(np.nan_to_num(logits_NK)).max(1, keepdims=True))
    figures = MapFigures(
        images=len(logits_NK),
        max_difference=_largest(difference_NKhw / largest),
        sqnr_db=sqnr_db(expected.maps_NKhw.astype(np.float64), maps_NKhw.astype(np.float64)),
        embedding_sqnr_db=sqnr_db(expected.embedding_NC.astype(np.float64), embedding_NC.astype(np.float64)),
        adds_up=_largest(error_NK / largest_N1),
    )
    problems = [
        f"its {name} is not PyTorch's (SQNR {ratio:.1f} dB, at least {min_sqnr_db:g} required)"
        for name, ratio in ((EVIDENCE, figures.sqnr_db), (EMBEDDING, figures.embedding_sqnr_db))
        if ratio < min_sqnr_db
    ]
    if max_difference is not None and figures.max_difference > max_difference:
        problems.append(
            f"its {EVIDENCE} differs from PyTorch's by {figures.max_difference:.2g} of the largest, at most {max_difference:g} "
            "allowed"
        )
    if figures.adds_up > max_sum_error:
        problems.append(
            f"its {EVIDENCE} does not add up to its logits (off by {figures.adds_up:.2g} of the largest, at most "
            f"{max_sum_error:g} allowed)"
        )
    return figures, problems


def _largest(values: np.ndarray) -> float:
    """The largest value; JSON has no infinity, so the largest double stands for it and for NaN."""
    return min(float(np.nan_to_num(values, nan=np.inf).max()), float(np.finfo(np.float64).max))
