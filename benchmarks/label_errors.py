"""Label errors: how many of the labels that were swapped on purpose are found, and how many of the others are suspected.

    python benchmarks/label_errors.py [--data FOLDER ...] [--share 0.05] [--seeds 3]

5 % of the labels are swapped for those of other classes, in a CSV file. The pipeline prepares and trains with it, and its
out-of-fold probabilities are searched. Real label errors of the data count as false alarms. The last line is one JSON document.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
from common import SHARED, report

from edgeline.flows.steps import execute
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared
from edgeline.pipeline.evaluation.label_errors import find_label_errors
from edgeline.pipeline.evaluation.metrics import best_temperature, softmax
from edgeline.pipeline.models.checkpoint import CALIBRATION, OUT_OF_FOLD
from edgeline.pipeline.sources.digits import write_digits
from edgeline.pipeline.sources.image_extensions import is_named_like_an_image

DATA = [SHARED / "flowers17", SHARED / "xsdd_steel"]
"""Without them, the embedded digits."""


def main() -> None:
    """Print a line for each data set and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", help="folders with one folder for each class")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--artifacts", help="folder that keeps the features for the next time")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = arguments.data or [path for path in DATA if path.is_dir()] or [write_digits(Path(temporary, "digits"))]
        for data in folders:
            for seed in range(arguments.seeds):
                rows.append(measure(data, arguments.share, seed, Path(arguments.artifacts or temporary)))
                print(
                    "{data:12} seed {seed}: {swapped} of {images} swapped, {reported} reported, precision {precision:.2f}, "
                    "recall {recall:.2f}, search {search_s:.3f} s".format(**rows[-1]),
                    flush=True,
                )
    report("label_errors", share=arguments.share, rows=rows)


def measure(data: Path, share: float, seed: int, artifacts: Path) -> dict[str, object]:
    """Swap labels, train, and compare what is reported with what was swapped."""
    truth = {path.resolve(): path.parent.name for path in sorted(data.glob("*/*")) if is_named_like_an_image(path.name)}
    labels = sorted(set(truth.values()))
    chance = np.random.default_rng(seed)
    given = dict(truth)
    for number in chance.choice(len(truth), round(share * len(truth)), replace=False):
        path = list(truth)[number]
        given[path] = str(chance.choice([label for label in labels if label != truth[path]]))
    artifacts.mkdir(parents=True, exist_ok=True)
    table = artifacts / f"{data.name}-{seed}.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *given.items()])
    run, _ = prepare(load_config(None, data=str(table), seed=seed, artifacts=str(artifacts)))
    execute("train", run)
    samples = {sample.sha256: sample for sample in read_prepared(run.step("prepare")).samples}
    with np.load(run.step("train") / CALIBRATION) as saved:
        temperature = best_temperature(saved["logits"], saved["targets"])
    with np.load(run.step("train") / OUT_OF_FOLD) as saved:
        logits_MK, targets_M, images = saved["logits"], saved["targets"], saved["images"].tolist()
    swapped_M = np.array([samples[image].label != truth[Path(samples[image].path).resolve()] for image in images])
    start = time.perf_counter()
    found = find_label_errors(softmax(logits_MK / temperature), targets_M)
    search_s = time.perf_counter() - start
    hits = int(swapped_M[found.indices].sum())
    return {
        "data": data.name,
        "seed": seed,
        "images": len(images),
        "swapped": int(swapped_M.sum()),
        "reported": len(found.indices),
        "precision": hits / max(1, len(found.indices)),
        "recall": hits / max(1, int(swapped_M.sum())),
        "search_s": search_s,
    }


if __name__ == "__main__":
    main()
