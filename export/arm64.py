"""Have an artifact prove itself as on an ARM board, on this machine: its golden samples under an emulated aarch64 processor.

    machine = prepare_machine(Path("artifacts/cache/arm64"))    # once; later calls find it there
    for entry in check(Path("artifacts/store/digits"), machine):
        print(entry["variant"], entry["proven"])

What runs is what a board would run: the aarch64 wheels of NumPy, Pillow and ONNX Runtime, in the versions that are installed
here, and the `serve` package, from the file's bytes to the comparison with the golden samples. Int8 is the reason for it:
float32 gives the same on both but for the last bits, while the integer kernels of ARM and of x86 round differently.

The processor is qemu's user mode, the libraries come from the system's own package sources. They are fetched into a folder
by a package manager with a state of its own: nothing is installed and no architecture is added to the system.

Measured by the three lines above on two shared cores of an x86 server with VNNI, Debian 12, qemu 7.2, ONNX Runtime 1.31.1,
for a published artifact (EfficientNet-Lite0 on photos of ants and bees, 8 golden samples): the machine is made in 22 s, of
which 7 s are fetching and extracting 16 MB of system packages, and takes 211 MB. All variants took 272 s:

    variant      logit difference (tolerated)   probability difference   load    a sample
    onnx-fp32    2.5e-6 (0.001)                 4.8e-7                   2.7 s   10.0 s
    onnx-int8    0.0094 (0.06)                  2.5e-4                   0.8 s    1.2 s
    onnx-fp16    8.9e-7 (0.001)                 1.8e-7                   0.7 s    9.2 s
    ort-fp32     1.6e-6 (0.001)                 3.0e-7                   0.6 s   10.3 s
    ort-int8     0.0094 (0.06)                  2.5e-4                   1.0 s    2.3 s

Pixels did not differ at all. An int8 model's values are 8-bit levels, so logits differ where one was rounded to another level,
or not at all: a model of three easy classes gave the very same. The seconds say nothing of how fast a board is.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serve.artifact import open_artifact
from serve.errors import EdgelineError, VerificationError
from serve.runtime import usable_cores

CPU = "cortex-a76"
"""With the dot products that int8 kernels use; what a Raspberry Pi 5 has."""
FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
SYSTEM_PACKAGES = ("python3", "libgomp1", "libstdc++6")
WHEELS = ("numpy", "pillow", "onnxruntime")
PLATFORMS = tuple(f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1))
"""Which wheels the fetched C library can load. pip does not deduce the older names from the newest."""
RECEIPT = "machine.json"
FETCH_S = 600
"""Longest time for a fetch, in seconds; all of them took 20."""

PROGRAM = """
import json, sys, time
from serve import golden
from serve.classifier import Classifier
from serve.errors import EdgelineError, GoldenError

