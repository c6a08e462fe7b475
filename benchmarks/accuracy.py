"""Accuracy of the shipped ONNX file: the whole pipeline on real photos, with several seeds and two backbones.

The figure is that of the verified file on the held-out images, run by ONNX Runtime from the files' bytes. `mobilenet_v2` uses
torchvision's weights, from `../shared/data/weights/torch` if that folder exists.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from common import SHARED, photos, report

from edgeline.flows.steps import run_pipeline
from edgeline.flows.summary import summarize
from edgeline.pipeline.config import load_config

DATA = ("hymenoptera", "flowers17", "xsdd_steel", "digits")
SETTINGS = {
    ("flowers17", "efficientnet_lite0"): ["train.views=1", "train.augment=flip"],
    # A defect may be at the edge of the strip, which the crop of the backbone's own preprocessing removes. The classes have
    # 63 to 397 images, and accuracy counts images, not classes.
    ("xsdd_steel", "efficientnet_lite0"): ["preprocess.crop_fraction=1", "train.class_weights=sqrt"],
    ("xsdd_steel", "mobilenet_v2"): ["train.class_weights=sqrt"],
}
"""Settings that differ from the defaults. Each row of the result lists them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", help="folders; by default the available real photos, and the digits")
    parser.add_argument("--models", nargs="*", default=["efficientnet_lite0", "mobilenet_v2"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--artifacts", help="folder for the runs; by default a temporary one")
    arguments = parser.parse_args()
    if (SHARED / "weights" / "torch").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights" / "torch"))
    folders = arguments.data or sorted({photos(name) for name in DATA}, key=str)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for data in folders:
            for model in arguments.models:
                rows.append(measure(data, model, arguments.seeds, arguments.artifacts or temporary))
                row = rows[-1]
                shown = " ".join(f"{value:.4f}" for value in row["accuracies"])
                print(
                    f"{row['data']:12} {model:20} mean {row['mean']:.4f}  ({shown})  n {row['test_images']}  max difference "
                    f"{row['max_difference']:.1e}  same top class {row['top1_agreement']:.4f}  ece {row['ece']:.3f}",
                    flush=True,
                )
    report("accuracy", seeds=arguments.seeds, rows=rows)


def measure(data: str, model: str, seeds: int, artifacts: str) -> dict[str, object]:
    """Run the pipeline once for each seed."""
    name = f"{Path(data).name}-{model}".lower().replace("_", "-")
    settings = SETTINGS.get((Path(data).name, model), [])
    runs = [
        summarize(*run_pipeline(load_config(None, settings, data=data, model=model, seed=seed, name=name, artifacts=artifacts)))
        for seed in range(seeds)
    ]
    accuracies = [run.shipped_top1.value for run in runs]
    return {
        "data": Path(data).name,
        "model": model,
        "settings": settings,
        "mean": statistics.mean(accuracies),
        "accuracies": accuracies,
        "test_images": runs[0].shipped_top1.total,
        "max_difference": max(run.max_difference for run in runs),
        "top1_agreement": min(run.top1_agreement for run in runs),
        "ece": statistics.mean(run.ece_after for run in runs),
        "ece_before": statistics.mean(run.ece_before for run in runs),
    }


if __name__ == "__main__":
    main()
