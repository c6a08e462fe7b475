"""The gate for files that explain themselves: is what they say of places what PyTorch says, and does it add up?

PyTorch's side is taken from the network's own layers, the file's from its two outputs; so another layer's map, another order of
classes or places, a forgotten temperature or bias shows.

Shapes: N images, K classes, h x w places, C features, H x W the model's input.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeline.export.graph.cam_outputs import unfit
from edgeline.export.parity.similarity import sqnr_db
from edgeline.pipeline.models.backbones import Network
from edgeline.serve.artifact.cam_outputs import EMBEDDING, EVIDENCE
from edgeline.serve.errors import VerificationError

IMAGES = 24
"""How many are compared: the hard set and the first of the held-out ones."""
ADDS_UP = {"int8": 0.05, "float32": 1e-4}
"""How far the mean evidence may be from the logit, as a share of the image's largest; less than golden samples allow. In int8
the averaged map is rounded once more before the classifier; 1e-3 in other precisions."""
SAME = 1e-4
"""Two float32 sums in another order differ by less than this share of the largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What PyTorch says of some images."""

    pixels_NHW3: np.ndarray
    evidence_NKhw: np.ndarray
    embedding_NC: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """How a file's evidence compares."""

    images: int
    max_difference: float
    """Of a value of the evidence, as a share of the largest."""
    sqnr_db: float
    """Of the evidence."""
    embedding_sqnr_db: float
    adds_up: float
    """Largest difference of the mean evidence from the file's own logit, as a share of the image's largest logit."""


def expect_evidence(network: Network, temperature: float, pixels: Sequence[np.ndarray]) -> Evidence:
    """Have PyTorch say what it sees where, in the first images.

    Raises:
        ConfigError: the network has no map to take it from.
    """
    pixels_NHW3 = np.stack(pixels[:IMAGES])
    # One at a time: all the maps of a large network for all of them at once would fill the memory.
    found = [torch_evidence(network, temperature, pixels_HW3[None]) for pixels_HW3 in pixels_NHW3]
    evidence_NKhw, embedding_NC = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Evidence(pixels_NHW3=pixels_NHW3, evidence_NKhw=evidence_NKhw, embedding_NC=embedding_NC)


def torch_evidence(network: Network, temperature: float, pixels_NHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What PyTorch says, on a way of its own: from the map as a layer of the network gives it, not from any graph.

    Returns:
        Evidence (N, K, h, w), divided by the temperature as logits are, and embedding (N, C), float32.

    Raises:
        ConfigError: no layer's output, averaged over its places, is what enters the classifier.
    """
    network = network.eval()
    maps: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[1] == network.classifier.in_features:
            maps.extend([output] if output.shape[2:].numel() > 1 else [])  # one place is what was averaged already

    hooks = [module.register_forward_hook(keep) for module in network.backbone.modules()]
    try:
        with torch.inference_mode():
            embedding_NC = network.features(torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).contiguous().float())
    finally:
        for hook in hooks:
            hook.remove()
    for map_NChw in reversed(maps):
        averaged_NC = map_NChw.mean((2, 3))
        if averaged_NC.shape == embedding_NC.shape and _alike(averaged_NC, embedding_NC):
            classifier = network.classifier
            with torch.inference_mode():
                sums_NKhw = torch.einsum("nchw,kc->nkhw", map_NChw, classifier.weight) + classifier.bias[:, None, None]
            return (sums_NKhw / temperature).numpy(), embedding_NC.numpy()
    raise unfit("no layer's output, averaged over its places, is what enters the classifier")


def _alike(one_NC: Tensor, other_NC: Tensor) -> bool:
    return bool((one_NC - other_NC).abs().max() <= SAME * other_NC.abs().max())


def judge_evidence(
    session: Any, expected: Evidence, precision: str, *, min_sqnr_db: float, max_difference: float | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Hold what a file says of places against what PyTorch says.

    Args:
        session: of the file.
        expected: as `expect_evidence` gives it.
        precision: of the file.
        min_sqnr_db: of evidence and embedding.
        max_difference: as a share of the largest value; where values must be the same.

    Returns:
        The figures, and what is wrong, in words.

    Raises:
        VerificationError: the file does not give these outputs.
    """
    given = {value.name for value in session.get_outputs()}
    if not given >= {EVIDENCE, EMBEDDING}:
        raise VerificationError(f"the file was to give evidence and embedding, it gives {', '.join(sorted(given))}")
    logits_NK, evidence_NKhw, embedding_NC = (
        np.concatenate(parts)
        for parts in zip(
            *(session.run(["logits", EVIDENCE, EMBEDDING], {"image": pixels_HW3[None]}) for pixels_HW3 in expected.pixels_NHW3),
            strict=True,
        )
    )
    if evidence_NKhw.shape != expected.evidence_NKhw.shape or embedding_NC.shape != expected.embedding_NC.shape:
        raise VerificationError(
            f"the file gives evidence {evidence_NKhw.shape} and embedding {embedding_NC.shape}, PyTorch "
            f"{expected.evidence_NKhw.shape} and {expected.embedding_NC.shape}"
        )
    with np.errstate(invalid="ignore"):
        differences = np.abs(evidence_NKhw - expected.evidence_NKhw), np.abs(evidence_NKhw.mean((2, 3)) - logits_NK)
    largest = max(1.0, float(np.abs(expected.evidence_NKhw).max()))
    # Of each image's own largest logit, as a device's golden samples take it.
    largest_N1 = np.maximum(1.0, np.abs(np.nan_to_num(logits_NK)).max(1, keepdims=True))
    shares = [float(np.nan_to_num(d, nan=np.inf).max()) for d in (differences[0] / largest, differences[1] / largest_N1)]
    found = Found(
        images=len(logits_NK),
        max_difference=min(shares[0], float(np.finfo(np.float64).max)),
        sqnr_db=sqnr_db(expected.evidence_NKhw.astype(np.float64), evidence_NKhw.astype(np.float64)),
        embedding_sqnr_db=sqnr_db(expected.embedding_NC.astype(np.float64), embedding_NC.astype(np.float64)),
        adds_up=min(shares[1], float(np.finfo(np.float64).max)),
    )
    return asdict(found), _problems(found, precision, min_sqnr_db, max_difference)


def _problems(found: Found, precision: str, min_sqnr_db: float, max_difference: float | None) -> list[str]:
    problems = []
    for what, ratio in (("evidence", found.sqnr_db), ("embedding", found.embedding_sqnr_db)):
        if ratio < min_sqnr_db:
            problems.append(f"its {what} is not PyTorch's (SQNR {ratio:.1f} dB, at least {min_sqnr_db:g} are asked)")
    if max_difference is not None and found.max_difference > max_difference:
        problems.append(
            f"its evidence differs from PyTorch's by {found.max_difference:.2g} of the largest, {max_difference:g} is allowed"
        )
    if found.adds_up > (allowed := ADDS_UP.get(precision, 1e-3)):
        problems.append(
            f"its evidence does not add up to its logits (off by {found.adds_up:.2g} of the largest, {allowed:g} is allowed)"
        )
    return problems
