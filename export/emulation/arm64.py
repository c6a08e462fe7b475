"""An emulated aarch64 processor with the wheels that a board would run, for `export.emulation.machine.check`.

System libraries come from the system's package sources; NumPy, Pillow and ONNX Runtime from pip, in the versions installed
here. They are downloaded into a folder by a package manager with a separate state: nothing is installed and no architecture
is added to the system.

Measured by `edgeline emulate ARTIFACT --target arm64` on two shared cores of an x86 server with VNNI, Debian 12, qemu 7.2, ONNX
Runtime 1.31.1, for a published artifact (EfficientNet-Lite0 on photos of ants and bees, 8 golden samples): setting up the
machine takes 22 s, of which 7 s are downloading and extracting 16 MB of system packages, and 211 MB of disk. All variants took
272 s:

    variant      logit difference (tolerance)   probability difference   load    per sample
    onnx-fp32    2.5e-6 (0.001)                 4.8e-7                   2.7 s   10.0 s
    onnx-int8    0.0094 (0.06)                  2.5e-4                   0.8 s    1.2 s
    onnx-fp16    8.9e-7 (0.001)                 1.8e-7                   0.7 s    9.2 s
    ort-fp32     1.6e-6 (0.001)                 3.0e-7                   0.6 s   10.3 s
    ort-int8     0.0094 (0.06)                  2.5e-4                   1.0 s    2.3 s

Pixels were identical. An int8 model's values are 8-bit levels, so logits differ if one was rounded to another level, or not at
all: a model of three easy classes gave identical logits.
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
"""The processor of a Raspberry Pi 5, with the dot products that int8 kernels use."""
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
"""The wheels that the downloaded C library can load. pip does not derive the older names from the newest."""
RECEIPT = "machine.json"
FETCH_S = 600
"""Timeout of a download, in seconds; all of them together took 20."""


def prepare_machine(folder: Path) -> Machine:
    """Make an aarch64 machine in a folder, or find the one made there for the versions installed here.

    Args:
        folder: where it is made, `<artifacts>/cache/arm64`. It is built next to that and renamed, so it is complete or absent.

    Raises:
        EdgelineError: `arm64_unavailable`: a tool is missing, or packages cannot be downloaded.
        VerificationError: the downloaded packages do not run.
    """
    qemu = _find("qemu-user-static", "qemu-aarch64-static", "qemu-aarch64")
    folder = folder.resolve()
    versions = {name: version(name) for name in WHEELS}
    try:
        made = json.loads((folder / RECEIPT).read_text())
        if made["versions"] == versions:
            return _machine(folder, qemu, made["python"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none was made yet, or by another version
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "site").mkdir(parents=True)
    python = _fetch_system(partial)
    _fetch_wheels(partial / "site", python.removeprefix("python"), versions)
    _check_imports(_machine(partial, qemu, python))
    (partial / RECEIPT).write_text(json.dumps({"python": python, "versions": versions}))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return _machine(folder, qemu, python)


def _machine(folder: Path, qemu: str, python: str) -> Machine:
    root = folder / "root"
    # Without `site` (-S) this machine's own packages are not found.
    interpreter = (str(root / "usr/bin" / python), "-S")
    return Machine(processor="aarch64", qemu=qemu, cpu=CPU, root=root, python=interpreter, site=(folder / "site",))


def _fetch_system(partial: Path) -> str:
    """Extract Python and its libraries to `root`, without installing anything. Returns the interpreter's name."""
    apt, extract = _find("apt", "apt-get"), _find("dpkg", "dpkg-deb")
    state, root = partial / "apt", partial / "root"
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()  # no package counts as installed, so all dependencies are downloaded
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",  # the user that apt would switch to has no write permission here
        "Acquire::Languages": "none",
    }
    command = [apt, *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]
    updated = _fetch([*command, "update"])
    fetched = _fetch([*command, "--yes", "--no-install-recommends", "--download-only", "install", *SYSTEM_PACKAGES])
    if fetched.returncode:
        # An update that reaches no source only warns with the reason; the later error is that packages are unknown.
        messages = [line for line in (updated.stderr + fetched.stderr).splitlines() if line.startswith(("E:", "W:"))]
        raise _unavailable(
            f"the system's package sources provide no aarch64 Python: {one_line(messages[0] if messages else fetched.stderr)}; "
            "check the network, and whether the sources have the architecture arm64: apt-get update"
        )
    for package in sorted((state / "archives").glob("*.deb")):
        if (done := _fetch([extract, "-x", str(package), str(root)])).returncode:
            raise _unavailable(f"{package.name} cannot be extracted: {one_line(done.stderr)}; is the disk full?")
    shutil.rmtree(state)
    if not (root / "lib").exists():  # a system with all libraries under /usr creates this link at installation
        (root / "lib").symlink_to("usr/lib")
    # qemu 7 shows ARM programs the cpuinfo of x86, which makes ONNX Runtime 1.28 and later crash at import.
    write_cpuinfo(root, CPUINFO, usable_cores())
    return (root / "usr/bin/python3").readlink().name


def _fetch_wheels(site: Path, python: str, versions: dict[str, str]) -> None:
    if importlib.util.find_spec("pip") is None:
        raise _unavailable(f"downloading the aarch64 wheels needs pip: {sys.executable} -m ensurepip")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
    target = ["--target", str(site), "--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    done = _fetch([*pip, *target, *platforms, *(f"{name}=={number}" for name, number in versions.items())])
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise _unavailable(
            f"pip finds no aarch64 wheels for Python {python}: {one_line(errors[-1] if errors else done.stderr)}; check the "
            "network and pip's index"
        )


def _check_imports(machine: Machine) -> None:
    """Import the downloaded packages once, so that a machine that cannot run is not kept."""
    try:
        done = machine.run("import numpy, onnxruntime, PIL.Image", timeout_s=300)
    except subprocess.TimeoutExpired as error:
        raise VerificationError(
            f"importing the aarch64 wheels did not finish in {error.timeout:g} s; check the load of this machine"
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
        raise _unavailable(f"{name} did not finish in {FETCH_S} s; check the network and try again") from error


def _find(package: str, *names: str) -> str:
    return find_tool(TARGET, package, *names)


def _unavailable(message: str) -> EdgelineError:
    return unavailable(TARGET, message)
