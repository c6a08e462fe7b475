"""Run an artifact's golden samples on another processor, emulated on this machine by qemu's user mode.

    from edgeline.export.emulation.arm64 import prepare_machine        # or avx2
    machine = prepare_machine(Path("artifacts/cache/arm64"))
    for entry in check(Path("artifacts/store/digits"), machine):
        print(entry.variant, entry.passed)

It runs what a device would run: NumPy, Pillow and ONNX Runtime in the versions installed here, and `edgeline.serve`, from the
bytes of an image to the comparison with the golden samples. This matters for int8: float32 results differ between processors
only in the last bits, but the integer kernels of ARM and x86 round differently, and those of x86 without VNNI saturate. Times
under emulation do not predict the speed of a device.
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
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from edgeline.export.device_package import link_device_package
from edgeline.export.records import Record
from edgeline.serve.artifact.reader import open_artifact
from edgeline.serve.errors import EdgelineError, VerificationError

AS_DEVICE, SATURATING = "as-device", "saturating"

PROGRAM = """
import json, sys, time
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
        classifier = Classifier.open(sys.argv[1], variant=name, verify=False)
        loaded = time.perf_counter()
        settings = runtime.session_settings(**runtime.options_for(classifier.variant))
        found |= {"exact_setting": "session.x64quantprecision" in settings}
        self_test = golden.run_self_test(classifier.artifact, classifier.answer, name)
        seconds = {"load_s": loaded - start, "sample_s": (time.perf_counter() - loaded) / self_test.samples}
        figures = {key: getattr(self_test, key) for key in self_test.__slots__}
        found |= {"passed": True, **figures, **{key: round(value, 2) for key, value in seconds.items()}}
    except GoldenError as error:
        found |= {"passed": False, "error": str(error)}
    except EdgelineError as error:
        found |= {"broken": str(error)}
    print(json.dumps(found), flush=True)
"""


class PassedRun(Record):
    """A variant that passed its golden samples on the machine; the figures are those of `serve.artifact.golden.SelfTest`."""

    variant: str
    exact_setting: bool
    """Whether it ran with the setting that keeps int8 products from saturating."""
    passed: Literal[True]
    samples: int
    max_difference: float
    max_logit_difference: float
    max_pixel_difference: float
    tolerance: float
    logit_tolerance: float
    pixel_tolerance: float
    load_s: float
    sample_s: float
    """Seconds per sample, in which the model runs twice."""


class FailedRun(Record):
    """A variant that differs from its golden samples on the machine."""

    variant: str
    exact_setting: bool
    passed: Literal[False]
    error: str


VariantRun = PassedRun | FailedRun
"""By `passed`."""
_RUN: TypeAdapter[VariantRun] = TypeAdapter(Annotated[VariantRun, Field(discriminator="passed")])


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A Python interpreter for another processor, and the emulator that runs it."""

    processor: str
    """Its name, for messages."""
    qemu: str
    """The emulator."""
    cpu: str
    """The emulator's name of the processor."""
    root: Path
    """Where the emulated program searches for files first: `proc/cpuinfo`, which would otherwise be this machine's, and the
    system libraries of another architecture."""
    python: tuple[str, ...]
    """The interpreter, and its options."""
    site: tuple[Path, ...] = ()
    """Folders to import from, if the interpreter does not have its own."""

    def run(
        self, program: str, *arguments: str, path: Sequence[Path] = (), timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program on the machine.

        Args:
            program: its source.
            arguments: its `sys.argv[1:]`.
            path: folders to import from, in addition to the wheels.
            timeout_s: time after which it is killed.

        Returns:
            Its exit status, negative if a signal ended it, and its output.

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
) -> list[VariantRun]:
    """Run the golden samples of an artifact's variants on the machine.

    Args:
        artifact: its folder, or the folder of a name in a store for its stable version.
        machine: from a `prepare_machine`.
        variants: names of those to check; by default all that ONNX Runtime runs. Float32 takes far longer.
        saturating: omit the exact setting that `serve.runtime.session` uses on processors whose int8 products saturate, to
            show its effect.
        timeout_s: for all variants together.

    Returns:
        A `PassedRun` or a `FailedRun` for each variant.

    Raises:
        ArtifactError: the artifact is incomplete, or has no such variant.
        VerificationError: a variant cannot run on the machine, the process crashed or took too long.
    """
    opened, where = open_artifact(artifact), machine.processor
    runnable = [variant.name for variant in opened.manifest.variants if variant.format in ("onnx", "ort")]
    names = runnable if variants is None else [opened.manifest.variant(name).name for name in variants]
    with tempfile.TemporaryDirectory() as folder:
        # The only folder on the path, so that this machine's own packages are not importable.
        link_device_package(Path(folder))
        arguments = [str(opened.folder.resolve()), SATURATING if saturating else AS_DEVICE, *names]
        try:
            done = machine.run(PROGRAM, *arguments, path=[Path(folder)], timeout_s=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise VerificationError(
                f"{_running(names, error.stdout)}: the check on {where} was stopped after {timeout_s:g} s; allow more time, "
                "or check the load of this machine"
            ) from error
    if done.returncode:
        raise VerificationError(
            f"{_running(names, done.stdout)}: the check on {where} ended with {end_of(done)}; the ONNX Runtime "
            f"{version('onnxruntime')} of {where} may not run this file, try another version before deploying it"
        )
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    if broken := [f"{entry['variant']} on {where}: {entry['broken']}" for entry in entries if "broken" in entry]:
        raise VerificationError("; ".join(broken))
    return [_RUN.validate_python(entry) for entry in entries]


def find_tool(target: str, package: str, *names: str) -> str:
    """Find a program by one of its names.

    Raises:
        EdgelineError: it is not installed; the message names the package to install.
    """
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    raise unavailable(target, f"{names[0]} is not installed, and --target {target} needs it: apt-get install {package}")


def unavailable(target: str, message: str) -> EdgelineError:
    """The error for a target that cannot be emulated here; its code is `arm64_unavailable` or `x86_avx2_unavailable`."""
    return EdgelineError(message, code=f"{target.replace('-', '_')}_unavailable")


def write_cpuinfo(root: Path, lines: Mapping[str, str], cores: int) -> None:
    """Write the description of the emulated processors to `root/proc/cpuinfo`."""
    core = "".join(f"{key}\t: {value}\n" for key, value in lines.items())
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/cpuinfo").write_text("\n".join(f"processor\t: {index}\n{core}" for index in range(cores)))


def end_of(done: subprocess.CompletedProcess[str]) -> str:
    """How a process ended, with the last line of its output."""
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
    return f"{how} ({last})" if (last := one_line(done.stderr.strip().rpartition("\n")[2])) else how


def one_line(text: str) -> str:
    """Text on one line, at most 300 characters."""
    return " ".join(text.split())[:300]


def _running(names: list[str], stdout: str | bytes | None) -> str:
    """The variant that was running when the process ended: one line is printed for each finished variant."""
    done = len((stdout or "").splitlines())
    return names[min(done, len(names) - 1)]
