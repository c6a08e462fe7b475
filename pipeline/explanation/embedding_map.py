"""A map of the embeddings: similar images lie near each other.

Principal components by default: the same input gives the same map, in a fraction of a second. UMAP shows neighborhoods better,
and its distances mean less; it needs the package umap-learn.

Shapes: N images, D features.
"""

import warnings
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edgeline.pipeline.models.devices import one_blas_thread
from edgeline.serve.errors import ConfigError

Method = Literal["pca", "umap"]
MAX_LEGEND = 20
"""Classes that can be distinguished by color."""
METADATA = {"Software": None}  # matplotlib's version in the file would make equal plots differ


@one_blas_thread()
def place(features_ND: np.ndarray, method: Method = "pca") -> np.ndarray:
    """Place images on a plane: float64, shape (N, 2).

    Raises:
        ConfigError: UMAP is not installed.
    """
    centered_ND = features_ND.astype(np.float64) - features_ND.mean(0)
    if method == "umap":
        return _umap(centered_ND)
    vectors_NR, scales_R, _ = np.linalg.svd(centered_ND, full_matrices=False)
    places_N2 = np.zeros((len(features_ND), 2))
    found_NR = (vectors_NR * scales_R)[:, :2]
    # The sign of a component is arbitrary: the farthest image lies on the positive side.
    farthest_R = np.abs(found_NR).argmax(0)
    found_NR = found_NR * np.where(found_NR[farthest_R, np.arange(found_NR.shape[1])] < 0, -1, 1)
    places_N2[:, : found_NR.shape[1]] = found_NR
    return places_N2


def write_embedding_png(
    path: Path, places_N2: np.ndarray, targets_N: np.ndarray, wrong_N: np.ndarray, labels: list[str]
) -> None:
    """Draw the map: one color for each class, a cross for each image that was classified wrongly."""
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.add_subplot()
    colormap = matplotlib.colormaps["tab10" if len(labels) <= 10 else "tab20" if len(labels) <= MAX_LEGEND else "hsv"]
    steps = colormap.N if len(labels) <= MAX_LEGEND else len(labels)
    colors_K4 = [colormap(index / steps) for index in range(len(labels))]
    for chosen_N, style in ((~wrong_N, {"s": 14}), (wrong_N, {"s": 70, "marker": "X", "edgecolors": "black"})):
        x_N, y_N = places_N2[chosen_N].T
        axes.scatter(x_N, y_N, c=[colors_K4[index] for index in targets_N[chosen_N]], **style)
    axes.set(xticks=[], yticks=[])
    if len(labels) <= MAX_LEGEND:
        names = [label if len(label) <= 24 else label[:23] + "…" for label in labels]
        handles = [axes.plot([], [], "o", color=color, label=name)[0] for name, color in zip(names, colors_K4, strict=True)]
        legend = figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, dpi=110, metadata=METADATA)


def _umap(features_ND: np.ndarray) -> np.ndarray:
    try:
        import umap  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise ConfigError(
            "UMAP is not installed: pip install umap-learn, or use principal components (--map pca)", code="umap_missing"
        ) from error
    neighbors = min(15, len(features_ND) - 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="umap")
        placed = umap.UMAP(random_state=0, n_jobs=1, n_neighbors=neighbors).fit_transform(features_ND)
    return np.asarray(placed, np.float64)
