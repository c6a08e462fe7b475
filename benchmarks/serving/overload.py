"""Ten times the load that a server can handle, and clients that stall.

First the peak is measured, then ten times that rate is sent for `--seconds`: how many requests succeed, their latency compared
with the deadline, how fast the others are rejected, the memory, and whether the server is as fast as before right afterwards.
The load generator shares the two cores with the server; its own use of them is in the result (`generator_cores`).

`--stalled N` measures something else instead: normal clients at half the peak, in turn with and without N stalled connections,
half of them in the head and half in the body. A stalled connection that the server closes is opened again at once.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from harness import HERE, Running, arguments_of, artifact, generate, memory_mb, photo, report, setting, start, workspace


def main() -> None:
    parser = arguments_of(__doc__, seconds=60.0, servers=["edgeline"])
    parser.add_argument("--times", type=float, default=10.0, help="the rate, as a multiple of the peak")
    parser.add_argument("--deadline", type=float, default=1.0, help="edgeline's request deadline, in seconds")
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--stalled", type=int, default=0)
    arguments = parser.parse_args()
    rows = {}
    with workspace(arguments.environment) as folder:
        model, image = artifact(arguments.artifact), photo(arguments.photo, folder)
        for name in arguments.servers:
            more = ("--deadline", str(arguments.deadline)) if name.startswith("edgeline") else ()
            server = start(setting(name, model, folder, more=more))
            try:
                generate(server.url, image, connections=8, seconds=1.0)
                rows[name] = stall(server, image, arguments) if arguments.stalled else overload(server, image, arguments)
            finally:
                server.stop()
            print(f"  {name}: {json.dumps(rows[name])}", flush=True)
    report("overload", deadline_s=arguments.deadline, stalled=arguments.stalled, rows=rows)


def overload(server: Running, image: Path, arguments: Any) -> dict[str, Any]:
    """Measure the peak, the overload, and the recovery."""
    peak = statistics.median(generate(server.url, image, connections=16, seconds=3)["rate"] for _ in range(3))
    before, over, max_mb = memory_mb(server.tree()), threading.Event(), 0.0

    def watch() -> None:
        nonlocal max_mb
        while not over.wait(0.5):
            max_mb = max(max_mb, memory_mb(server.tree())["rss"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    rate = peak * arguments.times
    print(f"  {server.name}: peak {peak:.1f} a second; now {rate:.0f} for {arguments.seconds:g} s", flush=True)
    got = generate(server.url, image, rate=rate, connections=arguments.connections, seconds=arguments.seconds)
    over.set()
    watcher.join()
    begun = time.perf_counter()
    first = generate(server.url, image, connections=1, seconds=0.5)
    after = generate(server.url, image, connections=16, seconds=3)["rate"]
    left = 1 - got["generator_cores"] / len(os.sched_getaffinity(0))
    return {
        "peak": peak,
        "goodput": got["rate"],
        "goodput_share": got["rate"] / peak,
        "goodput_share_of_the_cores_left": got["rate"] / (peak * left),
        "slowest_second_share": got["slowest_second"] / peak,
        "offered": rate,
        "sent": sum(got["statuses"].values()) / arguments.seconds,
        **got,
        "rss_before_mb": before["rss"],
        "rss_max_mb": max_mb,
        "rss_after_mb": memory_mb(server.tree())["rss"],
        "first_after_ms": first.get("p50_ms"),
        "after_share": after / peak,
        "recovered_within_s": time.perf_counter() - begun,
    }


def stall(server: Running, image: Path, arguments: Any) -> dict[str, Any]:
    """Measure normal clients alone and among stalled ones, in turn."""
    peak = generate(server.url, image, connections=16, seconds=3)["rate"]
    rows: dict[str, list[float]] = {}
    options = {"rate": peak / 2, "connections": 16, "seconds": min(arguments.seconds, 10.0)}
    for number in range(arguments.rounds):
        for kind in ("alone", "among") if number % 2 == 0 else ("among", "alone"):
            child = None
            if kind == "among":
                child = subprocess.Popen(
                    [sys.executable, str(HERE / "stall.py"), server.url, str(arguments.stalled)], stdout=subprocess.PIPE
                )
                assert child.stdout is not None
                child.stdout.readline()
            got = generate(server.url, image, **options)
            if child is not None:
                child.terminate()
                child.wait()
            for key in ("p50_ms", "p99_ms", "errors"):
                rows.setdefault(f"{kind}_{key}", []).append(got[key])
        print(f"  round {number + 1}: p99 alone {rows['alone_p99_ms'][-1]:.1f} ms, among {rows['among_p99_ms'][-1]:.1f} ms")
    ratio = statistics.median(a / b for a, b in zip(rows["among_p99_ms"], rows["alone_p99_ms"], strict=True))
    return {"peak": peak, "p99_ratio": ratio, **{key: statistics.median(values) for key, values in rows.items()}}


if __name__ == "__main__":
    main()
