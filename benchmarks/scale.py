"""`prepare` on ten and a hundred thousand images, and listing and hashing alone on a million files: time and memory by image.

Every measurement is a process of its own. The images are generated: 64 x 64 pixels, each different.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import report

CLASSES = 10
IN_FOLDER = 100
SIZE, BLOCKS = 64, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="numbers of images to prepare")
    parser.add_argument("--files", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="numbers of files to hash")
    parser.add_argument("--folder", type=Path, help="for the generated files, which are removed; by default a temporary one")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, folder = arguments.measure
        print(json.dumps(measure(what, Path(folder))))
        return
    rows = []
    for what, counts in (("prepare", arguments.images), ("hash", arguments.files)):
        for count in counts:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
                write_files(Path(temporary, "data"), count, images=what == "prepare")
                command = [sys.executable, __file__, "--measure", what, temporary]
                ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = {"what": what, "files": count, **json.loads(ended.stdout.splitlines()[-1])}
            print(
                f"{what:8} {count:9,}: {row['seconds']:7.1f} s, {1e3 * row['cpu_s'] / count:6.3f} ms of CPU a file, peak "
                f"{row['peak_mb']:6.0f} MB, {1e3 * (row['peak_mb'] - row['start_mb']) / count:6.2f} kB a file",
                flush=True,
            )
            rows.append(row)
    report("scale", rows=rows)


def write_files(folder: Path, count: int, *, images: bool) -> None:
    """Write files in class folders, a hundred in each folder below them."""
    for start in range(0, count, IN_FOLDER):
        below = folder / f"class{start // IN_FOLDER % CLASSES}" / f"{start // IN_FOLDER:05}"
        below.mkdir(parents=True)
        for index in range(start, min(count, start + IN_FOLDER)):
            if images:
                write_image(below / f"{index:07}.jpg", index)
            else:
                (below / f"{index:07}.jpg").write_text(f"{index}")


def write_image(path: Path, index: int) -> None:
    """Blocks of random colors, smoothly enlarged: no noise, and no two are similar."""
    from PIL import Image

    blocks = Image.frombytes("RGB", (BLOCKS, BLOCKS), random.Random(index).randbytes(3 * BLOCKS * BLOCKS))
    blocks.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path, "JPEG", quality=90)


def measure(what: str, folder: Path) -> dict[str, float]:
    """Prepare or hash the files of a folder in this process."""
    from edgeline.pipeline.config import load_config
    from edgeline.pipeline.data.prepare import prepare
    from edgeline.pipeline.data.validation import hash_files
    from edgeline.pipeline.sources.discovery import find_source
    from edgeline.serve.preprocess import Limits

    config = load_config(None, ["prepare.layout=top"], data=str(folder / "data"), artifacts=str(folder / "artifacts"))
    start_mb, cpu, start = peak_mb(), time.process_time(), time.perf_counter()
    figures = {}
    if what == "prepare":
        prepare(config)
    else:
        source = find_source(config.data, Path(config.artifacts), config.prepare)
        figures["listing_s"] = time.perf_counter() - start
        hash_files([source.path(file) for file in source.files], Limits())
    seconds, used = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu_s": used, "start_mb": start_mb, "peak_mb": peak_mb(), **figures}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
