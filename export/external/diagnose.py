"""Find out why an ONNX file and its reference give different outputs, by trying the common causes one after the other.

Each is a change that makes the two agree: another channel order, another normalization, another class order, another scale of
the logits. In addition, the first layer whose output differs is reported if both models name their layers.

Shapes: N images, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from scipy.spatial.distance import cdist

from edgeline.export.external.model import InputNormalization, Model, Precision, last_line
from edgeline.export.parity.compare import Outputs
from edgeline.export.parity.layerwise import IMAGES, first_diverging, layers_of
from edgeline.export.parity.report import Divergence, Layer
from edgeline.export.parity.similarity import sqnr_db
from edgeline.export.tolerances import FLOAT_LAYER_DB

NORMALIZATIONS = {
    "mean 0.485,0.456,0.406 and std 0.229,0.224,0.225 (ImageNet's)": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean 0.5 and std 0.5": ((0.5,) * 3, (0.5,) * 3),
    "values of 0 to 1 (mean 0 and std 1)": ((0.0,) * 3, (1.0,) * 3),
    "values of 0 to 255 (mean 0 and std 1/255)": ((0.0,) * 3, (1 / 255,) * 3),
}


AGREE_DB: dict[Precision, float] = {"float32": FLOAT_LAYER_DB, "float16": 40.0, "int8": 15.0}
"""Minimum SQNR between the logits of the same network in this precision and in float32."""


@dataclass(frozen=True, kw_only=True)
class ModelPair:
    """A file and the reference it is compared with."""

    file: Model
    reference: Model
    normalization: InputNormalization
    view: Callable[[np.ndarray], Outputs]
    """Converts scores of either model to outputs that can be compared."""
    precision: Precision
    """The lower of their two precisions."""

    def agree(self, expected_NK: np.ndarray, observed_NK: np.ndarray) -> bool:
        """Whether logits are as similar as those of the same network would be."""
        return sqnr_db(expected_NK, observed_NK) >= AGREE_DB[self.precision]

    def logits(self, model: Model, pixels: Sequence[np.ndarray], normalization: InputNormalization) -> np.ndarray:
        """The logits of one of the two, float64 (N, K)."""
        return self.view(model.predict(pixels, normalization, model.input.batch or 1)).logits_NK.astype(np.float64)


def diagnose_mismatch(pair: ModelPair, pixels: Sequence[np.ndarray]) -> list[str]:
    """Explain why two models do not agree.

    Returns:
        A sentence for each cause found; empty if none of the common causes explains it.
    """
    expected_NK, observed_NK = (pair.logits(model, pixels, pair.normalization) for model in (pair.reference, pair.file))
    causes = [
        _other_normalization(pair, pixels, expected_NK, observed_NK),
        _other_class_order(pair, expected_NK, observed_NK),
    ]
    scale = float((expected_NK * observed_NK).sum() / max(float(np.square(expected_NK).sum()), np.finfo(float).tiny))
    if pair.agree(scale * expected_NK, observed_NK):
        causes.append(f"its logits are {scale:.4g} times those of the reference: one of the two divides by a temperature")
    return [cause for cause in causes if cause]


def diverging_layer(pair: ModelPair, pixels: Sequence[np.ndarray]) -> tuple[str, Divergence | None]:
    """Find the first layer whose output differs.

    Returns:
        A sentence, empty if every layer is within tolerance, and the figures of every layer, or None if there are none.
    """
    if pair.reference.layers is None or pair.file.layers is None or pair.file.onnx_bytes is None:
        return f"{pair.reference.format} does not expose layer outputs, so the diverging layer is unknown", None
    try:
        expected, observed = (_layers(model, pixels[:IMAGES], pair.normalization) for model in (pair.reference, pair.file))
    except Exception as error:  # a graph may run as a whole but not in parts; the verification has failed in any case
        return f"the layers cannot be compared ({last_line(error)})", None
    layers = []
    for path, node, _ in layers_of(onnx.load_model_from_string(pair.file.onnx_bytes)):
        pairs = [(a, b) for a in expected.get(path, []) for b in observed.get(path, []) if a.shape == b.shape]
        if pairs:  # before or after the batch norm that follows it, depending on what the file contains
            ratio = max(sqnr_db(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs)
            layers.append(Layer(module=path, node=node, sqnr_db=ratio))
    if not layers:
        return "the two models have no layer names in common, so the diverging layer is unknown", None
    first = first_diverging(layers, quantized=pair.precision != "float32")
    divergence = Divergence(first=first, layers=tuple(layers))
    if first is None:
        return "", divergence
    return f"the first of {len(layers)} layers to diverge is {first.module} (SQNR {first.sqnr_db:.0f} dB)", divergence


def _other_normalization(
    pair: ModelPair, pixels: Sequence[np.ndarray], expected_NK: np.ndarray, observed_NK: np.ndarray
) -> str:
    # A file with uint8 input normalizes inside, so the reference's input has to vary.
    varied = pair.file if pair.file.input.dtype != "uint8" else pair.reference
    given = pair.normalization
    candidates = {"BGR instead of RGB": InputNormalization(given.mean[::-1], given.std[::-1], bgr=True)}
    if varied.input.dtype != "uint8":
        candidates["BGR instead of RGB, with mean and std in the order RGB"] = replace(given, bgr=True)
        candidates |= {words: InputNormalization(mean, std) for words, (mean, std) in NORMALIZATIONS.items()}
        candidates |= {
            f"BGR instead of RGB, {words}": InputNormalization(mean[::-1], std[::-1], bgr=True)
            for words, (mean, std) in NORMALIZATIONS.items()
        }
    for words, normalization in candidates.items():
        if normalization == given:
            continue
        logits_NK = pair.logits(varied, pixels, normalization)
        if pair.agree(*((expected_NK, logits_NK) if varied is pair.file else (logits_NK, observed_NK))):
            return f"the two agree if {varied.name} is fed {words}: they expect another channel order or normalization"
    return ""


def _other_class_order(pair: ModelPair, expected_NK: np.ndarray, observed_NK: np.ndarray) -> str:
    order_K = cdist(expected_NK.T, observed_NK.T).argmin(1)
    moved = np.flatnonzero(order_K != np.arange(len(order_K))).tolist()
    if not moved or len(set(order_K.tolist())) < len(order_K) or not pair.agree(expected_NK, observed_NK[:, order_K]):
        return ""
    examples = ", ".join(f"class {i} of {pair.reference.name} is its class {order_K[i]}" for i in moved[:3])
    return f"its classes are in another order: {examples}{', ...' if len(moved) > 3 else ''}"


def _layers(model: Model, pixels: Sequence[np.ndarray], normalization: InputNormalization) -> dict[str, list[np.ndarray]]:
    assert model.layers is not None
    batch = model.input.batch or len(pixels)
    parts: list[dict[str, list[np.ndarray]]] = []
    for start in range(0, len(pixels), batch):
        images = np.stack([pixels[(start + i) % len(pixels)] for i in range(batch)])
        parts.append(model.layers(normalization(images, model.input)))
    return {
        path: [np.concatenate(arrays)[: len(pixels)] for arrays in zip(*(part[path] for part in parts), strict=True)]
        for path in parts[0]
    }
