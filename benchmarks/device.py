"""What device mode costs: watching a folder, drift statistics, JPEGs in a stream. Reads memory from /proc.

    python benchmarks/device.py [--seconds 30]

Watching is measured in a separate process, after its first look at the folder: once with an unchanged folder, then with a new
file every second. The last line is one JSON document.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import report
from PIL import Image

from edgeline.serve.drift.collector import Drift, Origin, origin_of
from edgeline.serve.inputs.mjpeg import from_mjpeg

WATCH = """
import resource, sys, time
from pathlib import Path
from edgeline.serve.inputs.shutdown import stop_on_signals
from edgeline.serve.inputs.folder_watcher import WatchOptions, watch


def used():
    # Not ru_maxrss, which a process inherits from its parent.
    now = resource.getrusage(resource.RUSAGE_SELF)
    held = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return now.ru_utime + now.ru_stime, int(held)


class For:
    # Ends a watch after some seconds, and measures from its first pause on.
    def __init__(self, stop, seconds):
        self.requested, self.seconds, self.stop, self.begun = False, seconds, stop, None

    def wait(self, wait_s):
        if self.begun is None:
            self.begun, self.ends = used(), time.monotonic() + self.seconds
            print("watching", flush=True)
        self.requested = self.stop.wait(wait_s) or time.monotonic() > self.ends


_, before_kb = used()
with stop_on_signals() as stop:
    watching = For(stop, float(sys.argv[2]))
    found = sum(1 for _ in watch(Path(sys.argv[1]), WatchOptions(), watching, print))
print(found, used()[0] - watching.begun[0], used()[1] - before_kb)
"""


def watching(files: int, seconds: float, *, arriving: bool) -> dict[str, float]:
    """Return CPU and memory of watching a folder with this many files."""
    with tempfile.TemporaryDirectory() as folder:
        for index in range(files):
            open(os.path.join(folder, f"{index:08d}.jpg"), "w").close()
        command = [sys.executable, "-c", WATCH, folder, str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            process.stdout.readline()
            while arriving and process.poll() is None:
                Path(folder, f"new{time.monotonic_ns()}.jpg").write_bytes(b"x")
                time.sleep(1)
            found, cpu_s, grown_kb = process.stdout.read().split()
    return {
        "files": files,
        "arriving_a_second": int(arriving),
        "found": int(found),
        "cpu_percent": round(100 * float(cpu_s) / seconds, 3),
        "peak_grown_mb": round(int(grown_kb) / 1024, 1),
    }


def microseconds(function: Callable[[], object], count: int) -> float:
    """Return microseconds of one call, the best of five rounds."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            function()
        rounds.append(1e6 * (time.perf_counter() - start) / count)
    return round(min(rounds), 2)


def observing(classes: int) -> float:
    """Return microseconds per recorded image, including all statistics."""
    drift = Drift(tuple(map(str, range(classes))), 224, 224, model="m", version=1, manifest_sha256=None)
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    answer = chance.dirichlet(np.ones(classes)).astype(np.float32)
    return microseconds(lambda: drift.observe(pixels, answer, Origin(640, 480, 9999)), 6400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    seconds = parser.parse_args().seconds
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(file, "JPEG")
    jpeg = file.getvalue()
    stream = jpeg * 100
    pieces = [stream[at : at + 65536] for at in range(0, len(stream), 65536)]
    cases = ((10, False), (100_000, False), (100_000, True))
    report(
        "device",
        watch=[watching(files, seconds, arriving=arriving) for files, arriving in cases],
        drift_us={f"{classes} classes": observing(classes) for classes in (5, 1000)},
        origin_us=microseconds(lambda: origin_of(jpeg), 1000),
        mjpeg_us_a_frame=round(microseconds(lambda: sum(1 for _ in from_mjpeg(iter(pieces), 2**24)), 5) / 100, 2),
        mjpeg_frame_bytes=len(jpeg),
    )


if __name__ == "__main__":
    main()
