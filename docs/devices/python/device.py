"""Verify an artifact on this machine, then classify photos; needs numpy, pillow and onnxruntime, but not edgeline.

python device.py FOLDER VARIANT [PHOTO...]
"""

import hashlib
import io
import json
import math
import os
import platform
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import
import onnxruntime

MAX_BYTES, MAX_PIXELS = 16 * 2**20, 50_000_000
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def must(holds: bool, what: str) -> None:
    """Stop with a message unless a condition holds."""
    if not holds:
        sys.exit(what)


def read_manifest(folder: Path) -> dict:
    """Read an artifact's manifest and compare every file with it before it is parsed."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    must(manifest["schema"] == "edgeline.artifact/1", "another schema of artifact")
    for entry in manifest["files"]:
        digest = hashlib.sha256((folder / entry["path"]).read_bytes()).hexdigest()
        must(digest == entry["sha256"], f"{entry['path']} is not what the manifest names")
    return manifest


def crop_box(width: int, height: int, spec: dict) -> tuple[float, float, float, float]:
    """The centered rectangle of the model's aspect ratio, in whole pixels of an upright image: left, top, right, bottom."""
    scale = min(width / spec["width"], height / spec["height"]) * spec["crop_fraction"]
    across, down = max(1, round(spec["width"] * scale)), max(1, round(spec["height"] * scale))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def reduce(image: Image.Image, orientation: int, spec: dict) -> tuple[float, float, float, float] | None:
    """Decode a JPEG at 1/8, 1/4 or 1/2 if twice the model's input is left; the rectangle in the reduced image."""
    width, height = image.size[::-1] if orientation >= 5 else image.size
    left, top, right, bottom = crop_box(width, height, spec)
    times = min((right - left) // spec["width"], (bottom - top) // spec["height"])
    scale = next((s for s in (8, 4, 2) if times >= 2 * s), 1)
    if scale == 1 or spec.get("jpeg_decoding", "full") == "full":
        return None
    image.draft(None, (image.width // scale, image.height // scale))
    x = -width % scale if orientation in (2, 3, 6, 7) else 0  # the last column or row is padded to a whole pixel
    y = -height % scale if orientation in (3, 4, 7, 8) else 0
    return (left + x) / scale, (top + y) / scale, (right + x) / scale, (bottom + y) / scale


def without_texts(png: bytes) -> bytes:
    """Keep what determines the pixels and the orientation of a PNG; Pillow rejects large or damaged texts and profiles."""
    kept, at = [png[:8]], 8
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        if kind[:1].isupper() or kind in (b"tRNS", b"eXIf"):
            kept.append(png[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept)


def decode(data: bytes, spec: dict) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Decode an image file to upright 8-bit RGB; also the rectangle that the model sees."""
    must(len(data) <= MAX_BYTES, "too many bytes")
    if data.startswith(b"\x89PNG"):
        data = without_texts(data)
    image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF", "BMP"))
    must(image.width * image.height <= MAX_PIXELS, "too many pixels")
    box = None
    if image.format in ("JPEG", "MPO"):
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        box = reduce(image, orientation if orientation in UPRIGHT else 1, spec)
    image.load()
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # alpha that is zero everywhere was never written
    turn = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    if turn is not None:
        info, image = image.info, image.transpose(turn)
        image.info = info  # holds the transparency of palette images
    return rgb_of(image, spec["background"]), box or crop_box(image.width, image.height, spec)


def rgb_of(image: Image.Image, background: list[int]) -> Image.Image:
    """Convert an image to 8-bit RGB."""
    if image.mode.startswith("I;16"):
        gray = np.asarray(image, dtype=np.uint16).astype(np.uint32)
        return Image.fromarray(((gray + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def pixels_of(data: bytes, spec: dict) -> np.ndarray:
    """The model's input for an image file: uint8 (height, width, 3)."""
    picture, (left, top, right, bottom) = decode(data, spec)
    x, y = math.floor(left), math.floor(top)
    cut = picture.crop((x, y, math.ceil(right), math.ceil(bottom)))
    box = (left - x, top - y, right - x, bottom - y)
    return np.asarray(cut.resize((spec["width"], spec["height"]), Image.Resampling[spec["interpolation"].upper()], box))


def load(folder: Path, manifest: dict, variant: str) -> onnxruntime.InferenceSession:
    """Load a variant of the artifact, with the settings that it was verified with."""
    files = {v["name"]: v["file"] for v in manifest["variants"] if v["format"] in ("onnx", "ort")}
    must(variant in files, f"no variant {variant}; there are {', '.join(files)}")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("optimization.disable_specified_optimizers", "WeightBiasQuantization")
    if platform.machine() in ("x86_64", "AMD64"):  # without VNNI, int8 products saturate without this setting
        cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        if not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(cpuinfo.split()):
            options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession((folder / files[variant]).read_bytes(), options, providers=["CPUExecutionProvider"])


def answer(session: onnxruntime.InferenceSession, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities and logits of one image."""
    [probabilities], [logits] = session.run(["probabilities", "logits"], {"image": pixels[None]})
    return probabilities, logits


def verify(folder: Path, manifest: dict, session: onnxruntime.InferenceSession, variant: str) -> None:
    """Check the golden samples on this machine."""
    golden = json.loads((folder / "golden" / "golden.json").read_bytes())
    own = golden.get("variants", {}).get(variant)
    tolerance = (own or golden)["tolerance"]
    logit_tolerance = (own or golden).get("logit_tolerance", tolerance)
    for sample in golden["samples"]:
        answers = sample["variants"][variant] if own else sample
        pixels = pixels_of((folder / sample["file"]).read_bytes(), manifest["preprocess"])
        stored = np.asarray(Image.open(folder / sample["pixels"]))
        off = np.abs(pixels.astype(int) - stored).mean()
        must(off <= golden["pixel_tolerance"], f"{sample['file']}: other pixels (by {off:.2g}); decoder or resize differ")
        off = np.abs(answer(session, pixels)[0] - answers["probabilities"]).max()
        must(off <= tolerance, f"{sample['file']}: other probabilities (by {off:.2g}) from the same pixels")
        best = manifest["labels"][int(np.argmax(sample["probabilities"]))]
        must(best == sample["label"], f"{sample['file']}: the labels are not in the model's order")
        largest = max(1, np.abs(answers["logits"]).max())
        off = np.abs(answer(session, stored)[1] - answers["logits"]).max() / largest
        must(off <= logit_tolerance, f"{sample['file']}: other logits (by {off:.2g}) from the stored pixels")
        print(sample["file"], "holds")


def main(folder: str, variant: str, *photos: str) -> None:
    """Check the golden samples, then print the best class of each photo."""
    manifest = read_manifest(Path(folder))
    session = load(Path(folder), manifest, variant)
    verify(Path(folder), manifest, session, variant)
    for photo in photos:
        probabilities, _ = answer(session, pixels_of(Path(photo).read_bytes(), manifest["preprocess"]))
        best = int(probabilities.argmax())
        print(photo, manifest["labels"][best], f"{probabilities[best]:.6g}", sep="\t")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except OSError as error:  # no such file, or Pillow cannot decode it
        sys.exit(str(error))
