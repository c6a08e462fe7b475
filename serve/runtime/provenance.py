"""Where, when and how figures were measured, and the command that repeats the measurement.

A time means nothing without its processor, and int8 computes differently on x86 without VNNI. So every group of figures that
edgeline writes has a `measured_on` with the result of `provenance`.
"""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Unpack

from edgeline.serve.runtime.cpu import CPUINFO, multiplies_exactly, read_cpuinfo, usable_cores
from edgeline.serve.runtime.session import DEFAULTS, PROVIDERS, SessionOptions, session_settings

DEVICE = ("edgeline", "numpy", "pillow", "onnxruntime")
"""Distributions that a device's predictions and times depend on."""
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_int8", "asimdhp", "asimddp", "i8mm", "sve")
"""Processor features that matter for ONNX Runtime's kernels."""


def provenance(command: str, options: dict[str, Any], *, packages: Sequence[str] = DEVICE) -> dict[str, Any]:
    """Describe the current run environment, as JSON types.

    Args:
        command: repeats the measurement.
        options: settings of the measurement.
        packages: distributions whose versions matter.
    """
    from importlib.metadata import version  # here, because it takes a tenth of the time that importing the classifier takes

    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "command": command, "machine": machine(), "versions": versions, "options": options}


def machine() -> dict[str, Any]:
    """This machine, as far as figures depend on it; nothing that identifies its owner."""
    fields = read_cpuinfo(CPUINFO)
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "processor": processor(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}, {_distribution()}",
    }


def processor() -> str:
    """The `export.target` that this machine corresponds to: `x86-vnni`, `x86-avx2` or `arm64`."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return "arm64"
    return "x86-vnni" if multiplies_exactly(CPUINFO) else "x86-avx2"


def runtime_options(**options: Unpack[SessionOptions]) -> dict[str, Any]:
    """How ONNX Runtime runs a model on this machine, as JSON types; without the number of threads."""
    level = (DEFAULTS | options)["level"]
    return {"provider": PROVIDERS[0], "graph_optimization": level, "session": session_settings(**options)}


def machine_line(machine: dict[str, Any]) -> str:
    """A machine on one line."""
    flags = f", {' '.join(machine['flags'])}" if machine["flags"] else ""
    return f"{machine['cpu']} ({machine['processor']}{flags}), {machine['cores']} cores, {machine['system']}"


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return platform.release()
