"""The cost of class activation maps: an artifact with them compared with the same one without, measured in turn.

Each artifact must have been made with `export.explain = true`; by default one is made from the real photos in
`../shared/data` if that folder exists, else from the embedded digits. For comparison, the two additional outputs are removed
from a copy of each ONNX variant. Times are medians of one image on one thread, as ratios to those of the plain copy.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import photos, report

from edgeline.export.graph.cam_outputs import plain
from edgeline.export.graph.to_onnx import CalibratedModel, GraphOptions, export
from edgeline.flows.steps import run_pipeline
from edgeline.pipeline.config import load_config
from edgeline.pipeline.models.backbones import build
from edgeline.serve.artifact.reader import open_artifact
from edgeline.serve.runtime.session import create_session

RUNS = 200
NAMES = ["probabilities", "logits"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--work", type=Path, default=Path("artifacts/benchmark-explain"))
    arguments = parser.parse_args()
    rows = {}
    for folder in arguments.artifacts or [made(arguments.work)]:
        artifact = open_artifact(folder)
        classes = len(artifact.manifest.labels)
        for variant in artifact.manifest.variants:
            if variant.format == "onnx":
                name = f"{artifact.manifest.name} {variant.name}, {classes} classes"
                rows[name] = measure(artifact.read(variant.file), artifact.manifest.preprocess.height)
                print(name, rows[name], flush=True)
    for classes in (10, 100, 1000):
        rows[f"efficientnet_lite0, {classes} classes, untrained head"] = measure(untrained(classes), 224)
    report("explain", rows=rows, runs=RUNS)


def made(work: Path) -> Path:
    """Make an artifact with class activation maps."""
    config = load_config(None, ["export.explain=true"], data=photos("hymenoptera"), artifacts=str(work), name="explain")
    _, steps = run_pipeline(config)
    return steps[-1].folder


def untrained(classes: int) -> bytes:
    """Export a model with many classes; its weights do not affect the times."""
    network, spec = build("efficientnet_lite0", "imagenet", classes=classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        export(CalibratedModel(network, 1.0), spec, path, GraphOptions(classes=classes, opset=18, explain=True))
        return path.read_bytes()


def measure(model: bytes, side: int) -> dict[str, float]:
    """Return milliseconds of the plain file, and the ratios of the others to it."""
    pixels_1HW3 = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)

    def run(model: bytes, names: list[str]) -> Callable[[], list[np.ndarray]]:
        # One session each, or the weights would still be in the processor's cache from the run before.
        session = create_session(model, threads=1)
        return lambda: list(session.run(names, {"image": pixels_1HW3}))

    ways = {
        "plain": run(plain(model), NAMES),
        "not requested": run(model, [*NAMES, "embedding"]),
        "requested": run(model, [*NAMES, "embedding", "evidence"]),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(RUNS + 10):
        for way, call in sorted(ways.items(), reverse=number % 2 == 1):
            begun = time.perf_counter()
            call()
            if number >= 10:
                times[way].append(time.perf_counter() - begun)
    ratios = {
        way: statistics.median(one / base for one, base in zip(times[way], times["plain"], strict=True))
        for way in ways
        if way != "plain"
    }
    return {"plain_ms": round(1e3 * statistics.median(times["plain"]), 3)} | {way: round(r, 3) for way, r in ratios.items()}


if __name__ == "__main__":
    main()
