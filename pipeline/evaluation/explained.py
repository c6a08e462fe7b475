"""Explain a run's answers with pictures: heatmaps, feature maps of a layer, and a map of the test images.

Written to a folder: for each photo `NN-name.jpg`, `NN-name-cam.jpg`, `NN-name-gradient.jpg` and `NN-name-features.png`; for all
test images `embedding.png` and `embedding.csv`; and `report.html` with all of them.
"""

import csv
import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeline.pipeline.data.samples import ADMITTED, Prepared, read_image, read_prepared
from edgeline.pipeline.evaluation.metrics import softmax
from edgeline.pipeline.evaluation.report import read_evaluation
from edgeline.pipeline.explanation.embedding_map import Method, place, write_embedding_png
from edgeline.pipeline.explanation.feature_maps import choose_layer, feature_maps
from edgeline.pipeline.explanation.heatmaps import compute_heatmaps
from edgeline.pipeline.explanation.pictures import data_uri, save_grid, save_heatmap, save_picture, short_names
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.checkpoint import load_checkpoint
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.training.features import FeatureExtractor
from edgeline.serve.errors import DataError, EdgelineError, ImageError
from edgeline.serve.preprocess import PreprocessSpec, preprocess

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  section { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1rem 0; }
  figure { margin: 0; max-width: 100%; }
  figcaption { max-width: 20rem; font-size: .85rem; }
  h1, h2, figcaption { overflow-wrap: anywhere; }
  img { max-width: 100%; }
  .plot { background: white; }
</style>
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is to be explained, and how."""

    images: tuple[Path, ...] = ()
    """Photos; without any, the most confident mistakes in the test split, then other test images."""
    count: int = 8
    """Number of test images, if no photos are given."""
    layer: str | None = None
    """Whose feature maps are shown; by default one in the middle."""
    embedding: Method = "pca"


@dataclass(frozen=True, kw_only=True, slots=True)
class Explained:
    """An explained image."""

    image: str
    label: str | None
    """None for a photo that is not from the data."""
    predicted: str
    probability: float
    pictures: dict[str, str]
    """File names by what they show; without `cam` if the network has no class activation maps."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Photo:
    name: str
    label: str | None
    data: bytes


def explain_run(run: Run, request: Request, folder: Path) -> list[Explained]:
    """Write the pictures of a request into a folder.

    Raises:
        ConfigError: there is no such layer, or UMAP is not installed.
        DataError: a photo cannot be read.
        EdgelineError: the run has not been evaluated.
    """
    if not (run.step("evaluate") / "test.npz").is_file():
        raise EdgelineError(f"{run.folder} has not been evaluated; run `edgeline evaluate {run.folder}`", code="step_missing")
    network, checkpoint = load_checkpoint(run.step("train"))
    prepared, spec = read_prepared(run.step("prepare")), checkpoint.preprocess
    layer = choose_layer(network, request.layer, (spec.height, spec.width))
    with np.load(run.step("evaluate") / "test.npz", allow_pickle=False) as saved:
        probabilities_NK = saved["probabilities"]
    photos = [_read(path) for path in request.images] or _test_photos(prepared, probabilities_NK, request.count)
    folder.mkdir(parents=True, exist_ok=True)
    temperature = read_evaluation(run.step("evaluate")).calibration.temperature
    explained = []
    for stem, photo in zip(short_names([photo.name for photo in photos]), photos, strict=True):
        pixels_HW3 = _pixels(photo, spec)
        with torch.inference_mode():
            [probabilities_K] = softmax(network(torch.tensor(pixels_HW3[None])).numpy() / temperature)
        index = int(probabilities_K.argmax())
        explained.append(
            Explained(
                image=photo.name,
                label=photo.label,
                predicted=prepared.labels[index],
                probability=float(probabilities_K[index]),
                pictures=_write_pictures(folder / stem, network, pixels_HW3, index, layer),
            )
        )
    _write_map(run, network, spec, request.embedding, folder)
    _write_page(folder / "report.html", run.config.artifact_name, explained, layer)
    return explained


