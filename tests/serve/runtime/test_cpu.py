"""Usable cores by affinity and cgroup quota, and int8 multiplication without saturation."""

import os
import platform
from pathlib import Path

import pytest

from edgeline.serve.runtime.cpu import multiplies_exactly, usable_cores

CPUS = 8
QUOTAS: dict[str, tuple[dict[str, str], int]] = {
    "no cgroup": ({}, CPUS),
    "v2 unlimited": ({"cpu.max": "max 100000\n"}, CPUS),
    "v2 half a CPU": ({"cpu.max": "50000 100000\n"}, 1),
    "v2 one CPU": ({"cpu.max": "100000 100000\n"}, 1),
    "v2 one and a half": ({"cpu.max": "150000 100000\n"}, 2),
    "v2 more than there are": ({"cpu.max": "6400000 100000\n"}, CPUS),
    "v1 unlimited": ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CPUS),
    "v1 two CPUs": ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    "v1 of another period": ({"cpu/cpu.cfs_quota_us": "25000\n", "cpu/cpu.cfs_period_us": "10000\n"}, 3),
}


@pytest.mark.parametrize(("files", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_cores_are_limited_by_the_cgroup_quota(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CPUS)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == expected


SERVICES: dict[str, tuple[str, dict[str, str], int]] = {
    "a service's own, v2": ("0::/system.slice/edge.service", {"system.slice/edge.service/cpu.max": "100000 100000\n"}, 1),
    "the slice around it, v2": (
        "0::/system.slice/edge.service",
        {"system.slice/edge.service/cpu.max": "max 100000\n", "system.slice/cpu.max": "200000 100000\n"},
        2,
    ),
    "its own, v1": (
        "5:memory:/x\n4:cpu,cpuacct:/edge",
        {"cpu/edge/cpu.cfs_quota_us": "150000\n", "cpu/edge/cpu.cfs_period_us": "100000\n"},
        2,
    ),
    "a path that is not visible in a container": ("0::/docker/1234", {"cpu.max": "100000 100000\n"}, 1),
    "an unreadable file": ("\n???", {}, CPUS),
}


@pytest.mark.parametrize(("groups", "files", "expected"), SERVICES.values(), ids=SERVICES)
def test_cores_are_limited_by_the_quotas_of_the_process_own_groups(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CPUS)))
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path, tmp_path / "groups") == expected


def test_cores_are_limited_by_the_affinity(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, allowed)


CPUINFOS = {
    "with VNNI": ("flags\t\t: fpu sse avx2 avx512_vnni\n", True),
    "with the 256-bit VNNI": ("processor : 0\nflags : avx2 avx_vnni\n", True),
    "without": ("flags\t\t: fpu sse avx2 avx512f\n", False),
    "without flags": ("processor : 0\n", False),
}


@pytest.mark.parametrize(("text", "exactly"), CPUINFOS.values(), ids=CPUINFOS)
def test_x86_multiplies_int8_exactly_only_with_the_right_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, exactly: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(text)
    assert multiplies_exactly(tmp_path / "cpuinfo") is exactly


def test_arm_always_multiplies_int8_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert multiplies_exactly(tmp_path / "absent")
