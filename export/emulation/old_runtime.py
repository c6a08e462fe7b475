"""Prove an artifact on another release of ONNX Runtime than the one that is installed, in an environment thrown away after.

    python -m edgeline.export.emulation.old_runtime artifacts/store/digits 1.15.0

An artifact promises to run on `export.min_runtime` and on what comes after it; this keeps the promise honest. The environment
gets that release, a numpy that it was built for, Pillow, and this package's `serve`, whose own self-check runs there.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from edgeline.export.device_package import link_device_package
from edgeline.serve.artifact.reader import open_artifact
from edgeline.serve.errors import VerificationError

OPSETS = {"1.14": 18, "1.15": 19, "1.16": 19, "1.17": 20, "1.18": 21, "1.19": 21, "1.20": 21, "1.21": 22}
"""Newest operator set that each release knows, from the table in ONNX Runtime's documentation of its compatibility."""
FIRST_WITH_NUMPY_2 = (1, 19)
SELF_CHECK = """
import json, sys
from edgeline.serve.classifier import Classifier
folder, *names = sys.argv[1:]
for name in names:
    proof = Classifier.open(folder, variant=name).proof
    print(json.dumps({"variant": name, "samples": proof.samples, "max_difference": proof.max_difference,
                      "max_logit_difference": proof.max_logit_difference}))
"""


def newest_opset(release: str) -> int:
    """The newest operator set that a release runs; of releases newer than the table, what its last one runs."""
    number = _number(release)
    return max(opset for known, opset in OPSETS.items() if _number(known) <= number)


def prove_on(artifact: Path, release: str) -> list[dict[str, Any]]:
    """Have an artifact's ONNX variants answer its golden samples on a release of ONNX Runtime.

    The variants in ORT format are left out: that format belongs to the release that wrote it, and later ones.

    Args:
        artifact: its folder, or a name's folder in a store.
        release: for example `1.15.0`.

    Returns:
        For each variant its name and the largest differences.

    Raises:
        VerificationError: the release cannot be installed, or does not give what was proven.
    """
    opened = open_artifact(artifact)
    names = [variant.name for variant in opened.manifest.variants if variant.format == "onnx"]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python"))
        numpy = "numpy<2" if _number(release) < FIRST_WITH_NUMPY_2 else "numpy"
        packages = [f"onnxruntime=={release}", numpy, "pillow"]
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], release, "be installed")
        # Beside `serve` lie packages that this environment must not find.
        link_device_package(Path(folder, "alone"))
        code = f"import sys; sys.path.insert(0, {str(Path(folder, 'alone'))!r})\n{SELF_CHECK}"
        said = _run([python, "-I", "-c", code, str(opened.folder), *names], release, "give what was proven")
    return [json.loads(line) for line in said.splitlines()]


def _run(command: list[str], release: str, what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise VerificationError(f"ONNX Runtime {release} cannot {what}: {last[:300]}", code="runtime_unproven")
    return done.stdout


def _number(release: str) -> tuple[int, int]:
    major, minor, *_ = release.removeprefix("onnxruntime>=").split(".")
    return int(major), int(minor)


if __name__ == "__main__":
    for line in prove_on(Path(sys.argv[1]), sys.argv[2]):
        print(json.dumps(line))
