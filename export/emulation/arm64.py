"""An emulated aarch64 processor with the wheels that a board runs, for `export.emulation.machine.check`.

The libraries come from the system's own package sources, NumPy, Pillow and ONNX Runtime from pip's, in the versions that are
installed here. They are fetched into a folder by a package manager with a state of its own: nothing is installed and no
architecture is added to the system.

Measured by `edgeline verify ARTIFACT --target arm64` on two shared cores of an x86 server with VNNI, Debian 12, qemu 7.2, ONNX
Runtime 1.31.1, for a published artifact (EfficientNet-Lite0 on photos of ants and bees, 8 golden samples): the machine is made
in 22 s, of which 7 s are fetching and extracting 16 MB of system packages, and takes 211 MB. All variants took 272 s:

    variant      logit difference (tolerated)   probability difference   load    a sample
    onnx-fp32    2.5e-6 (0.001)                 4.8e-7                   2.7 s   10.0 s
    onnx-int8    0.0094 (0.06)                  2.5e-4                   0.8 s    1.2 s
    onnx-fp16    8.9e-7 (0.001)                 1.8e-7                   0.7 s    9.2 s
    ort-fp32     1.6e-6 (0.001)                 3.0e-7                   0.6 s   10.3 s
    ort-int8     0.0094 (0.06)                  2.5e-4                   1.0 s    2.3 s

Pixels did not differ at all. An int8 model's values are 8-bit levels, so logits differ where one was rounded to another level,
or not at all: a model of three easy classes gave the very same.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from edgeline.export.emulation.machine import Machine, end_of, find_tool, one_line, unavailable, write_cpuinfo
from edgeline.serve.errors import EdgelineError, VerificationError
from edgeline.serve.runtime.cpu import usable_cores

TARGET = "arm64"
CPU = "cortex-a76"
"""With the dot products that int8 kernels use; what a Raspberry Pi 5 has."""
CPUINFO = {
    "Features": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    "CPU implementer": "0x41",
    "CPU architecture": "8",
    "CPU variant": "0x4",
    "CPU part": "0xd0b",
}
SYSTEM_PACKAGES = ("python3", "libgomp1", "libstdc++6")
WHEELS = ("numpy", "pillow", "onnxruntime")
PLATFORMS = tuple(f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1))
"""Which wheels the fetched C library can load. pip does not deduce the older names from the newest."""
RECEIPT = "machine.json"
FETCH_S = 600
"""Longest time for a fetch, in seconds; all of them took 20."""


def prepare_machine(folder: Path) -> Machine:
    """Make an aarch64 machine in a folder, or find the one that was made there for the versions installed here.

    Args:
        folder: where it is to be, `<artifacts>/cache/arm64`. It is built beside and renamed, so it is whole or not there.

    Raises:
        EdgelineError: `arm64_unavailable`: a tool is missing, or packages cannot be fetched.
        VerificationError: what was fetched does not run.
    """
    qemu = _find("qemu-user-static", "qemu-aarch64-static", "qemu-aarch64")
    folder = folder.resolve()
    versions = {name: version(name) for name in WHEELS}
    try:
        held = json.loads((folder / RECEIPT).read_text())
        if held["versions"] == versions:
            return _machine(folder, qemu, held["python"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none was made yet, or not by this
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "site").mkdir(parents=True)
    python = _fetch_system(partial)
    _fetch_wheels(partial / "site", python.removeprefix("python"), versions)
    _try(_machine(partial, qemu, python))
    (partial / RECEIPT).write_text(json.dumps({"python": python, "versions": versions}))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return _machine(folder, qemu, python)


def _machine(folder: Path, qemu: str, python: str) -> Machine:
    root = folder / "root"
    # Without `site` (-S) nothing of this machine's Python is found.
    interpreter = (str(root / "usr/bin" / python), "-S")
    return Machine(processor="aarch64", qemu=qemu, cpu=CPU, root=root, python=interpreter, site=(folder / "site",))


def _fetch_system(partial: Path) -> str:
    """Extract Python and the libraries it needs to `root`, without installing anything. Returns the interpreter's name."""
    apt, extract = _find("apt", "apt-get"), _find("dpkg", "dpkg-deb")
    state, root = partial / "apt", partial / "root"
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()  # no package is installed: the closure of what is asked for is fetched
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",  # the user that apt would change to may not write here
        "Acquire::Languages": "none",
    }
    command = [apt, *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]
    updated = _fetch([*command, "update"])
    fetched = _fetch([*command, "--yes", "--no-install-recommends", "--download-only", "install", *SYSTEM_PACKAGES])
    if fetched.returncode:
        # An update that reaches no source only warns, and says why; what follows from it is that packages are not known.
        said = [line for line in (updated.stderr + fetched.stderr).splitlines() if line.startswith(("E:", "W:"))]
        raise _unavailable(
            f"the system's package sources give no aarch64 Python: {one_line(said[0] if said else fetched.stderr)}; look at "
            "the network, and whether the sources have the architecture arm64: apt-get update"
        )
    for package in sorted((state / "archives").glob("*.deb")):
        if (done := _fetch([extract, "-x", str(package), str(root)])).returncode:
            raise _unavailable(f"{package.name} cannot be extracted: {one_line(done.stderr)}; is the disk full?")
    shutil.rmtree(state)
    if not (root / "lib").exists():  # a system that keeps all libraries under /usr makes this link when it is installed
        (root / "lib").symlink_to("usr/lib")
    # qemu 7 shows ARM programs the cpuinfo of x86, at which ONNX Runtime from 1.28 on crashes when it is imported.
    write_cpuinfo(root, CPUINFO, usable_cores())
    return (root / "usr/bin/python3").readlink().name


def _fetch_wheels(site: Path, python: str, versions: dict[str, str]) -> None:
    if importlib.util.find_spec("pip") is None:
        raise _unavailable(f"fetching the aarch64 wheels needs pip: {sys.executable} -m ensurepip")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
    target = ["--target", str(site), "--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    done = _fetch([*pip, *target, *platforms, *(f"{name}=={number}" for name, number in versions.items())])
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise _unavailable(
            f"pip gives no aarch64 wheels for Python {python}: {one_line(said[-1] if said else done.stderr)}; look at the "
            "network and at pip's index"
        )


def _try(machine: Machine) -> None:
    """Import once what was fetched, so that a machine that cannot run is never kept."""
    try:
        done = machine.run("import numpy, onnxruntime, PIL.Image", timeout_s=300)
    except subprocess.TimeoutExpired as error:
        raise VerificationError(
            f"importing the aarch64 wheels did not end in {error.timeout:g} s; is this machine busy?"
        ) from error
    if done.returncode:
        raise VerificationError(
            f"the aarch64 wheels cannot be imported under {machine.qemu}: {end_of(done)}; try a newer qemu, or other versions "
            f"of {', '.join(WHEELS)}"
        )


def _fetch(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired as error:
        name = Path(command[0]).name
        raise _unavailable(f"{name} did not end in {FETCH_S} s; look at the network and run the check again") from error


def _find(package: str, *names: str) -> str:
    return find_tool(TARGET, package, *names)


def _unavailable(message: str) -> EdgelineError:
    return unavailable(TARGET, message)
