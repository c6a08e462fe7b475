"""ONNX classifiers from elsewhere: parsed and checked as data, run from their bytes alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeline.export.external.model import Port, Precision, Program, last_line, port_of
from edgeline.export.graph.contract import FLOATS, is_external, tensors_of
from edgeline.export.parity.layerwise import layers_of, run_tensors
from edgeline.serve.errors import ArtifactError, VerificationError
from edgeline.serve.runtime.session import create_session, load_onnxruntime

DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
INTEGER_OPERATORS = {"ConvInteger", "MatMulInteger", "MatMulNBits", "QGemm"}


def open_onnx(path: Path, data: bytes, size: tuple[int, int] | None = None) -> Program:
    """Open a classifier's ONNX file.

    Args:
        path: what to call it.
        data: its bytes; they must hold everything.
        size: height and width, for a file that leaves them free.

    Raises:
        VerificationError: it is none, needs other files or operators, or takes something else than images.
    """
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError is not importable by a stable name
        raise VerificationError(f"{path} is no ONNX file: {last_line(error)}; give a .onnx file", code="not_onnx") from error
    if not model.graph.node:
        raise VerificationError(f"{path} is no ONNX file: it holds no graph; give a .onnx file", code="not_onnx")
    if elsewhere := [name for name, tensor in tensors_of(model) if is_external(tensor)]:
        raise VerificationError(
            f"{path}: {len(elsewhere)} weights lie in another file ({', '.join(elsewhere[:3])}); save it as one file: "
            "onnx.save(onnx.load(old), new)",
            code="external_data",
        )
    try:
        session = create_session(data)
    except ArtifactError as error:
        raise VerificationError(f"{path}: {_strange_operators(model) or error}", code=error.code) from error
    port = _port_of_onnx(path.name, session, size)
    [taken] = session.get_inputs()
    return Program(
        name=path.name,
        kind="ONNX",
        precision=_precision(model),
        port=port,
        outputs=_runner(session),
        layers=lambda images: _layers(data, {taken.name: images}),
        model=data,
    )


def in_session(program: Program, *, threads: int | None = None, level: str = "all") -> Program:
    """The same ONNX file, run with other threads or at another level of graph optimization."""
    assert program.model is not None
    return replace(program, outputs=_runner(create_session(program.model, threads=threads, level=level)))


def nan_weights(program: Program) -> list[str]:
    """The tensors of an ONNX file that hold NaN. Infinity may be meant: attention masks and clips are made of it."""
    return [
        name
        for name, tensor in tensors_of(onnx.load_model_from_string(program.model or b""))
        if tensor.data_type in FLOATS and np.isnan(onnx.numpy_helper.to_array(tensor).astype(np.float32)).any()
    ]


def operators_of(program: Program) -> set[str]:
    """The operators of an ONNX file."""
    return {node.op_type for node in onnx.load_model_from_string(program.model or b"").graph.node}


def _runner(session: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    [taken] = session.get_inputs()
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found = zip(names, session.run(names, {taken.name: images}), strict=True)
        return {name: array for name, array in found if isinstance(array, np.ndarray)}  # or lists of maps

    return run


def _layers(data: bytes, feed: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    named = layers_of(onnx.load_model_from_string(data))
    found = run_tensors(data, [tensor for _, _, tensor in named], feed)
    return {path: [found[t] for other, _, t in named if other == path] for path, _, _ in named}


def _port_of_onnx(name: str, session: Any, size: tuple[int, int] | None) -> Port:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        shown = ", ".join(value.name for value in inputs)
        raise VerificationError(
            f"{name} is no classifier of images: it takes {len(inputs)} inputs ({shown}), expected one", code="inputs"
        )
    dims = [dim if isinstance(dim, int) and dim > 0 else None for dim in inputs[0].shape]
    return port_of(name, dims, DTYPES.get(inputs[0].type, inputs[0].type), size)


def _precision(model: onnx.ModelProto) -> Precision:
    operators = {node.op_type for node in model.graph.node}
    if any("Quantize" in o or o.startswith("QLinear") or o in INTEGER_OPERATORS for o in operators):
        return "int8"
    kinds = {tensor.data_type for _, tensor in tensors_of(model)}
    return "float16" if kinds & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16} else "float32"


def _strange_operators(model: onnx.ModelProto) -> str:
    """Name the operators that ONNX Runtime cannot know, for a file that it does not load."""
    own = {(function.domain, function.name) for function in model.functions}
    strange = sorted(
        {
            f"{node.domain}:{node.op_type}"
            for node in model.graph.node
            if node.domain not in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft") and (node.domain, node.op_type) not in own
        }
    )
    if not strange:
        return ""
    version = load_onnxruntime().__version__
    return f"it uses operators that ONNX Runtime {version} does not have ({', '.join(strange)}); export it without them"