for name in sys.argv[2:]:
    found = {"variant": name}
    try:
        start = time.perf_counter()
        classifier = Classifier.open(sys.argv[1], variant=name, prove=False)
        loaded = time.perf_counter()
        proof = golden.prove(classifier.artifact, classifier.answer, name)
        seconds = {"load_s": loaded - start, "sample_s": (time.perf_counter() - loaded) / proof.samples}
        figures = {key: getattr(proof, key) for key in proof.__slots__}
        found |= {"proven": True, **figures, **{key: round(value, 2) for key, value in seconds.items()}}
    except GoldenError as error:
        found |= {"proven": False, "error": str(error)}
    except EdgelineError as error:
        found |= {"broken": str(error)}
    print(json.dumps(found), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """An aarch64 Python in a folder, and what runs it here."""

    folder: Path
    """Holds `root`, the system's part, and `site`, the wheels."""
    qemu: str
    """The emulator."""
    python: str
    """The interpreter's file name, `python3.11`."""

    def run(
        self, program: str, *arguments: str, path: Sequence[Path] = (), timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program there.

        Args:
            program: its text.
            arguments: its `sys.argv[1:]`.
            path: folders to import from, beside the wheels.
            timeout_s: when to stop it.

        Returns:
            Its exit status, which is a signal's negative number where one ended it, and what it wrote.

        Raises:
            subprocess.TimeoutExpired: it took longer.
        """
        root = self.folder / "root"
        # Without `site` (-S) nothing of this machine's Python is found. Its variables would be read there as well.
        interpreter = [str(root / "usr/bin" / self.python), "-S", "-c", program]
        environment = {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": os.pathsep.join(map(str, (self.folder / "site", *path))),
        }
        command = [self.qemu, "-cpu", CPU, "-L", str(root), *interpreter, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)


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
            return Machine(folder, qemu, held["python"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none was made yet, or not by this
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "site").mkdir(parents=True)
    python = _fetch_system(partial)
    _fetch_wheels(partial / "site", python.removeprefix("python"), versions)
    _try(Machine(partial, qemu, python))
    (partial / RECEIPT).write_text(json.dumps({"python": python, "versions": versions}))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return Machine(folder, qemu, python)


def check(
    artifact: Path, machine: Machine, *, variants: Sequence[str] | None = None, timeout_s: float = 1800
) -> list[dict[str, Any]]:
    """Have an artifact's variants answer its golden samples on the machine.

    Args:
        artifact: its folder, or a name's folder in a store for its newest version.
        machine: of `prepare_machine`.
        variants: the names of those to check; by default all that ONNX Runtime runs. Float32 takes eight times as long as int8.
        timeout_s: for all of them together.

    Returns:
        An entry a variant: its name as `variant`, and `proven`. One that is proven has the figures of `serve.golden.Proof`
        and how many seconds it took to load (`load_s`) and for a sample (`sample_s`, in which the model runs twice); one
        that answers otherwise than its golden samples has the line that says so as `error`.

    Raises:
        ArtifactError: the artifact is not whole, or has no such variant.
        VerificationError: a variant cannot be run there, the process crashed or took too long.
    """
    held = open_artifact(artifact)
    known = [variant.name for variant in held.manifest.variants if variant.format in ("onnx", "ort")]
    names = known if variants is None else [held.manifest.variant(name).name for name in variants]
    with tempfile.TemporaryDirectory() as folder:
        # Alone on the path: beside it may lie this machine's own packages.
        Path(folder, "serve").symlink_to(Path(__file__).resolve().parents[1] / "serve")
        try:
            done = machine.run(PROGRAM, str(held.folder.resolve()), *names, path=[Path(folder)], timeout_s=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise VerificationError(
                f"{_running(names, error.stdout)}: the check on aarch64 was stopped after {timeout_s:g} s; give it more time, "
                "or look whether this machine is busy"
            ) from error
    if done.returncode:
        raise VerificationError(
            f"{_running(names, done.stdout)}: the check on aarch64 ended with {_end(done)}; the aarch64 ONNX Runtime "
            f"{version('onnxruntime')} may not run this file, try another version before a board gets it"
        )
    entries: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    if broken := [f"{entry['variant']} on aarch64: {entry['broken']}" for entry in entries if "broken" in entry]:
        raise VerificationError("; ".join(broken))
    return entries


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
            f"the system's package sources give no aarch64 Python: {_one_line(said[0] if said else fetched.stderr)}; look at "
            "the network, and whether the sources have the architecture arm64: apt-get update"
        )
    for package in sorted((state / "archives").glob("*.deb")):
        if (done := _fetch([extract, "-x", str(package), str(root)])).returncode:
            raise _unavailable(f"{package.name} cannot be extracted: {_one_line(done.stderr)}; is the disk full?")
    shutil.rmtree(state)
    if not (root / "lib").exists():  # a system that keeps all libraries under /usr makes this link when it is installed
        (root / "lib").symlink_to("usr/lib")
    # qemu 7 shows ARM programs the cpuinfo of x86, at which ONNX Runtime from 1.28 on crashes when it is imported.
    core = f"Features\t: {FEATURES}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\n"
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("\n".join(f"processor\t: {index}\n{core}" for index in range(usable_cores())))
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
            f"pip gives no aarch64 wheels for Python {python}: {_one_line(said[-1] if said else done.stderr)}; look at the "
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
            f"the aarch64 wheels cannot be imported under {machine.qemu}: {_end(done)}; try a newer qemu, or other versions of "
            f"{', '.join(WHEELS)}"
        )


def _fetch(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired as error:
        name = Path(command[0]).name
        raise _unavailable(f"{name} did not end in {FETCH_S} s; look at the network and run the check again") from error


def _find(package: str, *names: str) -> str:
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    raise _unavailable(f"{names[0]} is not on this machine, and the check on aarch64 needs it: apt-get install {package}")


def _unavailable(message: str) -> EdgelineError:
    return EdgelineError(message, code="arm64_unavailable")


def _running(names: list[str], stdout: str | bytes | None) -> str:
    """Which variant was at work when the process ended: it prints a line for each that is done."""
    done = len((stdout or "").splitlines())
    return names[min(done, len(names) - 1)]


def _end(done: subprocess.CompletedProcess[str]) -> str:
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
    return f"{how} ({said})" if (said := _one_line(done.stderr.strip().rpartition("\n")[2])) else how


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
