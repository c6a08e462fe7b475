"""An emulated x86 processor without VNNI, with this machine's Python, for `export.emulation.machine.check`.

Such a processor adds two int8 products in 16 bits, which can saturate, so results from a machine with VNNI may not hold on it.
Both the instructions and the reported processor features are emulated, so `serve.runtime.session` selects the same settings
as on the device.

Measured by `edgeline emulate ARTIFACT --target x86-avx2` on an x86 server with VNNI, Debian 12, qemu 7.2, ONNX Runtime 1.31.1,
for two published artifacts (EfficientNet-Lite0 on photos of ants and bees, 8 golden samples; `export.target` x86-vnni, 8-bit
weights, and x86-avx2, 7-bit ones). Logit differences as shares of the largest, tolerance 0.06; pixels were identical:

    variant     weights   as on the device         without the exact setting
    onnx-int8   7 bits    none needed: 0           0
    onnx-int8   8 bits    exact: 0                 0.29 at the first sample: failed
    ort-int8    7 bits    none needed: 0
    ort-int8    8 bits    exact: 0.29, failed

So 7-bit weights give identical results without the setting, and 8-bit weights with it. A file in ORT format is already
optimized and ignores the setting, so with 8-bit weights it is not suitable for such a processor. An int8 variant took 50 to
150 s on two heavily loaded cores.
"""

import platform
import sys
from pathlib import Path

from edgeline.export.emulation.machine import Machine, find_tool, unavailable, write_cpuinfo
from edgeline.serve.runtime.cpu import usable_cores

TARGET = "x86-avx2"
CPU = "max"
"""Every feature of qemu, which includes AVX2 but neither AVX-512 nor VNNI."""
CPUINFO = {
    "model name": "emulated x86 with AVX2",
    "flags": "fpu sse sse2 ssse3 sse4_1 sse4_2 popcnt fma avx f16c avx2 bmi1 bmi2",
}


def prepare_machine(folder: Path) -> Machine:
    """Make the machine, which takes no time.

    Args:
        folder: for its `proc/cpuinfo`, `<artifacts>/cache/x86-avx2`.

    Raises:
        EdgelineError: `x86_avx2_unavailable`: qemu is missing, or this machine is not x86, whose libraries it needs.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} {platform.machine()}"
        raise unavailable(
            TARGET, f"--target {TARGET} uses this machine's own libraries, which requires Linux on x86-64; this is {here}"
        )
    qemu = find_tool(TARGET, "qemu-user-static", "qemu-x86_64-static", "qemu-x86_64")
    root = folder.resolve()
    write_cpuinfo(root, CPUINFO, usable_cores())
    return Machine(processor="x86 without VNNI", qemu=qemu, cpu=CPU, root=root, python=(sys.executable,))
