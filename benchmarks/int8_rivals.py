"""edgeline's int8 compared with NNCF's for OpenVINO, on networks with their own 1,000 ImageNet classes.

The same float32 file, the same photos for calibration and for measuring, the same measurement as in `int8.py`. NNCF quantizes
for OpenVINO in three ways, and for ONNX Runtime in the best of them; OpenVINO also runs edgeline's own file. Both runtimes run
one image on one thread in turn, in one process. OpenVINO and NNCF are installed in an environment of their own, which receives
the float32 file and arrays of pixels and returns arrays. Times are compared with ONNX Runtime's float32.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from common import SHARED, install, report
from int8 import compare_variant, export_with_own_classes, read_photos, show

from edgeline.export.parity.compare import Outputs, in_batches
from edgeline.export.quantization.histograms import collect
from edgeline.export.quantization.static_int8 import Recipe, input_means, make_ready, measure_ranges, quantize

ROOT = Path(__file__).resolve().parents[1]
OURS = {
    "float32": None,
    "edgeline": Recipe(correct_bias=True),
    "edgeline average": Recipe(ranges="average", correct_bias=True),
    "edgeline percentile": Recipe(ranges="percentile", correct_bias=True),
    "edgeline mse": Recipe(ranges="mse", correct_bias=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["efficientnet_lite0", "mobilenet_v2"])
    parser.add_argument("--photos", type=Path, default=SHARED / "imagenet_sample", help="as for int8.py")
    parser.add_argument("--environment", type=Path, help="keep the other tools' environment in this folder and reuse it")
    arguments = parser.parse_args()
    if (SHARED / "weights" / "torch").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights" / "torch"))
    with tempfile.TemporaryDirectory() as temporary:
        runtime = f"onnxruntime=={version('onnxruntime')}"
        environment = arguments.environment or Path(temporary, "environment")
        python = install(environment, "openvino", "nncf", "onnx", runtime, "pillow")
        rows, versions = [], {}
        for model in arguments.models:
            folder = Path(temporary, model)
            folder.mkdir()
            found, versions = measure(model, arguments.photos, folder, python)
            rows += found
    report("int8_rivals", rows=rows, versions=versions)


def measure(model: str, photos: Path, folder: Path, python: Path) -> tuple[list[dict[str, object]], dict[str, str]]:
    """Quantize one network with both tools in every way; return the rows and the versions of the other tool."""
    reference, spec = export_with_own_classes(model)
    calibration, validation, targets_N = read_photos(photos, spec)
    ready = make_ready(reference)
    means = input_means(ready, in_batches(calibration, 8))
    for name, recipe in OURS.items():
        if recipe is not None:
            batches = partial(in_batches, calibration, 8)
            ranges = measure_ranges(ready, batches(), average=recipe.ranges == "average")
            if recipe.ranges in ("percentile", "mse"):
                ranges = collect(ready, batches(), ranges).ranges(recipe.ranges)
        data = reference if recipe is None else quantize(ready, ranges, recipe, means)
        (folder / f"{name}.onnx").write_bytes(data)
    np.save(folder / "calibration.npy", calibration)
    np.save(folder / "validation.npy", validation)
    command = [python, Path(__file__).with_name("int8_rivals_nncf.py"), folder]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=sys.stderr)
    others = json.loads((folder / "others.json").read_text())
    answers = {name: Outputs(*np.load(folder / f"{name}.npz").values()) for name in others["p50_ms"]}
    rows = []
    for name, observed in answers.items():
        ms, size = others["p50_ms"][name], others["bytes"][name]
        row = {"model": model, "variant": name} | compare_variant(answers["float32"], observed, targets_N)
        row |= {"size_ratio": size / len(reference), "p50_ms": ms, "time_ratio": ms / others["p50_ms"]["float32"]}
        rows.append(row | {"seconds_to_quantize": others["seconds"].get(name)})
        show(rows[-1])
    return rows, others["versions"]


if __name__ == "__main__":
    main()
