"""The part of `exports.py` that runs in the environment of ultralytics, without edgeline. Each job writes `<job>.json`.

`train` makes a checkpoint (in one epoch: any weights will do), `export` is the part that is timed, `answer` runs the exported
files, `nan` exports a checkpoint with one weight that is NaN.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from ultralytics import YOLO
from ultralytics.data.augment import classify_transforms

SIZE = 224
# MobileNetV2 without its last convolution, which ultralytics' classifier has instead, with SiLU in place of ReLU6.
MOBILENET_V2 = """
nc: 1000
backbone:
  - [-1, 1, TorchVision, [320, mobilenet_v2, IMAGENET1K_V1, True, 2]]
head:
  - [-1, 1, Classify, [nc]]
"""


def train(folder: Path, model: str) -> dict:
    name = f"{model}.yaml"
    if model == "mobilenet_v2":
        name = str(folder / "mobilenet_v2-cls.yaml")
        Path(name).write_text(MOBILENET_V2)
    yolo = YOLO(name, task="classify")
    quiet = {"plots": False, "verbose": False, "workers": 0, "device": "cpu", "amp": False, "seed": 0}
    yolo.train(data=str(folder / "photos"), epochs=1, imgsz=SIZE, project=str(folder / "runs"), exist_ok=True, **quiet)
    Path(yolo.trainer.last).rename(folder / "model.pt")
    return {}


def export(folder: Path, model: str, openvino: bool) -> dict:
    """Export and time; float32 is renamed first, because the int8 export writes a file of that name and deletes it."""
    seconds = {}
    int8 = {"quantize": 8, "data": str(folder / "photos"), "split": "val"}
    jobs = {"ONNX float32": {"format": "onnx", "dynamic": True}, "ONNX int8": {"format": "onnx", "dynamic": True} | int8}
    jobs |= {"OpenVINO int8": {"format": "openvino"} | int8} if openvino else {}
    for name, options in jobs.items():
        start = time.monotonic()
        made = Path(YOLO(folder / "model.pt").export(imgsz=SIZE, **options))
        if name == "ONNX float32":
            made = made.rename(folder / "float32.onnx")
        seconds[name] = time.monotonic() - start
    versions = {name: version(name) for name in ("ultralytics", "torch", "onnxruntime")}
    return {"seconds": seconds, "files": list(jobs), "versions": versions}


def answer(folder: Path, model: str) -> dict:
    """Run both ONNX files over the held-out photos, and time them in turn on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    files = {"float32": folder / "float32.onnx", "int8": folder / "model_int8.onnx"}
    sessions = {name: onnxruntime.InferenceSession(path, options) for name, path in files.items()}
    transform = classify_transforms(SIZE)
    labels = sorted(path.name for path in (folder / "photos" / "test").iterdir())
    paths = sorted((folder / "photos" / "test").glob("*/*"))
    images = [transform(Image.open(path).convert("RGB"))[None].numpy() for path in paths]
    found = {name: np.concatenate([s.run(None, {"images": image})[0] for image in images]) for name, s in sessions.items()}
    np.savez(folder / "answers.npz", targets=[labels.index(path.parent.name) for path in paths], **found)
    times = {name: [] for name in sessions}
    for turn in range(-3, 40):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"images": images[0]})
            times[name] += [time.perf_counter() - start] * (turn >= 0)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        YOLO(folder / "model.pt").model.float().eval()(torch.zeros(1, 3, SIZE, SIZE))
    ratio = float(np.median(times["int8"]) / np.median(times["float32"]))
    return {"time_ratio": ratio, "multiply_adds": counter.get_total_flops() // 2, "images": len(images)}


def nan(folder: Path, model: str) -> dict:
    yolo = YOLO(folder / "model.pt")
    with torch.no_grad():
        next(weight for weight in yolo.model.parameters() if weight.dim() == 4).view(-1)[0] = torch.nan
    yolo.save(folder / "nan.pt")
    try:
        YOLO(folder / "nan.pt").export(imgsz=SIZE, format="onnx")
    except Exception as error:  # any error counts as a rejection
        return {"outcome": f"rejected: {error}"}
    return {"outcome": "exported without an error"}


def main() -> None:
    job, folder, model = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    found = export(folder, model, "--openvino" in sys.argv) if job == "export" else globals()[job](folder, model)
    (folder / f"{job}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
