"""What int8 reaches on a trained network: the recipe, its figures on the test split, and every test image that changes class.

    edgeline run --data photos/ --model mobilenet_v3_large
    python benchmarks/int8_backbones.py artifacts/runs/photos-0123456789ab

Without a run, three networks are trained on flowers17 from random weights at 64 pixels, for a few epochs, as their ImageNet
weights are not in `../shared`. The recipe is the one that the search chooses; where none passes, the most exact one, so that
its figures can be seen. Times are of one image on one thread.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import SHARED, report

from edgeline.export.graph.cam_outputs import plain
from edgeline.export.parity.compare import Outputs, in_batches
from edgeline.export.parity.similarity import compare_outputs, drop_between, failed_thresholds
from edgeline.export.quantization.search import Choice, choose_int8, time_in_turn
from edgeline.export.variants import search_request
from edgeline.flows.steps import execute
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import Sample, read_prepared, stream_pixels
from edgeline.pipeline.models.devices import CPU_BATCH
from edgeline.pipeline.runs.run import Run, open_run
from edgeline.serve.runtime.session import create_session

EPOCHS = {"efficientnet_b0": 8, "mobilenet_v3_large": 8, "resnet18": 5}
"""A few minutes of training each."""
SETTINGS = ["preprocess.size=64", "train.strategy=scratch", "train.augment=none", "train.refit=false"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of exported runs")
    parser.add_argument("--data", type=Path, default=SHARED / "flowers17", help="photos to train on, where no run is given")
    arguments = parser.parse_args()
    if (SHARED / "weights" / "torch").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights" / "torch"))
    with tempfile.TemporaryDirectory() as temporary:
        folders = arguments.runs or [trained(model, arguments.data, temporary) for model in EPOCHS]
        report("int8_backbones", rows=[measure(open_run(folder)) for folder in folders])


def trained(model: str, data: Path, artifacts: str) -> Path:
    """The folder of a run up to the float32 file, from random weights."""
    settings = [*SETTINGS, f"train.epochs={EPOCHS[model]}"]
    options = {"data": str(data), "model": model, "weights": "none", "name": model.replace("_", "-"), "artifacts": artifacts}
    run, _ = prepare(load_config(None, settings, **options))
    for step in ("train", "evaluate", "export"):
        execute(step, run)
    return run.folder


def measure(run: Run) -> dict[str, object]:
    """Choose a recipe as the run would, and compare its file with float32 on the test split."""
    reference = plain((run.step("export") / "model.onnx").read_bytes())
    choice, model = choose(run, reference)
    for tried in choice.report.tried:
        found = tried.similarity
        print(f"    {tried.recipe:36} {found.sqnr_db:6.1f} dB, same {found.top1_agreement:.4f} (validation)", flush=True)
    request = search_request(run, reference)
    test = read_prepared(run.step("prepare")).of("test")
    pixels = [pixels_HW3 for batch_NHW3 in stream_pixels(test, request.spec, CPU_BATCH) for pixels_HW3 in batch_NHW3]
    expected, observed = outputs(reference, pixels), outputs(model, pixels)
    similarity = compare_outputs(expected, observed)
    drop = drop_between(expected, observed, np.array([sample.index for sample in test]))
    times = time_in_turn({"float32": reference, "int8": model}, pixels[0][None], runs=100)
    row = {
        "model": run.config.model,
        "weights": run.config.weights,
        "size": request.spec.height,
        "recipe": choice.report.chosen or max(choice.report.tried, key=lambda entry: entry.similarity.sqnr_db).recipe,
        "chosen": choice.report.chosen is not None,
        "why": choice.report.why,
        "test_images": len(test),
        "reference_top1": drop.reference_top1,
        "drop_points": drop.drop_points,
        "drop_interval_points": drop.drop_interval_points,
        "sqnr_db": similarity.sqnr_db,
        "agreement": similarity.top1_agreement,
        "clear_agreement": similarity.clear_agreement,
        "kl": similarity.kl,
        "size_ratio": len(model) / len(reference),
        "time_ratio": times["int8"] / times["float32"],
        "failed_on_test": failed_thresholds(similarity, drop, request.thresholds),
        "changed": changed(expected, observed, test, run),
    }
    show(row)
    return row


def choose(run: Run, reference: bytes) -> tuple[Choice, bytes]:
    """The search's result, and its file; where no recipe passes, the file of the most exact one."""
    request = search_request(run, reference)
    request = replace(request, config=request.config.model_copy(update={"min_speedup": 0.0}))
    choice = choose_int8(request)
    if choice.model is not None:
        return choice, choice.model
    best_db = max(entry.similarity.sqnr_db for entry in choice.report.tried)
    passing = {"min_sqnr_db": best_db, "min_agreement": 0, "min_clear_agreement": 0, "max_kl": 1e9, "max_difference": 1}
    again = choose_int8(replace(request, thresholds=request.thresholds.model_copy(update=passing)))
    assert again.model is not None, "the search does not repeat itself"
    return choice, again.model


def changed(expected: Outputs, observed: Outputs, test: list[Sample], run: Run) -> list[dict[str, object]]:
    """The test images whose best class differs, the clearest first."""
    labels = read_prepared(run.step("prepare")).labels
    best_N, other_N = expected.probabilities_NK.argmax(1), observed.probabilities_NK.argmax(1)
    margin_N = np.diff(np.sort(expected.probabilities_NK, axis=1)[:, -2:], axis=1).ravel()
    found = [
        {
            "image": sample.name,
            "label": sample.label,
            "float32": labels[best_N[i]],
            "int8": labels[other_N[i]],
            "margin": float(margin_N[i]),
        }
        for i, sample in enumerate(test)
        if best_N[i] != other_N[i]
    ]
    return sorted(found, key=lambda entry: -float(entry["margin"]))


def show(row: dict) -> None:
    low, high = row["drop_interval_points"]
    state = "chosen" if row["chosen"] else "fails"
    print(
        f"{row['model']:20} {row['recipe']:34} {state:6} float32 {row['reference_top1']:.3f}",
        f"drop {row['drop_points']:.2f} ({low:.2f} to {high:.2f})",
        f"same {row['agreement']:.4f}, clear {row['clear_agreement']:.4f}, {row['sqnr_db']:.1f} dB",
        f"size {row['size_ratio']:.3f}, time {row['time_ratio']:.3f}",
        sep="  ",
        flush=True,
    )
    for entry in row["changed"]:
        print(f"    {entry['image']}: {entry['float32']} -> {entry['int8']}, is {entry['label']}, margin {entry['margin']:.3f}")
    for problem in row["failed_on_test"]:
        print(f"    test: {problem}")
    if row["why"]:
        print(f"    {row['why']}")


def outputs(model: bytes, pixels: list[np.ndarray]) -> Outputs:
    session = create_session(model)
    return Outputs.join(session.run(["probabilities", "logits"], {"image": batch}) for batch in in_batches(pixels, CPU_BATCH))


if __name__ == "__main__":
    main()
