"""An emulated x86 processor without VNNI, with this machine's Python, for `export.emulation.machine.check`.

Such a processor adds two int8 products in 16 bits, and saturates. What was found on a machine with VNNI need not hold there:
here it has to. Emulated are the instructions and what the system says of the processor, so `serve.runtime.session` makes the
setting that it would make on the device.

Measured by `edgeline verify ARTIFACT --target x86-avx2` on an x86 server with VNNI, Debian 12, qemu 7.2, ONNX Runtime 1.31.1,
for two published artifacts (EfficientNet-Lite0 on photos of ants and bees, 8 golden samples; `export.target` x86-vnni, 8-bit
weights, and x86-avx2, 7-bit ones). Logit differences as shares of the largest, tolerated 0.06; pixels did not differ:

    variant     weights   the device's setting     without the exact setting
    onnx-int8   7 bits    none needed: 0           0
    onnx-int8   8 bits    exact: 0                 0.29 at the first sample: refused
    ort-int8    7 bits    none needed: 0
    ort-int8    8 bits    exact: 0.29, refused

So 7-bit weights give the very same without the setting, and 8-bit ones with it; but a file in ORT's own format is optimized
already and does not heed the setting, so with 8-bit weights it is none for such a processor. An int8 variant took 50 to 150 s
on two cores with twenty processes waiting for them.
"""

import platform
import sys
from pathlib import Path

from edgeline.export.emulation.machine import Machine, find_tool, unavailable, write_cpuinfo
from edgeline.serve.runtime.cpu import usable_cores

TARGET = "x86-avx2"
CPU = "max"
"""All that qemu can do, which is AVX2: it has neither AVX-512 nor any VNNI."""
CPUINFO = {
    "model name": "emulated x86 with AVX2",
    "flags": "fpu sse sse2 ssse3 sse4_1 sse4_2 popcnt fma avx f16c avx2 bmi1 bmi2",
}


def prepare_machine(folder: Path) -> Machine:
    """Make the machine; it takes no time.

    Args:
        folder: where its `proc/cpuinfo` is to lie, `<artifacts>/cache/x86-avx2`.

    Raises:
        EdgelineError: `x86_avx2_unavailable`: qemu is missing, or this machine is no x86, whose libraries it needs.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} {platform.machine()}"
        raise unavailable(
            TARGET, f"--target {TARGET} runs this machine's own libraries, which takes Linux on x86-64; here is {here}"
        )
    qemu = find_tool(TARGET, "qemu-user-static", "qemu-x86_64-static", "qemu-x86_64")
    root = folder.resolve()
    write_cpuinfo(root, CPUINFO, usable_cores())
    return Machine(processor="x86 without VNNI", qemu=qemu, cpu=CPU, root=root, python=(sys.executable,))
