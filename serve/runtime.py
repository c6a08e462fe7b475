"""ONNX Runtime as it ships: one place that imports it and one set of session settings.

The gate verifies with these settings, the server and the device run with them, so what was proven is what runs.
"""

import math
import os
from pathlib import Path
from typing import Any

from serve.errors import ArtifactError

CGROUP = Path("/sys/fs/cgroup")

# `session.set_denormal_as_zero` is left off: it also changes how the calling thread computes, long after the session.
# Session configuration entries; see onnxruntime_session_options_config_keys.h.
SETTINGS = {
    "session.intra_op.allow_spinning": "0",  # waiting threads sleep: small machines have other work for those cores
}


def load_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off.

    Wheels since 1.29 open a database under the user's cache folder and call home unless the variable is set before the
    first import, which is why nothing else in edgeline may import onnxruntime.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def create_session(model: bytes, *, threads: int | None = None) -> Any:
    """Create an inference session for the CPU with the settings that ship.

    Args:
        model: the bytes of an ONNX file. Bytes, not a path: no external data can be reached, and what was hashed is
            what is loaded.
        threads: intra-op threads; by default as many as this process may use.

    Raises:
        ArtifactError: the runtime cannot load the model.
    """
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    for key, value in SETTINGS.items():
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class of their own
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} cannot load the model: {reason}", code="model_unloadable"
        ) from error


def usable_cores(cgroup: Path = CGROUP) -> int:
    """How many threads are worth having: the CPUs this process may run on, capped by its cgroup's quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(cgroup)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def _cgroup_quota(cgroup: Path) -> float | None:
    """CPUs' worth of time per period, from cgroup v2's cpu.max or v1's cpu.cfs_quota_us; None where unlimited."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
