"""Where, when and with what a figure was taken, and the command that gives it again.

A time says nothing without its processor, and int8 is another computation on x86 without VNNI. So every group of figures that
edgeline writes carries what `taken` gives.
"""

import importlib.metadata
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeline.serve.runtime.session import CPUINFO, multiplies_exactly, session_settings, usable_cores

DEVICE = ("edgeline", "numpy", "pillow", "onnxruntime")
"""Distributions that a device's answers and times depend on."""
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_int8", "asimdhp", "asimddp", "i8mm", "sve")
"""What a processor may say of itself that matters for these kernels."""


def provenance(command: str, options: dict[str, Any], *, packages: Sequence[str] = DEVICE) -> dict[str, Any]:
    """Describe this moment on this machine, as JSON types.

    Args:
        command: what to type to take the figures again.
        options: what they were taken with.
        packages: distributions whose versions matter.
    """
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "command": command, "machine": machine(), "versions": versions, "options": options}


def machine() -> dict[str, Any]:
    """This machine, as far as figures depend on it; nothing that tells whose it is."""
    fields = _cpuinfo(CPUINFO)
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "processor": processor(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}, {_distribution()}",
    }


def processor() -> str:
    """The profile of `export.target` that this machine has: `x86-vnni`, `x86-avx2` or `arm64`."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return "arm64"
    return "x86-vnni" if multiplies_exactly(CPUINFO) else "x86-avx2"


def runtime_options(saturates: bool = True) -> dict[str, Any]:
    """How ONNX Runtime is run here, whatever the number of threads."""
    return {"provider": "CPUExecutionProvider", "graph_optimization": "all", "session": dict(session_settings(saturates))}


def machine_line(machine: dict[str, Any]) -> str:
    """A machine in words."""
    flags = f", {' '.join(machine['flags'])}" if machine["flags"] else ""
    return f"{machine['cpu']} ({machine['processor']}{flags}), {machine['cores']} cores, {machine['system']}"


def _cpuinfo(path: Path) -> dict[str, str]:
    """What the first processor says of itself."""
    try:
        lines = path.read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return platform.release()
