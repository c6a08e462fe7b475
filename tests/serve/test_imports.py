"""Imports of a start on a device, including those of dependencies, which the static layer test does not see."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cases import cases

ROOT = Path(__file__).resolve().parents[2]
NEVER = {"torch", "torchvision", "timm", "onnx", "onnxscript", "sklearn", "matplotlib", "prefect", "pydantic", "fastapi"}
HTTP = {"starlette", "httptools", "prometheus_client", "python_multipart", "anyio"}
COMPUTING = {"numpy", "PIL", "onnxruntime"}

LIMITS = {
    "edgeline.serve.errors": NEVER | HTTP | COMPUTING,
    "edgeline.serve.cli.register": NEVER | HTTP | COMPUTING,
    "edgeline.flows.cli.main": NEVER | HTTP | COMPUTING,
    "edgeline.serve.cli.predict": NEVER | HTTP | COMPUTING,
    "edgeline.serve.drift.report": NEVER | HTTP | {"onnxruntime"},
    "edgeline.serve.artifact.manifest": NEVER | HTTP | {"onnxruntime"},
    "edgeline.serve.preprocess": NEVER | HTTP | {"onnxruntime"},
    "edgeline.serve.classifier": NEVER | HTTP | {"onnxruntime"},
    "edgeline.serve.http.app": NEVER | {"onnxruntime", "uvicorn"},
    "edgeline.serve.http.transport.server": NEVER | COMPUTING,
}


QUICK = ("edgeline.flows.cli.main", "edgeline.serve.classifier", "edgeline.serve.http.app")
"""A process each; these three import most of the others."""


@pytest.mark.parametrize(("module", "forbidden"), cases({name: (name, LIMITS[name]) for name in LIMITS}, quick=QUICK))
def test_importing_a_module_pulls_in_nothing_heavy(module: str, forbidden: set[str]) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(json.loads(ended.stdout)) & forbidden == set()


def test_predicting_pulls_in_the_base_install_only(artifact_template: Path) -> None:
    code = (
        "import json, sys; from edgeline.serve.classifier import Classifier; Classifier.open(sys.argv[1]);"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    command = [sys.executable, "-c", code, str(artifact_template)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(json.loads(ended.stdout)) & (NEVER | HTTP) == set()
