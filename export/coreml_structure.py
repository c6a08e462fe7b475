"""What can be known of a Core ML package where Core ML does not run.

That it takes and gives what the manifest promises, and that its weights are those of the ONNX file, which was run. What Core ML
makes of them, only a device shows, by the golden samples.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from export.environments import environment
from serve.errors import ArtifactError
from serve.preprocess import PreprocessSpec

IOS_16 = 7
"""The newest specification that iOS 16 and macOS 13 read."""
ROUNDING = 2.0**-11
"""Largest relative error of a number in float16; the tiny ones have an absolute one."""
TINY = 2.0**-23
INSPECT_S = 600


def check_structure(
    manifest: Path, reference: bytes, spec: PreprocessSpec, environments: Path
) -> tuple[dict[str, Any], list[str]]:
    """Hold a package against the contract and the reference.

    Args:
        manifest: the package's `Manifest.json`.
        reference: the ONNX file's bytes.
        spec: gives H and W.
        environments: the folder of environments.

    Returns:
        What was found, `weights` being the number of arrays that were compared; and the problems.

    Raises:
        ExportError: the environment cannot be made.
        ArtifactError: coremltools cannot read the package.
    """
    facts, found = _inspect(manifest.parent, environment("coreml", environments))
    model = onnx.load_model_from_string(reference)
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    expected = {
        "kind": "mlProgram",
        "input": ["image", spec.height, spec.width, "RGB"],
        "outputs": {name: [[1, classes], "FLOAT32"] for name in ("probabilities", "logits")},
        "finite": True,
    }
    problems = [f"its {name} is {facts[name]}, expected {wanted}" for name, wanted in expected.items() if facts[name] != wanted]
    if facts["specification"] > IOS_16:
        problems.append(f"it is of specification {facts['specification']}, iOS 16 reads {IOS_16} at most")
    if custom := [name for name in facts["operators"] if name.startswith("custom")]:
        problems.append(f"it needs operators that Core ML does not have: {', '.join(custom)}")
    weights = layer_weights(model)
    problems += compare_weights(weights, found)
    return facts | {"weights": len(weights)}, problems


def layer_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The weights and biases of an ONNX file's convolutions and linear layers, by name."""
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    used = {name for node in layers for name in node.input[1:]}
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in used}


def compare_weights(expected: Mapping[str, np.ndarray], found: Sequence[np.ndarray]) -> list[str]:
    """Say which weights are not among those found, each of which counts once, but for what float16 rounds away.

    The converter names them anew, so they are told apart by shape and numbers; a linear layer's may be transposed.
    """
    left = list(found)
    missing = []
    for name, weight in expected.items():
        position = next((i for i, candidate in enumerate(left) if _is_rounded(candidate, weight)), None)
        if position is None:
            missing.append(name)
        else:
            del left[position]
    if not missing:
        return []
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return [f"weights of the network are not in the package: {', '.join(missing[:5])}{more}; make the variants again"]


def _is_rounded(candidate: np.ndarray, weight: np.ndarray) -> bool:
    if weight.ndim == 2 and candidate.shape == weight.T.shape != weight.shape:
        candidate = candidate.T
    if candidate.shape != weight.shape:
        return False
    difference = np.abs(candidate.astype(np.float64) - weight)
    return bool((difference <= 1.001 * ROUNDING * np.abs(weight) + TINY).all())


def _inspect(package: Path, python: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    script = Path(__file__).with_name("inspect_coreml.py")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.npz")
        command = [str(python), "-I", str(script), str(package), str(weights)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSPECT_S)
        if done.returncode:
            last = (done.stderr.strip() or "it said nothing").splitlines()[-1][:300]
            raise ArtifactError(f"coremltools cannot read the package: {last}", code="model_unloadable")
        with np.load(weights) as arrays:
            return json.loads(done.stdout.splitlines()[-1]), list(arrays.values())
