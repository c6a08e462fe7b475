"""One of two cores: which concurrency plan edgeline chooses, and its requests per second compared with the peers'.

The server and its children may only run on core 0; the load comes from the other core. With `--cgroup` they may run on all
cores, but for half of the time, as in a container (needs permission to create a control group with a CPU quota).
"""

import os
import statistics
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
from harness import arguments_of, artifact, bare, load, photo, report, setting, versions, workspace

GROUP = "edgeline-benchmark"
ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


def main() -> None:
    servers = ["edgeline-calibrated", "fastapi:RUNNERS=1", "litserve:RUNNERS=1", "bentoml:RUNNERS=1", "mlserver:RUNNERS=1"]
    parser = arguments_of(__doc__, servers=servers)
    parser.add_argument("--cgroup", action="store_true", help="limit by a CPU quota instead of one core")
    arguments = parser.parse_args()
    enter = make_group() if arguments.cgroup else None
    prefix: tuple[str, ...] = ("sh", "-c", f'echo $$ > {enter}; exec "$@"', "sh") if enter else ("taskset", "-c", "0")
    plain = harness.start
    harness.start = lambda server: plain(server, prefix)  # type: ignore[assignment]
    os.sched_setaffinity(0, {1} if not enter else os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {}
    chosen: dict[str, Any] = {}
    with workspace(arguments.environment) as folder:
        model, image = artifact(arguments.artifact), photo(arguments.photo, folder)
        settings = [setting(name, model, folder) for name in arguments.servers]
        with harness.all_started(settings, image) as running:
            for number in range(arguments.rounds):
                rate = bare(model, image, seconds=arguments.seconds, threads=1, prefix=prefix)["rate"]
                rates.setdefault("bare", []).append(rate)
                for name, server in running.items():
                    with harness.turn(server):
                        rates.setdefault(name, []).append(
                            load(server.url, image, connections=16, seconds=arguments.seconds)["rate"]
                        )
                        if name.startswith("edgeline") and number == 0:
                            chosen[name] = plan_of(server.url.removesuffix("/predict"))
                rates_text = ", ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items())
                print(f"  round {number + 1} (load {os.getloadavg()[0]:.1f}): {rates_text}", flush=True)
        peer_versions = versions(arguments.servers, folder)
    ratios = {name: harness.median_ratio(rates[arguments.servers[0]], values) for name, values in rates.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    report("quota", quota=bool(enter), peers=peer_versions, chosen=chosen, medians=medians, ratios=ratios)


def plan_of(url: str) -> dict[str, float]:
    """Return a server's workers and threads, from its metrics."""
    lines = urllib.request.urlopen(url + "/metrics", timeout=30).read().decode().splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("edgeline_runner"))
    return {name: float(value) for name, value in found.items()}


def make_group() -> Path:
    """Create a control group with one core's time; return the file to which processes are added."""
    make: list[Callable[[], Path]] = [_version_1, *(lambda root=root: _version_2(root) for root in ROOTS)]
    for attempt in make:
        try:
            return attempt()
        except OSError:
            continue
    raise SystemExit("cannot create a control group with a CPU quota; run without --cgroup")


def _version_1() -> Path:
    folder = ROOTS[0] / "cpu" / GROUP
    folder.mkdir(exist_ok=True)
    (folder / "cpu.cfs_period_us").write_text("100000")
    (folder / "cpu.cfs_quota_us").write_text("100000")
    return folder / "cgroup.procs"


def _version_2(root: Path) -> Path:
    folder = root / GROUP
    folder.mkdir(exist_ok=True)
    (folder / "cpu.max").write_text("100000 100000")
    return folder / "cgroup.procs"


if __name__ == "__main__":
    main()
