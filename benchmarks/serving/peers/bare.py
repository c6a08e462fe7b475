"""No server: threads with one session that decode, preprocess, run and rank one image in a loop.

    python bare.py PHOTO SECONDS THREADS

prints one line of JSON: images per second, and the median milliseconds of one.
"""

import json
import statistics
import sys
import threading
import time
from pathlib import Path

from model import Model

photo, seconds, count = Path(sys.argv[1]).read_bytes(), float(sys.argv[2]), int(sys.argv[3])
model = Model()
spent: list[list[float]] = [[] for _ in range(count)]


def work(mine: list[float], until: float) -> None:
    while (begun := time.perf_counter()) < until:
        json.dumps(model.predict(photo))
        mine.append(time.perf_counter() - begun)


work([], time.perf_counter() + 0.5)
begun = time.perf_counter()
threads = [threading.Thread(target=work, args=(mine, begun + seconds)) for mine in spent]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
wall_s, every = time.perf_counter() - begun, sorted(sum(spent, []))
p99 = every[int(len(every) * 0.99)]
print(json.dumps({"rate": len(every) / wall_s, "p50_ms": statistics.median(every) * 1e3, "p99_ms": p99 * 1e3, "errors": 0}))
