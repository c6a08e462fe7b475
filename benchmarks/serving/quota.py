"""One of two cores: which threads edgeline chooses, and its requests a second beside the peers' there.

The server and all it starts may only run on core 0; the load comes from the other. With `--cgroup` it may run on all cores, but
for half of the time (where a control group with a CPU quota can be made), which is what a container gets.
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
    parser.add_argument("--cgroup", action="store_true", help="a quota instead of a core")
    arguments = parser.parse_args()
    enter = make_group() if arguments.cgroup else None
    prefix: tuple[str, ...] = ("sh", "-c", f'echo $$ > {enter}; exec "$@"', "sh") if enter else ("taskset", "-c", "0")
    plain = harness.start
    harness.start = lambda wanted: plain(wanted, prefix)  # type: ignore[assignment]
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
                said = ", ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items())
                print(f"  round {number + 1} (load {os.getloadavg()[0]:.1f}): {said}", flush=True)
        told = versions(arguments.servers, folder)
    ratios = {name: harness.median_ratio(rates[arguments.servers[0]], values) for name, values in rates.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    report("quota", quota=bool(enter), peers=told, chosen=chosen, medians=medians, ratios=ratios)


def plan_of(url: str) -> dict[str, float]:
    """The runners and threads that a server has, from its metrics."""
    lines = urllib.request.urlopen(url + "/metrics", timeout=30).read().decode().splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("edgeline_runner"))
    return {name: float(value) for name, value in found.items()}


def make_group() -> Path:
    """A control group with one core's time; the file that takes a process into it."""
    make: list[Callable[[], Path]] = [_version_1, *(lambda root=root: _version_2(root) for root in ROOTS)]
    for attempt in make:
        try:
            return attempt()
        except OSError:
            continue
    raise SystemExit("no control group with a CPU quota can be made here; leave --cgroup out")


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
