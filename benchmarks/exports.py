"""From a trained checkpoint to a verified artifact with float32, int8 and ORT files, compared with ultralytics' export.

Two pairs. `yolo11n-cls` is what ultralytics offers for a small device; it has about half of EfficientNet-Lite0's
multiply-adds, the next size up has twice as many, so the pair errs in its favor. `mobilenet_v2` is one network in both:
torchvision's layers under ultralytics' own classifier, which differs in one activation. Both start from a checkpoint on disk
in a fresh process, imports counted, and take turns; both calibrate on the same photos. ultralytics writes ONNX in float32 and
int8 (ONNX Runtime's quantizer at its defaults, but for convolutions and matrices only); with `--openvino` its int8 for
OpenVINO too. It has no ORT format. The table lists what each checks of its output; for ultralytics according to the source of
the named release: it runs one black image before the export, for the outputs' shape, and compares nothing. It also lists what
happens to a checkpoint with a weight that is NaN. ultralytics is installed in an environment of its own, without network
access.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHARED, Clock, install, photos, report
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from edgeline.export.parity.compare import Outputs
from edgeline.export.parity.similarity import compare_outputs, drop_between
from edgeline.export.quantization.search import choose_calibration
from edgeline.flows.steps import execute
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import Prepared, read_prepared
from edgeline.pipeline.models.checkpoint import load_checkpoint
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import EdgelineError

PAIRS = {"efficientnet_lite0": "yolo11n-cls", "mobilenet_v2": "mobilenet_v2"}
ULTRALYTICS = "ultralytics==8.4.190"
STEPS = ("export", "variants", "verify", "publish")
VARIANTS = ["onnx-int8", "ort-fp32", "ort-int8"]
OURS = f"""
import json, sys
from pathlib import Path
from edgeline.flows.steps import execute
from edgeline.pipeline.runs.run import open_run
run = open_run(Path(sys.argv[1]))
print(json.dumps({{name: execute(name, run).seconds for name in {STEPS}}}))
"""
CHILD = Path(__file__).with_name("exports_ultralytics.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos("hymenoptera"))
    parser.add_argument("--models", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--openvino", action="store_true", help="time ultralytics' int8 export for OpenVINO too")
    parser.add_argument("--environment", type=Path, help="keep ultralytics' environment in this folder and reuse it")
    parser.add_argument("--artifacts", help="keep the runs in this folder instead of a temporary one")
    parser.add_argument("--set", action="append", default=[], help="settings, as for edgeline run")
    arguments = parser.parse_args()
    if (SHARED / "weights" / "torch").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights" / "torch"))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        same = [f"{name}=={version(name)}" for name in ("torch", "torchvision", "onnx", "onnxruntime")]
        python = install(
            arguments.environment or Path(temporary, "environment"),
            *(ULTRALYTICS, "onnxslim", "opencv-python-headless", *same),
            *(("openvino", "nncf") if arguments.openvino else ()),
            overrides=("opencv-python; sys_platform == 'never'",),  # needs the libraries of a desktop
        )
        # No downloads, no installation, no telemetry, and no files in the home folder.
        closed = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": f"{temporary}/settings"}
        for model in arguments.models:
            settings = [f"export.variants={json.dumps(VARIANTS)}", *arguments.set]
            artifacts = arguments.artifacts or f"{temporary}/artifacts"
            name = f"benchmark-exports-{model}".replace("_", "-")  # what it publishes is removed in every round
            config = load_config(None, settings, data=arguments.data, model=model, name=name, artifacts=artifacts)
            run, _ = prepare(config)
            execute("train", run)
            execute("evaluate", run)
            folder = Path(temporary, model)
            lay_out(read_prepared(run.step("prepare")), config.export.calibration_images, folder)

            def theirs(job: str, folder: Path = folder, model: str = model) -> dict[str, Any]:
                options = ["--openvino"] * arguments.openvino
                command = [python, CHILD, job, folder, PAIRS[model], *options]
                subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, **closed})
                return json.loads((folder / f"{job}.json").read_text())

            theirs("train")
            rows.append(compare(run, model, theirs, arguments.rounds, folder))
    report("exports", data=Path(arguments.data).name, rounds=arguments.rounds, rows=rows)


def lay_out(prepared: Prepared, calibrating: int, folder: Path) -> None:
    """Copy the photos into the layout of ultralytics: `val` has those for calibration, `test` the held-out ones."""
    splits = {"train": prepared.of("train"), "val": choose_calibration(prepared.of("train"), calibrating)}
    splits["test"] = prepared.of("test")
    for split, samples in splits.items():
        for sample in samples:
            to = folder / "photos" / split / prepared.labels[sample.index]
            to.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sample.path, to / f"{sample.sha256[:16]}{Path(sample.path).suffix.lower()}")


def compare(run: Run, model: str, theirs: Any, rounds: int, folder: Path) -> dict[str, Any]:
    """Time both in turn, then list the files that they wrote and what they checked."""
    print(f"{model} compared with ultralytics' {PAIRS[model]}", flush=True)
    ours_s, theirs_s, steps = [], [], []
    for number in range(rounds):
        for step in STEPS[:-1]:
            shutil.rmtree(run.step(step), ignore_errors=True)
        shutil.rmtree(run.config.store / run.config.artifact_name, ignore_errors=True)
        with Clock() as ours:
            done = subprocess.run([sys.executable, "-c", OURS, run.folder], check=True, capture_output=True, text=True)
        with Clock() as other:
            wrote = theirs("export")
        steps.append(json.loads(done.stdout.splitlines()[-1]))
        ours_s.append(ours.seconds)
        theirs_s.append(other.seconds)
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in steps[-1].items())
        their_parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in wrote["seconds"].items())
        print(
            f"  round {number + 1}: edgeline {ours.seconds:.1f} s ({parts}); ultralytics {other.seconds:.1f} s ({their_parts})"
        )
    row = {"model": model, "compared_with": PAIRS[model], "versions": wrote["versions"]}
    row |= {"edgeline_s": statistics.median(ours_s), "ultralytics_s": statistics.median(theirs_s), "steps_s": steps}
    row["ratio"] = statistics.median(a / b for a, b in zip(ours_s, theirs_s, strict=True))
    answers = theirs("answer")
    found = dict(np.load(folder / "answers.npz"))
    outputs = {name: Outputs(found[name], np.log(np.maximum(found[name], 1e-30))) for name in ("float32", "int8")}
    similarity = compare_outputs(outputs["float32"], outputs["int8"])
    drop = drop_between(outputs["float32"], outputs["int8"], found["targets"])
    theirs_int8 = {"drop_points": drop.drop_points, "agreement": similarity.top1_agreement, **answers}
    ours_int8 = read_int8(run)
    row |= {"multiply_adds": [multiply_adds(run), answers["multiply_adds"]], "int8": [ours_int8, theirs_int8]}
    row["nan_weight"] = [export_with_nan(run), theirs("nan")["outcome"]]
    verification = json.loads((run.step("verify") / "verification.json").read_text())
    n, table = sum(verification["images"].values()), []
    table.append(("seconds (median)", f"{row['edgeline_s']:.1f}", f"{row['ultralytics_s']:.1f}, ratio {row['ratio']:.2f}"))
    table.append(("multiply-adds", *(f"{count / 1e6:.0f} million" for count in row["multiply_adds"])))
    table.append(("files", ", ".join(["float32", *VARIANTS]), ", ".join(wrote["files"])))
    table.append(("float32 against PyTorch", f"{n} images, 3 batch sizes, max {verification['max_difference']:.0e}", "no"))
    table.append(("int8 against float32", f"{ours_int8['evaluated_images']} images to choose, {n} to pass", "no"))
    table.append(("published file passes a self-test", "golden images", "no"))
    table.append(("one weight is NaN", *row["nan_weight"]))
    for title, key, form in (
        ("int8: accuracy drop, points", "drop_points", "{:.2f}"),
        ("int8: same best class", "agreement", "{:.2%}"),
        ("int8: time of float32's", "time_ratio", "{:.2f}"),
    ):
        table.append((title, *(form.format(side[key]) if key in side else "none made" for side in (ours_int8, theirs_int8))))
    for title, mine, other_side in table:
        print(f"  {title:30} {mine[:60]:60}  {other_side}", flush=True)
    return row


def read_int8(run: Run) -> dict[str, Any]:
    """Return the figures of edgeline's own verification of its int8 file."""
    found = json.loads((run.step("variants") / "variants.json").read_text())["int8"]
    entries = json.loads((run.step("verify") / "verification.json").read_text())["variants"]
    entry = next(e for e in entries if e["name"] == "onnx-int8")
    figures = {"evaluated_images": found["evaluated_on"]["images"], "passed": entry["passed"], "problems": entry["problems"]}
    if entry["passed"]:
        figures |= {"drop_points": entry["accuracy"]["drop_points"], "agreement": entry["similarity"]["top1_agreement"]}
        figures["time_ratio"] = 1 / found["speedup"]
    return figures


def multiply_adds(run: Run) -> int:
    network, checkpoint = load_checkpoint(run.step("train"))
    spec = checkpoint.preprocess
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, spec.height, spec.width, 3, dtype=torch.uint8))
    return counter.get_total_flops() // 2


def export_with_nan(run: Run) -> str:
    """Return what happens on exporting a checkpoint with a weight that is NaN."""
    with tempfile.TemporaryDirectory() as temporary:
        broken = Run(Path(shutil.copytree(run.folder, Path(temporary, "run"))), run.config)
        path = broken.step("train") / "checkpoint.safetensors"
        state = load_file(path)
        next(tensor for tensor in state.values() if tensor.dim() == 4).view(-1)[0] = torch.nan
        save_file(state, path)
        shutil.rmtree(broken.step("export"))
        shutil.rmtree(broken.step("verify"))
        try:
            execute("export", broken)
            execute("verify", broken)
        except EdgelineError as error:
            return f"rejected: {error}"
    return "exported without an error"


if __name__ == "__main__":
    main()
