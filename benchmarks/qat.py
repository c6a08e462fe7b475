"""int8 with fine-tuned weights compared with int8 that is only rounded: similarity to float32 on the test split, and time.

By default the digits at 64 pixels on MobileNetV2, whose int8 variant fails the thresholds; `--run` takes an exported run.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from common import SHARED, report

from edgeline.export.parity.compare import Outputs, in_batches
from edgeline.export.parity.similarity import compare_outputs, drop_between
from edgeline.export.quantization.qat import tune, tuning_of
from edgeline.export.quantization.search import base_recipe, choose_calibration
from edgeline.export.quantization.static_int8 import input_means, make_ready, measure_ranges, quantize
from edgeline.flows.steps import execute
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared, stream_pixels
from edgeline.pipeline.models.devices import CPU_BATCH
from edgeline.pipeline.runs.run import Run, open_run
from edgeline.serve.runtime.session import create_session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of an exported run")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--target", default="x86-vnni")
    arguments = parser.parse_args()
    if (SHARED / "weights" / "torch").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights" / "torch"))
    with tempfile.TemporaryDirectory() as temporary:
        run = open_run(arguments.run) if arguments.run else exported(arguments, temporary)
        config = run.config.export.model_copy(update={"target": arguments.target})
        rows, tuning = measure(Run(run.folder, run.config.model_copy(update={"export": config})), arguments.epochs)
    report("qat", data=run.config.artifact_name, model=run.config.model, target=arguments.target, rows=rows, tuning=tuning)


def exported(arguments: argparse.Namespace, artifacts: str) -> Run:
    """The pipeline up to the float32 file."""
    settings = [f"preprocess.size={arguments.size}"]
    run, _ = prepare(load_config(None, settings, data=arguments.data, model=arguments.model, artifacts=artifacts))
    for step in ("train", "evaluate", "export"):
        execute(step, run)
    return run


def measure(run: Run, epochs: int) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Quantize a run's file with and without tuning."""
    prepared, reference = read_prepared(run.step("prepare")), (run.step("export") / "model.onnx").read_bytes()
    tuning = tuning_of(run, reference)
    batches = partial(stream_pixels, choose_calibration(prepared.of("train"), 128), tuning.spec, CPU_BATCH)
    ready, plain = make_ready(reference), base_recipe(run.config.export)
    ranges, means = measure_ranges(ready, batches()), input_means(ready, batches())
    corrected = replace(plain, correct_bias=True)
    models = {recipe.name: quantize(ready, ranges, recipe, means) for recipe in (plain, corrected)}
    tuned = tune(tuning, ready, models[corrected.name], epochs)
    recipe = replace(plain, tuned=epochs)
    models[recipe.name] = quantize(tuned.ready, ranges, recipe)
    test = prepared.of("test")
    pixels = [pixels_HW3 for batch_NHW3 in stream_pixels(test, tuning.spec, CPU_BATCH) for pixels_HW3 in batch_NHW3]
    targets_N, expected = np.array([sample.index for sample in test]), outputs(reference, pixels)
    rows = []
    for name, model in models.items():
        observed = outputs(model, pixels)
        similarity, drop = compare_outputs(expected, observed), drop_between(expected, observed, targets_N)
        figures = {"sqnr_db": similarity.sqnr_db, "agreement": similarity.top1_agreement, "clear": similarity.clear_agreement}
        figures |= {"kl": similarity.kl, "drop_points": drop.drop_points}
        rows.append({"recipe": name, "images": len(test), **figures})
        print(f"{name:40}", *(f"{key} {value:.4f}" for key, value in figures.items()), flush=True)
    return rows, tuned.report.to_dict()


def outputs(model: bytes, pixels: list[np.ndarray]) -> Outputs:
    session = create_session(model)
    return Outputs.join(session.run(["probabilities", "logits"], {"image": batch}) for batch in in_batches(pixels, CPU_BATCH))


if __name__ == "__main__":
    main()
