"""The part of `int8_rivals.py` that runs in the environment of OpenVINO and NNCF, without torch and `edgeline.export`.

Reads edgeline's ONNX files and the pixels from a folder, and writes every model's outputs, sizes and times to it.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import nncf
import numpy as np
import onnx
import openvino as ov

from edgeline.serve.runtime.session import create_session, load_onnxruntime

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

MIXED = {"preset": nncf.QuantizationPreset.MIXED}
WAYS = {
    "NNCF default": {},
    "NNCF mixed": MIXED,
    "NNCF mixed, full bias": MIXED | {"fast_bias_correction": False},
}
# float32 wherever a layer is not int8: on some processors OpenVINO's default is bfloat16.
OPTIONS = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
TIMED_RUNS = 100


def main() -> None:
    folder = Path(sys.argv[1])
    calibration, validation = np.load(folder / "calibration.npy"), np.load(folder / "validation.npy")
    dataset = nncf.Dataset([{"image": pixels_HW3[None]} for pixels_HW3 in calibration])
    # Converted, not only read: NNCF silently corrects no bias that is not folded into a constant.
    reference = ov.convert_model(folder / "float32.onnx")
    models: dict[str, Run] = {path.stem: in_onnxruntime(path) for path in sorted(folder.glob("*.onnx"))}
    sizes = {path.stem: path.stat().st_size for path in folder.glob("*.onnx")}
    seconds = {}
    made = {"OpenVINO float32": reference, "edgeline in OpenVINO": ov.convert_model(folder / "edgeline.onnx")}
    for name, options in WAYS.items():
        start = time.monotonic()
        made[name] = nncf.quantize(reference.clone(), dataset, subset_size=len(calibration), **options)
        seconds[name] = time.monotonic() - start
    for name, model in made.items():
        ov.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
        sizes[name] = sum((folder / f"{name}{suffix}").stat().st_size for suffix in (".xml", ".bin"))
        models[name] = in_openvino(ov.compile_model(model, "CPU", OPTIONS))
    start = time.monotonic()
    quantized = nncf.quantize(onnx.load(folder / "float32.onnx"), dataset, subset_size=len(calibration), **MIXED)
    name = "NNCF mixed in ONNX Runtime"
    seconds[name] = time.monotonic() - start
    onnx.save(quantized, folder / f"{name}.onnx")
    models[name], sizes[name] = in_onnxruntime(folder / f"{name}.onnx", plain=True), (folder / f"{name}.onnx").stat().st_size

    for name, run in models.items():
        probabilities, logits = zip(*(run(pixels_HW3[None]) for pixels_HW3 in validation), strict=True)
        np.savez(folder / f"{name}.npz", probabilities=np.concatenate(probabilities), logits=np.concatenate(logits))
    found = {"p50_ms": in_turn(models, validation[:1]), "bytes": sizes, "seconds": seconds}
    found["versions"] = {package: version(package) for package in ("openvino", "nncf", "onnxruntime")}
    (folder / "others.json").write_text(json.dumps(found))


def in_onnxruntime(path: Path, plain: bool = False) -> Run:
    """Return a function that runs a file with edgeline's settings, or with the runtime's defaults if `plain`."""
    session = create_session(path.read_bytes(), threads=1)
    if plain:
        options = load_onnxruntime().SessionOptions()
        options.intra_op_num_threads = 1
        session = load_onnxruntime().InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda pixels_1HW3: session.run(["probabilities", "logits"], {"image": pixels_1HW3})


def in_openvino(model: ov.CompiledModel) -> Run:
    request = model.create_infer_request()

    def run(pixels_1HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        request.infer({"image": pixels_1HW3}, share_inputs=True, share_outputs=False)
        return request.get_tensor("probabilities").data.copy(), request.get_tensor("logits").data.copy()

    return run


def in_turn(models: dict[str, Run], pixels_1HW3: np.ndarray) -> dict[str, float]:
    """Return median milliseconds of one image, measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(-5, TIMED_RUNS):
        for name, run in models.items():
            start = time.perf_counter()
            run(pixels_1HW3)
            times[name] += [time.perf_counter() - start] * (turn >= 0)
    return {name: float(np.median(seconds)) * 1e3 for name, seconds in times.items()}


if __name__ == "__main__":
    main()
