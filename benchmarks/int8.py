"""int8 on networks with their own 1,000 ImageNet classes: accuracy, similarity, size and speed compared with float32.

Every fourth photo of the sample is for calibration, the others are for measuring. All recipes are shown, the one that ships by
default last. The photos are probably ImageNet's own training images: they show how similar int8 is to float32, not how good
either is.
"""

import argparse
import csv
import os
import tempfile
from pathlib import Path

import numpy as np
from common import SHARED, report
from torch import nn

from edgeline.export.graph.precision import halve, to_ort
from edgeline.export.graph.to_onnx import CalibratedModel, GraphOptions, export
from edgeline.export.parity.compare import Outputs, in_batches
from edgeline.export.parity.similarity import compare_outputs, drop_between
from edgeline.export.quantization.search import time_in_turn
from edgeline.export.quantization.static_int8 import Recipe, input_means, integer_share, make_ready, measure_ranges, quantize
from edgeline.pipeline.models.backbones import Network, remove_classifier
from edgeline.pipeline.models.pretrained import load
from edgeline.serve.preprocess import PreprocessSpec, preprocess
from edgeline.serve.runtime.session import create_session

RECIPES = (
    Recipe(per_channel=False),
    Recipe(reduce_range=True),
    Recipe(activations="int8"),
    Recipe(ranges="average"),
    Recipe(ranges="percentile"),
    Recipe(ranges="entropy"),
    Recipe(ranges="average", correct_bias=True),
    Recipe(ranges="percentile", correct_bias=True),
    Recipe(ranges="entropy", correct_bias=True),
    Recipe(),
    Recipe(correct_bias=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["efficientnet_lite0", "mobilenet_v2"])
    parser.add_argument(
        "--photos", type=Path, default=SHARED / "imagenet_sample", help="photos named by their class, classes.txt"
    )
    arguments = parser.parse_args()
    if (SHARED / "weights" / "torch").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights" / "torch"))
    rows = [row for model in arguments.models for row in measure(model, arguments.photos)]
    report("int8", rows=rows)


def measure(model: str, folder: Path) -> list[dict[str, object]]:
    """Quantize one network with every recipe; return a row for each."""
    reference, spec = export_with_own_classes(model)
    calibration, validation, targets_N = read_photos(folder, spec)
    ready = make_ready(reference)
    ranges = {name: measure_ranges(ready, in_batches(calibration, 8), name) for name in {r.ranges for r in RECIPES}}
    means = input_means(ready, in_batches(calibration, 8))
    models = {"float32": reference, "fp16 weights": halve(reference), "ORT float32": to_ort(reference)[0]}
    models |= {recipe.name: quantize(ready, ranges[recipe.ranges], recipe, means) for recipe in RECIPES}
    models["ORT int8"] = to_ort(models[RECIPES[-1].name])[0]
    expected = run(reference, validation)
    times = time_in_turn(models, validation[0][None], runs=100)
    rows = []
    for name, data in models.items():
        row = {"model": model, "variant": name} | compare_variant(expected, run(data, validation), targets_N)
        row |= {"size_ratio": len(data) / len(reference), "p50_ms": times[name], "time_ratio": times[name] / times["float32"]}
        row["integer_share"] = integer_share(reference, data, spec.height, spec.width) if name[:2] in ("U8", "S8") else 0.0
        rows.append(row)
        show(row)
    return rows


def read_photos(folder: Path, spec: PreprocessSpec) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Return the pixels for calibration, those for measuring, and the classes of the latter."""
    with (folder / "classes.txt").open() as file:
        index_of = {wnid: int(index) for index, wnid, *_ in csv.reader(file, delimiter=" ")}
    paths = sorted(folder.glob("*.JPEG"))
    pixels = [preprocess(path.read_bytes(), spec) for path in paths]
    targets_N = np.array([index_of[path.name.split("_")[0]] for i, path in enumerate(paths) if i % 4])
    return pixels[::4], [p for i, p in enumerate(pixels) if i % 4], targets_N


def compare_variant(expected: Outputs, observed: Outputs, targets_N: np.ndarray) -> dict[str, object]:
    """Compare a variant's outputs with the reference's."""
    similarity, drop = compare_outputs(expected, observed), drop_between(expected, observed, targets_N)
    return {
        "top1": drop["top1"],
        "drop_points": drop.drop_points,
        "drop_interval_points": drop["drop_interval_points"],
        "agreement": similarity.top1_agreement,
        "clear_agreement": similarity.clear_agreement,
        "sqnr_db": similarity.sqnr_db,
        "kl": similarity.kl,
        "images": len(targets_N),
    }


def show(row: dict) -> None:
    low, high = row["drop_interval_points"]
    parts = [
        f"{row['model']:20} {row['variant']:28} top1 {row['top1']:.4f}",
        f"drop {row['drop_points']:5.2f} ({low:5.2f} to {high:5.2f})",
        f"same {row['agreement']:.4f}",
        f"clear {row['clear_agreement']:.4f}",
        f"{row['sqnr_db']:6.1f} dB",
        f"KL {row['kl']:.4f}",
        f"size {row['size_ratio']:.3f}",
        f"{row['p50_ms']:5.2f} ms, {row['time_ratio']:.3f} of float32",
    ]
    parts += [f"integer {row['integer_share']:.0%}"] if "integer_share" in row else []
    print("  ".join(parts), flush=True)


def export_with_own_classes(model: str) -> tuple[bytes, PreprocessSpec]:
    """Return the network with its original classes, exported under the graph contract."""
    pretrained = load(model, "imagenet")
    linear = [layer for layer in pretrained.module.modules() if isinstance(layer, nn.Linear)][-1]
    features = remove_classifier(pretrained.module, model)
    network = Network(pretrained.module, features, linear.out_features, 0.0, pretrained.normalization).eval()
    network.classifier.load_state_dict(linear.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        export(CalibratedModel(network, 1.0), pretrained.preprocess, path, GraphOptions(classes=linear.out_features, opset=18))
        return path.read_bytes(), pretrained.preprocess


def run(model: bytes, pixels: list[np.ndarray]) -> Outputs:
    session = create_session(model)
    return Outputs.join(session.run(["probabilities", "logits"], {"image": batch}) for batch in in_batches(pixels, 8))


if __name__ == "__main__":
    main()
