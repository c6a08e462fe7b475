"""The engines on the work of `prepare` (read, decode, hash): a Dask cluster of two workers, two processes, and two threads.

Measured in turns on the same shards; all must give the same bytes. `processes` is `ProcessPoolExecutor` as it is,
`local` is edgeline's engine for one machine.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from common import photos, report
from distributed import LocalCluster

from edgeline.pipeline.data.validation import DECODED, _decode_shard, hash_files
from edgeline.pipeline.engine_config import EngineConfig
from edgeline.pipeline.engines.map_shards import divide, map_shards
from edgeline.serve.preprocess import Limits

WORKERS = 2
Shards = list[list[tuple[str, str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos("flowers17"), help="a folder of images")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    limits = Limits()
    paths = [str(path.resolve()) for path in sorted(Path(arguments.data).rglob("*.jpg"))][: arguments.images]
    hashes = hash_files(paths, limits)
    shards = [list(shard) for shard in divide([(str(hash), path) for hash, path in zip(hashes, paths, strict=True)], DECODED)]
    work = partial(_decode_shard, limits=limits)
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,  # type: ignore[no-untyped-call]
        ProcessPoolExecutor(WORKERS) as pool,
    ):
        dask = EngineConfig(kind="dask", address=cluster.scheduler_address)
        ways: dict[str, Callable[[], list[list[bytes]]]] = {
            "processes": lambda: list(pool.map(work, shards)),
            "local": lambda: list(map_shards(work, shards, EngineConfig(workers=WORKERS))),
            "dask": lambda: list(map_shards(work, shards, dask)),
        }
        expected = ways["processes"]()
        same = {name: way() == expected for name, way in ways.items()}  # also warms them up
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: statistics.median(base / own for base, own in zip(seconds["processes"], values, strict=True))
        for name, values in seconds.items()
    }
    for name in ways:
        print(f"{name:10} {medians[name]:6.2f} s, throughput {ratios[name]:.2f} of two processes, same bytes: {same[name]}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report("engines", images=len(paths), shards=len(shards), seconds=seconds, ratios=ratios, same_bytes=same, peak_mb=peak)


if __name__ == "__main__":
    main()
