"""Run an artifact's self-test on another release of ONNX Runtime, in a temporary environment.

    python -m edgeline.export.emulation.old_runtime artifacts/store/digits 1.15.0

An artifact must run on `export.min_runtime` and later releases; this checks it. The environment gets that release, a
compatible NumPy, Pillow and `edgeline.serve`, whose own self-test runs there.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from edgeline.export.device_package import link_device_package
from edgeline.export.graph.opsets import release_number
from edgeline.export.records import Record
from edgeline.serve.artifact.reader import open_artifact
from edgeline.serve.errors import VerificationError

FIRST_WITH_NUMPY_2 = (1, 19)
SELF_TEST = """
import json, sys
from edgeline.serve.classifier import Classifier
folder, *names = sys.argv[1:]
for name in names:
    self_test = Classifier.open(folder, variant=name).self_test
    print(json.dumps({"variant": name, "samples": self_test.samples, "max_difference": self_test.max_difference,
                      "max_logit_difference": self_test.max_logit_difference}))
"""


class ReleaseRun(Record):
    """A variant that passed its golden samples on the release; see `serve.artifact.golden.SelfTest`."""

    variant: str
    samples: int
    max_difference: float
    max_logit_difference: float


def check_on_release(artifact: Path, release: str) -> list[ReleaseRun]:
    """Run the golden samples of an artifact's ONNX variants on a release of ONNX Runtime.

    Variants in ORT format are left out: that format runs on the release that wrote it, and later ones.

    Args:
        artifact: its folder, or the folder of a name in a store.
        release: for example `1.15.0`.

    Returns:
        An entry per variant.

    Raises:
        VerificationError: the release cannot be installed, or the self-test fails on it.
    """
    opened = open_artifact(artifact)
    names = [variant.name for variant in opened.manifest.variants if variant.format == "onnx"]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python"))
        numpy = "numpy<2" if release_number(release) < FIRST_WITH_NUMPY_2 else "numpy"
        packages = [f"onnxruntime=={release}", numpy, "pillow"]
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], release, "be installed")
        # A separate path, because packages next to `serve` must not be importable in this environment.
        link_device_package(Path(folder, "alone"))
        code = f"import sys; sys.path.insert(0, {str(Path(folder, 'alone'))!r})\n{SELF_TEST}"
        output = _run([python, "-I", "-c", code, str(opened.folder), *names], release, "reproduce the golden samples")
    return [ReleaseRun.model_validate_json(line) for line in output.splitlines()]


def _run(command: list[str], release: str, what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise VerificationError(f"ONNX Runtime {release} cannot {what}: {last[:300]}", code="runtime_unverified")
    return done.stdout


if __name__ == "__main__":
    for entry in check_on_release(Path(sys.argv[1]), sys.argv[2]):
        print(json.dumps(entry.to_dict()))
