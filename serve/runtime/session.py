"""ONNX Runtime as it ships: one place that imports it and one set of session settings.

The gate verifies with these settings, the server and the device run with them, so what was proven is what runs.
"""

import contextlib
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from edgeline.serve.errors import ArtifactError

CGROUP = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")
CPUINFO = Path("/proc/cpuinfo")

# `session.set_denormal_as_zero` is left off: it also changes how the calling thread computes, long after the session.
# Session configuration entries; see onnxruntime_session_options_config_keys.h.
SETTINGS = {
    "session.intra_op.allow_spinning": "0",  # waiting threads sleep: small machines have other work for those cores
    # A layer that was left out of quantization stays out: this optimizer would round its weights, the whole tensor alike.
    "optimization.disable_specified_optimizers": "WeightBiasQuantization",
}
EXACT = {"session.x64quantprecision": "1"}
"""For x86 without VNNI, which adds two int8 products in 16 bits and saturates: answers become right, and slower."""
INTEGER_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}


def load_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off.

    Wheels since 1.29 open a database under the user's cache folder and call home unless the variable is set before the
    first import, which is why nothing else in edgeline may import onnxruntime.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def create_session(
    model: bytes, *, threads: int | None = None, level: str = "all", saturates: bool = True, optimized: Path | None = None
) -> Any:
    """Create an inference session for the CPU with the settings that ship.

    Args:
        model: the bytes of an ONNX or ORT file. Bytes, not a path: no external data can be reached, and what was hashed
            is what is loaded.
        threads: intra-op threads; by default as many as this process may use.
        level: `all`, which ships, or for a comparison `extended`, `basic` or `disable_all` graph optimizations.
        saturates: False for an int8 model of which it is known that no two products exceed 16 bits; see `session_settings`.
        optimized: a file for what the graph was optimized to.

    Raises:
        ArtifactError: the runtime cannot load the model, or cannot write that file.
    """
    ort = load_onnxruntime()
    options = session_options(threads, level, saturates)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry("session.save_model_format", "ONNX")  # else the name's ending decides
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class of their own
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} cannot load the model: {reason}", code="model_unloadable"
        ) from error
    # It keeps the file to open it anew with other providers, of which there are none here.
    session._model_bytes = None
    return session


def session_options(threads: int | None = None, level: str = "all", saturates: bool = True) -> Any:
    """The options of `create_session`."""
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    level_name = "ORT_DISABLE_ALL" if level == "disable_all" else f"ORT_ENABLE_{level.upper()}"
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level_name)
    options.log_severity_level = 3
    for key, value in session_settings(saturates).items():
        options.add_session_config_entry(key, value)
    return options


def session_settings(saturates: bool = True) -> dict[str, str]:
    """The session configuration entries that this machine takes.

    Args:
        saturates: whether the model's products may exceed 16 bits. For one that cannot, the exact setting would change nothing
            but the time.
    """
    return SETTINGS if not saturates or multiplies_exactly() else SETTINGS | EXACT


def multiplies_exactly(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this CPU multiplies int8 without saturating: every ARM does, x86 with VNNI or AMX does."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return True
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return False  # not known: better slow than wrong
    return not INTEGER_FLAGS.isdisjoint(flags)


def usable_cores(cgroup: Path = CGROUP, groups: Path = GROUPS) -> int:
    """How many threads are worth having: the CPUs this process may run on, capped by its cgroups' quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _own_groups(cgroup, groups) if (quota := _quota(folder)) is not None]
    return max(1, min([allowed, *map(math.ceil, quotas)]))


def _own_groups(cgroup: Path, groups: Path) -> Iterator[Path]:
    """The control groups that this process is in, its own and all around it; those of v2, and of v1 for `cpu`.

    A container sees its own as the root. A service under systemd does not, and finds its own in /proc.
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
    """CPUs' worth of time per period of one control group, v2's cpu.max or v1's cpu.cfs_quota_us; None where unlimited."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
