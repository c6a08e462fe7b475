"""Requests per second with photos of 12 megapixels, decoded at a fraction of their size and at full size.

Two artifacts that differ only in `preprocess.jpeg_decoding`, `scaled` and `full`, are served in turn. A photo of 4000 x 3000
pixels is made from a real one, with noise so that its file is as large as a phone's.
"""

import io
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
from harness import all_started, arguments_of, artifact, load, median_ratio, photo, report, setting, turn, workspace
from PIL import Image

WAYS = ("scaled", "full")


def main() -> None:
    arguments = arguments_of(__doc__, seconds=6.0).parse_args()
    with workspace(arguments.environment) as folder:
        model = artifact(arguments.artifact)
        image = enlarge(photo(arguments.photo, folder), folder / "photo-12mp.jpg")
        print(f"a photo of 4000 x 3000 pixels and {image.stat().st_size:,} bytes", flush=True)
        settings = []
        for way in WAYS:
            each = setting("edgeline", rescaled(model, way, folder / "rescaled" / way), folder)
            each.name = way
            settings.append(each)
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        with all_started(settings, image) as running:
            for number in range(arguments.rounds):
                for way in WAYS if number % 2 else WAYS[::-1]:
                    with turn(running[way]):
                        rates[way].append(load(running[way].url, image, connections=16, seconds=arguments.seconds)["rate"])
                print(f"  round {number + 1}: " + ", ".join(f"{way} {rates[way][-1]:.1f}" for way in WAYS), flush=True)
        size = image.stat().st_size
    medians = {way: statistics.median(values) for way, values in rates.items()}
    report(
        "photos", rounds=arguments.rounds, photo_bytes=size, medians=medians, ratio=median_ratio(rates["scaled"], rates["full"])
    )


def enlarge(path: Path, to: Path) -> Path:
    """Enlarge a photo to the size of a phone's, with a sensor's noise."""
    pixels_HW3 = np.asarray(Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC), dtype=np.int16)
    noise_HW3 = np.random.default_rng(0).normal(0, 4, pixels_HW3.shape).astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels_HW3 + noise_HW3, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88, subsampling=2)
    to.write_bytes(buffer.getvalue())
    return to


def rescaled(model: Path, way: str, to: Path) -> Path:
    """Copy an artifact, with another JPEG decoding."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(model, to)
    path = to / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["preprocess"]["jpeg_decoding"] = way
    path.chmod(0o644)
    path.write_text(json.dumps(manifest))
    return to


if __name__ == "__main__":
    main()
