"""ONNX classifiers from other tools: parsed and checked as data, and run from their bytes alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeline.export.external.model import InputSpec, Model, Precision, last_line, parse_input_spec
from edgeline.export.graph.contract import FLOATS, is_external, tensors_of
from edgeline.export.parity.layerwise import layers_of, run_tensors
from edgeline.serve.errors import ArtifactError, VerificationError
from edgeline.serve.runtime.session import create_session, load_onnxruntime

DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
INTEGER_OPERATORS = {"ConvInteger", "MatMulInteger", "MatMulNBits", "QGemm"}


def open_onnx(path: Path, data: bytes, size: tuple[int, int] | None = None) -> Model:
    """Open the ONNX file of a classifier.

    Args:
        path: for messages.
        data: its bytes, including all weights.
        size: height and width, for a file whose input size is free.

    Raises:
        VerificationError: it is not ONNX, needs other files or unknown operators, or its input is not an image.
    """
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError cannot be imported by a stable name
        raise VerificationError(
            f"{path} is not an ONNX file: {last_line(error)}; give a .onnx file", code="not_onnx"
        ) from error
    if not model.graph.node:
        raise VerificationError(f"{path} is not an ONNX file: it has no graph; give a .onnx file", code="not_onnx")
    if external := [name for name, tensor in tensors_of(model) if is_external(tensor)]:
        raise VerificationError(
            f"{path}: {len(external)} weights are in another file ({', '.join(external[:3])}); save it as one file: "
            "onnx.save(onnx.load(old), new)",
            code="external_data",
        )
    try:
        session = create_session(data)
    except ArtifactError as error:
        raise VerificationError(f"{path}: {_unknown_operators(model) or error}", code=error.code) from error
    spec = _input_spec_of(path.name, session, size)
    [image] = session.get_inputs()
    return Model(
        name=path.name,
        format="ONNX",
        precision=_precision(model),
        input=spec,
        outputs=_runner(session),
        layers=lambda images: _layers(data, {image.name: images}),
        onnx_bytes=data,
    )


def with_session(model: Model, *, threads: int | None = None, level: str = "all") -> Model:
    """The same ONNX file in a session with another thread count or level of graph optimization."""
    assert model.onnx_bytes is not None
    return replace(model, outputs=_runner(create_session(model.onnx_bytes, threads=threads, level=level)))


def nan_weights(model: Model) -> list[str]:
    """The tensors of an ONNX file that contain NaN. Infinity is allowed: attention masks and clips use it."""
    return [
        name
        for name, tensor in tensors_of(onnx.load_model_from_string(model.onnx_bytes or b""))
        if tensor.data_type in FLOATS and np.isnan(onnx.numpy_helper.to_array(tensor).astype(np.float32)).any()
    ]


def operators_of(model: Model) -> set[str]:
    """The operators of an ONNX file."""
    return {node.op_type for node in onnx.load_model_from_string(model.onnx_bytes or b"").graph.node}


def _runner(session: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    [image] = session.get_inputs()
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = zip(names, session.run(names, {image.name: images}), strict=True)
        return {name: array for name, array in outputs if isinstance(array, np.ndarray)}  # the others are lists of maps

    return run


def _layers(data: bytes, feed: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    named = layers_of(onnx.load_model_from_string(data))
    values = run_tensors(data, [tensor for _, _, tensor in named], feed)
    return {path: [values[t] for other, _, t in named if other == path] for path, _, _ in named}


def _input_spec_of(name: str, session: Any, size: tuple[int, int] | None) -> InputSpec:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        shown = ", ".join(value.name for value in inputs)
        raise VerificationError(
            f"{name} is not an image classifier: it has {len(inputs)} inputs ({shown}), expected one", code="inputs"
        )
    dims = [dim if isinstance(dim, int) and dim > 0 else None for dim in inputs[0].shape]
    return parse_input_spec(name, dims, DTYPES.get(inputs[0].type, inputs[0].type), size)


def _precision(model: onnx.ModelProto) -> Precision:
    operators = {node.op_type for node in model.graph.node}
    if any("Quantize" in o or o.startswith("QLinear") or o in INTEGER_OPERATORS for o in operators):
        return "int8"
    types = {tensor.data_type for _, tensor in tensors_of(model)}
    return "float16" if types & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16} else "float32"


def _unknown_operators(model: onnx.ModelProto) -> str:
    """Name the operators that ONNX Runtime does not have, for a file that it fails to load."""
    own = {(function.domain, function.name) for function in model.functions}
    unknown = sorted(
        {
            f"{node.domain}:{node.op_type}"
            for node in model.graph.node
            if node.domain not in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft") and (node.domain, node.op_type) not in own
        }
    )
    if not unknown:
        return ""
    version = load_onnxruntime().__version__
    return f"it uses operators that ONNX Runtime {version} does not have ({', '.join(unknown)}); export it without them"
