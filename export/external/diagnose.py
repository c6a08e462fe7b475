"""Why does a file from elsewhere not give what its reference gives? The usual suspects, tried one after the other.

Each is a change after which the two agree: another order of the channels, another normalization, another order of the
classes, another scale of the logits. Beside them, the first layer whose output differs, where both sides name their layers.

Shapes: N images, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from scipy.spatial.distance import cdist

from edgeline.export.external.model import Feed, Precision, Program, last_line
from edgeline.export.parity.compare import Outputs
from edgeline.export.parity.layerwise import IMAGES, first_diverging, layers_of
from edgeline.export.parity.report import Divergence, Layer
from edgeline.export.parity.similarity import sqnr_db
from edgeline.export.thresholds import FLOAT_LAYER_DB

NORMALIZATIONS = {
    "mean 0.485,0.456,0.406 and std 0.229,0.224,0.225 (ImageNet's)": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean 0.5 and std 0.5": ((0.5,) * 3, (0.5,) * 3),
    "values of 0 to 1 (mean 0 and std 1)": ((0.0,) * 3, (1.0,) * 3),
    "values of 0 to 255 (mean 0 and std 1/255)": ((0.0,) * 3, (1 / 255,) * 3),
}


AGREE_DB: dict[Precision, float] = {"float32": FLOAT_LAYER_DB, "float16": 40.0, "int8": 15.0}
"""Logits of one network are at least so much alike."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A file and what it is held against."""

    file: Program
    reference: Program
    feed: Feed
    view: Callable[[np.ndarray], Outputs]
    """Scores of either as what can be compared."""
    precision: Precision
    """The lower of theirs."""

    def agree(self, expected_NK: np.ndarray, observed_NK: np.ndarray) -> bool:
        """Whether logits are as much alike as those of the same network."""
        return sqnr_db(expected_NK, observed_NK) >= AGREE_DB[self.precision]

    def logits(self, program: Program, pixels: Sequence[np.ndarray], feed: Feed) -> np.ndarray:
        """What one of the two gives, float64 (N, K)."""
        return self.view(program.ask(pixels, feed, program.port.batch or 1)).logits_NK.astype(np.float64)


def suspect(pair: Pair, pixels: Sequence[np.ndarray]) -> list[str]:
    """What explains that the two do not agree, in words; nothing where none of the suspects does."""
    expected_NK, observed_NK = (pair.logits(program, pixels, pair.feed) for program in (pair.reference, pair.file))
    found = [_other_feed(pair, pixels, expected_NK, observed_NK), _other_order(pair, expected_NK, observed_NK)]
    scale = float((expected_NK * observed_NK).sum() / max(float(np.square(expected_NK).sum()), np.finfo(float).tiny))
    if pair.agree(scale * expected_NK, observed_NK):
        found.append(f"its logits are {scale:.4g} times those of the reference: one of the two divides by a temperature")
    return [words for words in found if words]


def diverging_layer(pair: Pair, pixels: Sequence[np.ndarray]) -> tuple[str, dict[str, Any] | None]:
    """Name the first layer whose output differs.

    Returns:
        A sentence, empty where no layer is out of tolerance, and the figures of every layer; None where there are none.
    """
    if pair.reference.layers is None or pair.file.layers is None or pair.file.model is None:
        return f"{pair.reference.kind} does not tell what its layers give: no layer is named", None
    try:
        expected, observed = (_layers(program, pixels[:IMAGES], pair.feed) for program in (pair.reference, pair.file))
    except Exception as error:  # a graph may be of a kind that runs whole and not in parts; the gate has failed without it
        return f"the layers cannot be compared ({last_line(error)})", None
    layers = []
    for path, node, _ in layers_of(onnx.load_model_from_string(pair.file.model)):
        pairs = [(a, b) for a in expected.get(path, []) for b in observed.get(path, []) if a.shape == b.shape]
        if pairs:  # before or after the batch norm that follows it, whichever the file holds
            ratio = max(sqnr_db(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs)
            layers.append(Layer(module=path, node=node, sqnr_db=ratio))
    if not layers:
        return "the two share no names of layers: no layer is named", None
    first = first_diverging(layers, quantized=pair.precision != "float32")
    report = Divergence(first=first, layers=tuple(layers)).to_dict()
    if first is None:
        return "", report
    return f"the first of {len(layers)} layers to diverge is {first.module} (SQNR {first.sqnr_db:.0f} dB)", report


def _other_feed(pair: Pair, pixels: Sequence[np.ndarray], expected_NK: np.ndarray, observed_NK: np.ndarray) -> str:
    # A file of bytes normalizes for itself, so it is its reference that must be fed otherwise.
    fed = pair.file if pair.file.port.dtype != "uint8" else pair.reference
    given = pair.feed
    asked = {"BGR instead of RGB": Feed(given.mean[::-1], given.std[::-1], bgr=True)}
    if fed.port.dtype != "uint8":
        asked["BGR instead of RGB, with mean and std in the order RGB"] = replace(given, bgr=True)
        asked |= {words: Feed(mean, std) for words, (mean, std) in NORMALIZATIONS.items()}
        asked |= {
            f"BGR instead of RGB, {words}": Feed(mean[::-1], std[::-1], bgr=True)
            for words, (mean, std) in NORMALIZATIONS.items()
        }
    for words, feed in asked.items():
        if feed == given:
            continue
        logits_NK = pair.logits(fed, pixels, feed)
        if pair.agree(*((expected_NK, logits_NK) if fed is pair.file else (logits_NK, observed_NK))):
            return f"the two agree if {fed.name} is fed {words}: they expect another order of channels or normalization"
    return ""


def _other_order(pair: Pair, expected_NK: np.ndarray, observed_NK: np.ndarray) -> str:
    order_K = cdist(expected_NK.T, observed_NK.T).argmin(1)
    moved = np.flatnonzero(order_K != np.arange(len(order_K))).tolist()
    if not moved or len(set(order_K.tolist())) < len(order_K) or not pair.agree(expected_NK, observed_NK[:, order_K]):
        return ""
    examples = ", ".join(f"class {i} of {pair.reference.name} is its class {order_K[i]}" for i in moved[:3])
    return f"its classes are in another order: {examples}{', ...' if len(moved) > 3 else ''}"


def _layers(program: Program, pixels: Sequence[np.ndarray], feed: Feed) -> dict[str, list[np.ndarray]]:
    assert program.layers is not None
    batch = program.port.batch or len(pixels)
    parts: list[dict[str, list[np.ndarray]]] = []
    for start in range(0, len(pixels), batch):
        images = np.stack([pixels[(start + i) % len(pixels)] for i in range(batch)])
        parts.append(program.layers(feed(images, program.port)))
    return {
        path: [np.concatenate(arrays)[: len(pixels)] for arrays in zip(*(part[path] for part in parts), strict=True)]
        for path in parts[0]
    }