def _write_pictures(stem: Path, network: Network, pixels_HW3: np.ndarray, index: int, layer: str) -> dict[str, str]:
    names = {"photo": f"{stem.name}.jpg", "gradient": f"{stem.name}-gradient.jpg", "features": f"{stem.name}-features.png"}
    maps = compute_heatmaps(network, pixels_HW3[None], np.array([index]))
    save_picture(stem.with_name(names["photo"]), pixels_HW3)
    if maps.cam_Nhw is not None:
        names["cam"] = f"{stem.name}-cam.jpg"
        save_heatmap(stem.with_name(names["cam"]), pixels_HW3, maps.cam_Nhw[0])
    save_heatmap(stem.with_name(names["gradient"]), pixels_HW3, maps.gradient_NHW[0])
    save_grid(stem.with_name(names["features"]), feature_maps(network, layer, pixels_HW3).maps_Chw)
    return names


def _write_map(run: Run, network: Network, spec: PreprocessSpec, method: Method, folder: Path) -> None:
    """Write the map of the test images as a picture and as a table."""
    prepared = read_prepared(run.step("prepare"))
    test = prepared.of("test")
    with np.load(run.step("evaluate") / "test.npz", allow_pickle=False) as saved:
        predicted_N, targets_N = saved["probabilities"].argmax(1), saved["targets"]
    extractor = FeatureExtractor(network, spec, ContentCache(run.config.cache / "features.sqlite"), torch.device("cpu"))
    try:
        places_N2 = place(np.array(extractor.compute(test, folder / ".features.npy")), method)
    finally:
        (folder / ".features.npy").unlink(missing_ok=True)
    write_embedding_png(folder / "embedding.png", places_N2, targets_N, predicted_N != targets_N, list(prepared.labels))
    with (folder / "embedding.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "predicted", "x", "y"])
        for sample, predicted, (x, y) in zip(test, predicted_N, places_N2, strict=True):
            writer.writerow([sample.name, sample.label, prepared.labels[predicted], f"{x:.5g}", f"{y:.5g}"])


def _test_photos(prepared: Prepared, probabilities_NK: np.ndarray, count: int) -> list[_Photo]:
    """The most confident mistakes, then the least confident other test images."""
    test, predicted_N = prepared.of("test"), probabilities_NK.argmax(1)
    confidence_N = probabilities_NK.max(1)
    wrong_N = predicted_N != np.array([sample.index for sample in test])
    order = np.lexsort((np.where(wrong_N, -confidence_N, confidence_N), ~wrong_N))
    return [_Photo(test[index].name, test[index].label, read_image(test[index])) for index in order[:count]]


def _read(path: Path) -> _Photo:
    try:
        return _Photo(path.name, None, path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; name a photo", code="unreadable") from error


def _pixels(photo: _Photo, spec: PreprocessSpec) -> np.ndarray:
    try:
        return np.array(preprocess(photo.data, spec, ADMITTED))  # a copy that PyTorch may own
    except ImageError as error:
        raise DataError(f"{photo.name}: {error}", code=error.code) from error


def _write_page(path: Path, name: str, explained: Sequence[Explained], layer: str) -> None:
    """Write the page. All text from the data is escaped, and nothing is loaded from elsewhere."""
    captions = {
        "photo": "what the model sees",
        "cam": "class activation map of the predicted class",
        "gradient": "input gradient of its logit",
        "features": f"the channels of {layer} that vary most",
    }
    sections = []
    for each in explained:
        title = f"{each.image}: {each.predicted} ({each.probability:.1%})" + (f", truly {each.label}" if each.label else "")
        figures = "".join(
            f'<figure><img src="{data_uri(path.parent / each.pictures[kind])}" alt=""><figcaption>{html.escape(caption)}'
            "</figcaption></figure>"
            for kind, caption in captions.items()
            if kind in each.pictures
        )
        sections.append(f"<h2>{html.escape(title)}</h2>\n<section>{figures}</section>\n")
    plot = f'<img class="plot" src="{data_uri(path.parent / "embedding.png")}" alt="map of the test images">'
    title = f"{html.escape(name)}: explained"
    path.write_text(
        f"{HEAD}<title>{title}</title>\n<h1>{title}</h1>\n{''.join(sections)}<h2>Map of the test images</h2>\n"
        f"<p>Images that are alike for the model lie near each other; crosses are mistakes.</p>\n{plot}\n</html>\n",
        encoding="utf-8",
    )
