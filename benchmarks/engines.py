"""The engines on the work of `prepare` (read, decode, hash): a Dask cluster of two workers, two processes, and two threads.

Measured in turns on the same shards; all must give the same bytes. `processes` is `ProcessPoolExecutor` as it is,
`local` is edgeline's engine for one machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import psutil
from common import photos, report
from distributed import LocalCluster

from edgeline.pipeline.data.validation import DECODED, _decode_shard, hash_files
from edgeline.pipeline.engine_config import EngineConfig
from edgeline.pipeline.engines.map_shards import map_shards
from edgeline.serve.preprocess import Limits

WORKERS = 2
Shards = list[list[tuple[str, str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos("flowers17"), help="a folder of images")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    limits = Limits()
    paths = [str(path.resolve()) for path in sorted(Path(arguments.data).rglob("*.jpg"))][: arguments.images]
    hashes = hash_files(paths, limits)
    files = [(str(sha256), path) for sha256, path in zip(hashes, paths, strict=True)]
    shards: Shards = [files[start : start + DECODED] for start in range(0, len(files), DECODED)]
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
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                start, before = time.perf_counter(), cpu_seconds()
                way()
                seconds[name].append(time.perf_counter() - start)
                cpu[name].append(cpu_seconds() - before)
    by_wall, by_cpu = ratios(seconds), ratios(cpu)
    for name in ways:
        used = 1e3 * statistics.median(cpu[name]) / len(paths)
        print(
            f"{name:10} {statistics.median(seconds[name]):6.2f} s, {used:.2f} ms of CPU "
            f"an image; of two processes: throughput {by_wall[name]:.2f}, images a CPU second {by_cpu[name]:.2f}; same bytes: "
            f"{same[name]}"
        )
    report(
        "engines", images=len(paths), shards=len(shards), seconds=seconds, cpu=cpu, by_wall=by_wall, by_cpu=by_cpu, same=same
    )


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has started."""
    own = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in (own, *own.children(recursive=True)))


def ratios(values: dict[str, list[float]]) -> dict[str, float]:
    """What two processes take, divided by what each way takes: the median over the rounds."""
    base = values["processes"]
    return {name: statistics.median(b / v for b, v in zip(base, own, strict=True)) for name, own in values.items()}


if __name__ == "__main__":
    main()
