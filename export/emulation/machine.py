"""Have an artifact prove itself as on another processor, on this machine: its golden samples under qemu's user mode.

    from edgeline.export.emulation.arm64 import prepare_machine        # or export.avx2
    machine = prepare_machine(Path("artifacts/cache/arm64"))
    for entry in check(Path("artifacts/store/digits"), machine):
        print(entry["variant"], entry["proven"])

What runs is what a device would run: NumPy, Pillow and ONNX Runtime in the versions that are installed here, and the `serve`
package, from the file's bytes to the comparison with the golden samples. Int8 is the reason for it: float32 gives the same on
all processors but for the last bits, while the integer kernels of ARM and of x86 round differently, and those of x86 without
VNNI saturate. The seconds say nothing of how fast a device is.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgeline.export.device_package import link_device_package
from edgeline.serve.artifact.reader import open_artifact
from edgeline.serve.errors import EdgelineError, VerificationError

AS_DEVICE, SATURATING = "as-device", "saturating"

PROGRAM = """
import json, sys, time
from edgeline.export.device_package import link_device_package
from edgeline.serve.artifact import golden
from edgeline.serve.runtime import session as runtime
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import EdgelineError, GoldenError

if sys.argv[2] == "saturating":
    runtime.EXACT.clear()
for name in sys.argv[3:]:
    found = {"variant": name}
    try:
        start = time.perf_counter()
        classifier = Classifier.open(sys.argv[1], variant=name, prove=False)
        loaded = time.perf_counter()
        settings = runtime.session_settings(**runtime.options_for(classifier.variant))
        found |= {"exact_setting": "session.x64quantprecision" in settings}
        proof = golden.run_self_test(classifier.artifact, classifier.answer, name)
        seconds = {"load_s": loaded - start, "sample_s": (time.perf_counter() - loaded) / proof.samples}
        figures = {key: getattr(proof, key) for key in proof.__slots__}
        found |= {"proven": True, **figures, **{key: round(value, 2) for key, value in seconds.items()}}
    except GoldenError as error:
        found |= {"proven": False, "error": str(error)}
    except EdgelineError as error:
        found |= {"broken": str(error)}
    print(json.dumps(found), flush=True)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A Python for a processor, and what runs it here."""

    processor: str
    """Its name, for messages."""
    qemu: str
    """The emulator."""
    cpu: str
    """The emulator's name of the processor."""
    root: Path
    """Where the emulated program looks for a file first: `proc/cpuinfo`, which is this machine's own otherwise, and for
    another architecture the system's libraries."""
    python: tuple[str, ...]
    """The interpreter, and its options."""
    site: tuple[Path, ...] = ()
    """Folders to import from, where the interpreter does not know its own."""

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
        environment = {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": os.pathsep.join(map(str, (*self.site, *path))),
        }
        command = [self.qemu, "-cpu", self.cpu, "-L", str(self.root), *self.python, "-c", program, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)


def check(
    artifact: Path,
    machine: Machine,
    *,
    variants: Sequence[str] | None = None,
    saturating: bool = False,
    timeout_s: float = 1800,
) -> list[dict[str, Any]]:
    """Have an artifact's variants answer its golden samples on the machine.

    Args:
        artifact: its folder, or a name's folder in a store for its newest version.
        machine: of a `prepare_machine`.
        variants: the names of those to check; by default all that ONNX Runtime runs. Float32 takes far longer.
        saturating: leave off the exact setting that `serve.runtime.session` makes for a processor whose int8 products
            saturate, to see what becomes of them.
        timeout_s: for all of them together.

    Returns:
        An entry a variant: its name as `variant`, `proven`, and whether the exact setting was made as `exact_setting`. One that
        is proven has the figures of `serve.artifact.golden.SelfTest` and how many seconds it took to load (`load_s`) and for a
        sample (`sample_s`, in which the model runs twice); one that answers otherwise than its golden samples has the line
        that says so as `error`.

    Raises:
        ArtifactError: the artifact is not whole, or has no such variant.
        VerificationError: a variant cannot be run there, the process crashed or took too long.
    """
    held, where = open_artifact(artifact), machine.processor
    known = [variant.name for variant in held.manifest.variants if variant.format in ("onnx", "ort")]
    names = known if variants is None else [held.manifest.variant(name).name for name in variants]
    with tempfile.TemporaryDirectory() as folder:
        # Alone on the path: beside it may lie this machine's own packages.
        link_device_package(Path(folder))
        arguments = [str(held.folder.resolve()), SATURATING if saturating else AS_DEVICE, *names]
        try:
            done = machine.run(PROGRAM, *arguments, path=[Path(folder)], timeout_s=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise VerificationError(
                f"{_running(names, error.stdout)}: the check on {where} was stopped after {timeout_s:g} s; give it more time, "
                "or look whether this machine is busy"
            ) from error
    if done.returncode:
        raise VerificationError(
            f"{_running(names, done.stdout)}: the check on {where} ended with {end_of(done)}; the ONNX Runtime "
            f"{version('onnxruntime')} of {where} may not run this file, try another version before a device gets it"
        )
    entries: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    if broken := [f"{entry['variant']} on {where}: {entry['broken']}" for entry in entries if "broken" in entry]:
        raise VerificationError("; ".join(broken))
    return entries


def find_tool(target: str, package: str, *names: str) -> str:
    """Find a program by one of its names.

    Raises:
        EdgelineError: it is not on this machine; the message names the package that brings it.
    """
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    raise unavailable(target, f"{names[0]} is not on this machine, and --target {target} needs it: apt-get install {package}")


def unavailable(target: str, message: str) -> EdgelineError:
    """The error for a target that cannot be emulated here; its code is `arm64_unavailable` or `x86_avx2_unavailable`."""
    return EdgelineError(message, code=f"{target.replace('-', '_')}_unavailable")


def write_cpuinfo(root: Path, lines: Mapping[str, str], cores: int) -> None:
    """Write what the emulated processors say of themselves to `root/proc/cpuinfo`."""
    core = "".join(f"{key}\t: {value}\n" for key, value in lines.items())
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/cpuinfo").write_text("\n".join(f"processor\t: {index}\n{core}" for index in range(cores)))


def end_of(done: subprocess.CompletedProcess[str]) -> str:
    """How a process ended, in words, with the last line it wrote."""
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
    return f"{how} ({said})" if (said := one_line(done.stderr.strip().rpartition("\n")[2])) else how


def one_line(text: str) -> str:
    """Text on one line, at most 300 characters of it."""
    return " ".join(text.split())[:300]


def _running(names: list[str], stdout: str | bytes | None) -> str:
    """Which variant was at work when the process ended: it prints a line for each that is done."""
    done = len((stdout or "").splitlines())
    return names[min(done, len(names) - 1)]
