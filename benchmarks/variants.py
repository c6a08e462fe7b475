"""The table of variants: every network's head on real photos, every variant, or why one was left out.

The pipeline runs with all variants; the figures are those of its own verification, on held-out images. Weights are ImageNet's
where they are available. Otherwise the backbone is random and the row is marked: its accuracy means nothing, its sizes, times
and similarity do. The batch norms of a new network are not usable either: its features are near 1e-10 and every photo looks
the same. A random backbone therefore first gets batch norm statistics from training photos, and is then passed to the pipeline
as a file of weights. An existing run is reused: name a folder with `--artifacts` to resume.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import SHARED, photos, report
from safetensors.torch import save_file
from torch import nn

from edgeline.export.quantization.search import time_in_turn
from edgeline.export.quantization.static_int8 import Recipe, integer_share, make_ready, measure_ranges, quantize
from edgeline.flows.steps import run_pipeline
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import Sample, read_prepared, stream_pixels
from edgeline.pipeline.data.stress_images import stress_images
from edgeline.pipeline.evaluation.metrics import wilson_interval
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.checkpoint import read_settings
from edgeline.pipeline.models.pretrained import load
from edgeline.serve.errors import EdgelineError, WeightsError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.benchmark import measure
from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.runtime.session import create_session

MODELS = ("efficientnet_lite0", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "resnet18")
VARIANTS = ("onnx-int8", "onnx-fp16", "ort-fp32", "ort-int8")
NORM_PHOTOS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--data", nargs="*", help="folders; by default the ants and bees, and the flowers")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--artifacts", help="keep the runs here instead of in a temporary folder")
    parser.add_argument("--set", action="append", default=[], help="settings, as for edgeline run")
    arguments = parser.parse_args()
    if (SHARED / "weights" / "torch").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights" / "torch"))
    folders = arguments.data or list(dict.fromkeys(photos(name) for name in ("hymenoptera", "flowers17")))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        artifacts = Path(arguments.artifacts or temporary)
        for data in folders:
            for model in arguments.models:
                weights, origin = find_weights(model, data, artifacts)
                for seed in range(arguments.seeds):
                    options = {"data": data, "model": model, "weights": weights, "seed": seed, "artifacts": str(artifacts)}
                    print(f"\n{Path(data).name}, {model}, {origin}, seed {seed}", flush=True)
                    of_run = {"data": Path(data).name, "model": model, "weights": origin, "seed": seed}
                    for row in run_and_read(options, arguments.set):
                        rows.append(of_run | row)
                        show(row)
    report("variants", settings=arguments.set, rows=rows)


def find_weights(model: str, data: str, artifacts: Path) -> tuple[str, str]:
    """The weights for the pipeline, and their description in the table."""
    try:
        load(model, "imagenet")
        return "imagenet", "ImageNet weights"
    except WeightsError:
        origin = f"random backbone, batch norms from {NORM_PHOTOS} training photos"
    path = artifacts / "random-weights" / f"{model}-{Path(data).name}.safetensors"
    if not path.exists():
        run, _ = prepare(load_config(data=data, model=model, artifacts=str(artifacts)))
        torch.manual_seed(0)
        network, spec = build(model, "none", classes=2)
        for norm in (layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.momentum = None  # the plain average over the batches
            norm.reset_running_stats()
            norm.train()
        samples = sorted(read_prepared(run.step("prepare")).of("train"), key=lambda sample: sample.sha256)[:NORM_PHOTOS]
        with torch.inference_mode():
            for batch_NHW3 in stream_pixels(samples, spec, 32):
                network.features(torch.from_numpy(batch_NHW3).permute(0, 3, 1, 2).float())
        path.parent.mkdir(parents=True, exist_ok=True)
        state = network.backbone.state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return str(path), origin


def run_and_read(options: dict[str, Any], settings: list[str]) -> list[dict[str, Any]]:
    """Run the pipeline; one row per variant, the reference first."""
    name = f"{Path(options['data']).name}-{options['model']}".lower().replace("_", "-")
    wanted = [f"export.variants={json.dumps(VARIANTS)}", *settings]
    try:
        run, _ = run_pipeline(load_config(None, wanted, name=name, **options))
    except EdgelineError as error:
        return [{"variant": "float32", "made": False, "why": str(error)}]
    model, spec = (run.step("export") / "model.onnx").read_bytes(), read_settings(run.step("train")).preprocess
    verification = json.loads((run.step("verify") / "verification.json").read_text())
    variants = json.loads((run.step("variants") / "variants.json").read_text())
    tried = {entry["recipe"]: entry for entry in variants["int8"].get("tried", [])}
    chosen = variants["int8"].get("chosen")
    image, reference = stress_images()["scene"], verification["test_accuracy"]
    rows = [
        {
            "variant": "float32",
            "made": True,
            "top1": reference["value"],
            "interval": [reference["low"], reference["high"]],
            "bytes": len(model),
            "max_difference": verification["max_difference"],
            "one_thread": times(create_session(model, threads=1), image, spec),
            "all_threads": times(create_session(model), image, spec),
            "start": verification["reference"]["start"],
        }
    ]
    for entry in verification["variants"]:
        if not entry["passed"]:
            rows.append({"variant": entry["name"], "made": False, "why": "; ".join(entry["problems"])})
            if entry["name"] == "onnx-int8":
                rows[-1] |= plain_int8(model, read_prepared(run.step("prepare")).of("train")[:32], spec)
            continue
        drop, similarity, latency = entry["accuracy"], entry["similarity"], entry["latency"]
        row = {
            "variant": entry["name"],
            "made": True,
            "top1": drop["top1"],
            "interval": wilson_interval(round(drop["top1"] * drop["images"]), drop["images"]),
            "drop_points": drop["drop_points"],
            "drop_interval_points": drop["drop_interval_points"],
            "images": similarity["images"],
            "bytes": entry["bytes"],
            "one_thread": {key: latency["threads_1"][key] for key in ("p50_ms", "p95_ms")},
            "all_threads": {key: latency[f"threads_{usable_cores()}"][key] for key in ("p50_ms", "p95_ms")},
            "start": entry["start"],
        }
        row |= {key: similarity[key] for key in ("sqnr_db", "top1_agreement", "clear_agreement", "kl", "max_difference")}
        if entry["precision"] == "int8" and chosen is not None:
            row |= {"recipe": chosen, "integer_share": tried[chosen]["integer_share"], "speedup": variants["int8"]["speedup"]}
        rows.append(row)
    return rows


def plain_int8(reference: bytes, samples: list[Sample], spec: PreprocessSpec) -> dict[str, float]:
    """The speed of int8 where it is not shipped: for some networks that alone is the reason."""
    ready = make_ready(reference)
    model = quantize(ready, measure_ranges(ready, stream_pixels(samples, spec, 8)), Recipe())
    image_1HW3 = next(iter(stream_pixels(samples[:1], spec, 1)))
    found = time_in_turn({"float32": reference, "int8": model}, image_1HW3)
    share = integer_share(reference, model, spec.height, spec.width)
    return {"speedup": found["float32"] / found["int8"], "integer_share": share}


def times(session: Any, image: bytes, spec: PreprocessSpec) -> dict[str, float]:
    latency = measure(session, image, spec)
    return {"p50_ms": latency.p50_ms, "p95_ms": latency.p95_ms}


def show(row: dict[str, Any]) -> None:
    if not row["made"]:
        print(f"  {row['variant']:10} left out: {row['why']}", flush=True)
        if "speedup" in row:
            print(
                f"  {'':10} it would be {row['speedup']:.2f} times as fast in turn, {row['integer_share']:.0%} integer",
                flush=True,
            )
        return
    one, every, start, (low, high) = row["one_thread"], row["all_threads"], row["start"], row["interval"]
    parts = [f"  {row['variant']:10} top1 {row['top1']:.4f} ({low:.4f} to {high:.4f})"]
    if "drop_points" in row:
        least, most = row["drop_interval_points"]
        parts.append(f"drop {row['drop_points']:.2f} ({least:.2f} to {most:.2f})")
        parts.append(f"{row['sqnr_db']:.1f} dB  same {row['top1_agreement']:.4f}  KL {row['kl']:.1e}")
    parts += [f"max {row['max_difference']:.1e}", f"{row['bytes'] / 1e6:.2f} MB"]
    parts.append(f"1 thread p50 {one['p50_ms']:.1f} p95 {one['p95_ms']:.1f} ms")
    parts.append(f"{usable_cores()} threads p50 {every['p50_ms']:.1f} p95 {every['p95_ms']:.1f} ms")
    parts.append(f"peak {start['peak_mb']:.0f} MB")
    parts.append(f"start {start['import_ms'] + start['load_ms'] + start['first_answer_ms']:.0f} ms")
    if "recipe" in row:
        parts.append(f"integer {row['integer_share']:.0%}  {row['speedup']:.2f} times as fast in turn  ({row['recipe']})")
    print("  ".join(parts), flush=True)


if __name__ == "__main__":
    main()
