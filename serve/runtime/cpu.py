"""The processors of this machine: how many may be used, and what they can do."""

import contextlib
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUP = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")
CPUINFO = Path("/proc/cpuinfo")

INTEGER_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""x86 processors with any of these multiply int8 without saturating."""


def usable_cores(cgroup: Path = CGROUP, groups: Path = GROUPS) -> int:
    """The number of useful threads: CPUs that this process may run on, limited by its cgroups' quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _own_groups(cgroup, groups) if (quota := _quota(folder)) is not None]
    return max(1, min([allowed, *map(math.ceil, quotas)]))


def multiplies_exactly(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this CPU multiplies int8 without saturating: every ARM does, and x86 with VNNI or AMX."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return True
    # Unknown flags count as none: better slow than wrong.
    return not INTEGER_FLAGS.isdisjoint(read_cpuinfo(cpuinfo).get("flags", "").split())


def read_cpuinfo(path: Path = CPUINFO) -> dict[str, str]:
    """The fields of the first processor in a /proc/cpuinfo file; empty if it cannot be read."""
    try:
        lines = path.read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _own_groups(cgroup: Path, groups: Path) -> Iterator[Path]:
    """This process's control groups and all their parents, of cgroup v2 and of v1's `cpu` controller.

    In a container its own group appears as the root. A service under systemd finds its group in /proc.
    """
    own = {"": "", "cpu": ""}
    with contextlib.suppress(OSError, ValueError):
        for line in groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
    for root, path in ((cgroup, own[""]), (cgroup / "cpu", own["cpu"])):
        inner = PurePosixPath(path)
        yield from (root / each for each in (inner, *inner.parents))


def _quota(group: Path) -> float | None:
    """The CPU time per period of one control group, in CPUs (v2's cpu.max or v1's cpu.cfs_quota_us); None if unlimited."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
