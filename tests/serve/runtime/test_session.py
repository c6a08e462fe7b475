"""The runtime's settings: threads that fit the machine, and silence."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.serve.errors import ArtifactError
from edgeline.serve.runtime import session as runtime
from edgeline.serve.runtime.session import (
    EXACT,
    SETTINGS,
    create_session,
    load_onnxruntime,
    multiplies_exactly,
    session_options,
    session_settings,
    usable_cores,
)

ROOT = Path(__file__).resolve().parents[3]
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
def test_threads_follow_the_cgroup_quota(
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
    "a path that is not seen from inside": ("0::/docker/1234", {"cpu.max": "100000 100000\n"}, 1),
    "nothing that is read": ("\n???", {}, CPUS),
}


@pytest.mark.parametrize(("groups", "files", "expected"), SERVICES.values(), ids=SERVICES)
def test_threads_follow_the_quota_of_the_group_that_the_process_is_in(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CPUS)))
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path, tmp_path / "groups") == expected


def test_a_session_keeps_no_second_copy_of_its_file(artifact_template: Path) -> None:
    model = (artifact_template / "model.onnx").read_bytes()
    before = sys.getrefcount(model)
    session = create_session(model, threads=1)
    assert (sys.getrefcount(model), len(session.get_inputs())) == (before, 1)


def test_threads_follow_the_affinity(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_session_has_the_settings_that_ship(artifact_template: Path) -> None:
    options = create_session((artifact_template / "model.onnx").read_bytes(), threads=3).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert SETTINGS["session.intra_op.allow_spinning"] == "0"
    assert {key: options.get_session_config_entry(key) for key in SETTINGS} == SETTINGS


CPUINFOS = {
    "with VNNI": ("flags\t\t: fpu sse avx2 avx512_vnni\n", True),
    "with the 256-bit VNNI": ("processor : 0\nflags : avx2 avx_vnni\n", True),
    "without": ("flags\t\t: fpu sse avx2 avx512f\n", False),
    "that does not say": ("processor : 0\n", False),
}


@pytest.mark.parametrize(("text", "exactly"), CPUINFOS.values(), ids=CPUINFOS)
def test_x86_multiplies_int8_exactly_where_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, exactly: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(text)
    assert multiplies_exactly(tmp_path / "cpuinfo") is exactly


def test_arm_always_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert multiplies_exactly(tmp_path / "absent")


def test_a_cpu_that_saturates_gets_the_exact_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "multiplies_exactly", lambda: False)
    assert session_settings() == SETTINGS | EXACT
    assert session_options().get_session_config_entry("session.x64quantprecision") == "1"
    assert session_settings(saturates=False) == SETTINGS, "it would cost time, and change nothing"
    monkeypatch.setattr(runtime, "multiplies_exactly", lambda: True)
    assert session_settings() == SETTINGS


def test_a_level_of_optimization_can_be_asked_for() -> None:
    levels = load_onnxruntime().GraphOptimizationLevel
    assert session_options().graph_optimization_level == levels.ORT_ENABLE_ALL
    assert session_options(level="extended").graph_optimization_level == levels.ORT_ENABLE_EXTENDED
    assert session_options(level="disable_all").graph_optimization_level == levels.ORT_DISABLE_ALL


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x09" * 40], ids=["empty", "text", "half a protobuf"])
def test_what_is_no_model_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="cannot load the model") as refusal:
        create_session(data)
    assert refusal.value.code == "model_unloadable"
    assert "\n" not in str(refusal.value)


PREDICT_AND_TELL = """
import json, os, sys
connected = []
sys.addaudithook(lambda event, args: connected.append(str(args)) if event.startswith("socket.") else None)
from pathlib import Path
from edgeline.serve.classifier import Classifier
folder = Path(sys.argv[1])
classifier = Classifier.open(folder)
[[best]] = classifier.predict([(folder / "golden/0.jpg").read_bytes()], 1)
held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
sockets = [target for target in held if target.startswith("socket:")]
print(json.dumps({"label": best.label, "connected": connected, "sockets": sockets}))
"""


def test_predicting_opens_no_socket_and_writes_no_file(make_artifact: Callable[..., Path], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", PREDICT_AND_TELL, str(make_artifact())]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert json.loads(ended.stdout) == {"label": "red", "connected": [], "sockets": []}
    assert [str(path) for path in home.rglob("*")] == []
