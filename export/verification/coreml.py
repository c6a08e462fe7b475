"""Check a Core ML package where Core ML does not run.

What is checked: its inputs and outputs are those of the manifest; its weights are those of the ONNX file, which was run; and
its graph, computed by PyTorch in float32, has the network's outputs. What Core ML itself computes shows only on a device, with
the golden samples.

Shapes: N images, H x W the model's input.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgeline.export.converters.convert import script_path
from edgeline.export.converters.environments import environment
from edgeline.export.parity.compare import Outputs
from edgeline.export.parity.similarity import compare_outputs, failed_thresholds
from edgeline.export.verification.context import VerificationContext
from edgeline.export.verification.report import PackageStructure
from edgeline.pipeline.thresholds import Int8Thresholds
from edgeline.serve.errors import ArtifactError

IOS_16 = 7
"""The newest specification that iOS 16 and macOS 13 read."""
ROUNDING = 2.0**-11
"""Largest relative error of a number in float16; the tiny ones have an absolute one."""
TINY = 2.0**-23
FLOAT16_MAX = 65504.0
MAX_IMAGES = 128
"""Images that the graph is computed for; operator by operator one takes some tenths of a second."""
INSPECT_S = 1800


def check_structure(
    manifest: Path, context: VerificationContext, thresholds: Int8Thresholds
) -> tuple[PackageStructure, list[str]]:
    """Compare a package with the graph contract and with the ONNX file.

    Args:
        manifest: the package's `Manifest.json`.
        context: the ONNX file, and PyTorch's outputs.
        thresholds: of the outputs of the package's graph.

    Returns:
        What was read, and the problems.

    Raises:
        ExportError: the environment cannot be made.
        ArtifactError: coremltools cannot read the package.
    """
    images_NHW3 = np.stack(context.pixels[:MAX_IMAGES])
    found, weights, observed = _inspect(manifest.parent, environment("coreml", context.environments), images_NHW3)
    model = onnx.load_model_from_string(context.model)
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    expected = {
        "kind": "mlProgram",
        "input": ["image", context.spec.height, context.spec.width, "RGB"],
        "outputs": {name: [[1, classes], "FLOAT32"] for name in ("probabilities", "logits")},
        "finite": True,
    }
    problems = [f"its {name} is {found[name]}, expected {value}" for name, value in expected.items() if found[name] != value]
    if found["specification"] > IOS_16:
        problems.append(f"its specification is {found['specification']}, iOS 16 reads at most {IOS_16}")
    if custom := [name for name in found["operators"] if name.startswith("custom")]:
        problems.append(f"it needs operators that Core ML does not have: {', '.join(custom)}")
    of_layers = layer_weights(model)
    problems += compare_weights(of_layers, weights)
    similarity = None
    if observed is not None:
        similarity = compare_outputs(context.expected[:MAX_IMAGES], observed)
        problems += [f"computed by PyTorch, {problem}" for problem in failed_thresholds(similarity, None, thresholds)]
        if found["largest"] > FLOAT16_MAX:
            problems.append(f"a number in it reaches {found['largest']:.3g}, the largest float16 is {FLOAT16_MAX:g}")
    return PackageStructure(**found | {"weights": len(of_layers), "similarity": similarity}), problems


def layer_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The weights and biases of an ONNX file's convolutions and linear layers, by name."""
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    used = {name for node in layers for name in node.input[1:]}
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in used}


def compare_weights(expected: Mapping[str, np.ndarray], found: Sequence[np.ndarray]) -> list[str]:
    """Report the weights that are missing from a package, apart from what float16 rounds away.

    The converter renames them, so they are matched by shape and values, each at most once; a linear layer's may be transposed.
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


def _inspect(package: Path, python: Path, images_NHW3: np.ndarray) -> tuple[dict[str, Any], list[np.ndarray], Outputs | None]:
    """What coremltools reads in a package: its properties, the layers' weights, and the outputs of its graph."""
    script = script_path("edgeline.export.converters.inspect_coreml")
    with tempfile.TemporaryDirectory() as folder:
        pixels, found = Path(folder, "pixels.npy"), Path(folder, "found.npz")
        copy = shutil.copytree(package, Path(folder, package.name))  # opening a package rewrites its manifest
        np.save(pixels, images_NHW3)
        command = [str(python), "-I", str(script), str(copy), str(pixels), str(found)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSPECT_S)
        except subprocess.TimeoutExpired as error:
            raise ArtifactError(f"coremltools took over {INSPECT_S} s to read the package", code="model_unloadable") from error
        if done.returncode:
            last = (done.stderr.strip() or "no error message").splitlines()[-1][:300]
            raise ArtifactError(f"coremltools cannot read the package: {last}", code="model_unloadable")
        with np.load(found) as file:
            arrays = dict(file)
    answers = [arrays.pop(name) for name in ("probabilities", "logits") if name in arrays]
    return json.loads(done.stdout.splitlines()[-1]), list(arrays.values()), Outputs(*answers) if answers else None
