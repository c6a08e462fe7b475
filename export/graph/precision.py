"""Write the reference, or its int8 variant, in another form that computes the same or almost the same.

`halve` stores the weights in half precision; `to_ort` writes ONNX Runtime's own format.
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeline.export.graph.ort_tools import suppress_output
from edgeline.serve.errors import ExportError
from edgeline.serve.runtime.session import load_onnxruntime, session_options

SMALL = 256
"""Tensors with fewer values stay float32: halving them saves nothing."""


def halve(reference: bytes) -> bytes:
    """Store the weights as float16, each with a Cast to float32 after it that the runtime folds as it loads.

    The computation stays float32: CPUs are slower in float16, and a Cast around every layer would keep the runtime from
    fusing them.

    Raises:
        ExportError: a weight is too large for float16.
    """
    model = onnx.load_model_from_string(reference)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALL:
            continue
        value = numpy_helper.to_array(tensor)
        if np.abs(value).max() > np.finfo(np.float16).max:
            raise ExportError(
                f"{tensor.name} has weights over 65504, the largest float16; leave onnx-fp16 out of export.variants"
            )
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], name=f"widen_{name}", to=TensorProto.FLOAT))
    for node in reversed(casts):
        model.graph.node.insert(0, node)
    return bytes(model.SerializeToString(deterministic=True))


def to_ort(model: bytes) -> tuple[bytes, str]:
    """Write a model in ONNX Runtime's format, optimized as far as every processor can run it.

    The layout that only x86 supports is left out: a file with it does not load on ARM.

    Returns:
        The file's bytes, and the list of operators and types for building a runtime with nothing else (build option
        `--include_ops_by_config`).
    """
    ort = load_onnxruntime()
    with tempfile.TemporaryDirectory() as folder, suppress_output():
        from onnxruntime.tools.ort_format_model import create_config_from_models

        options = session_options(threads=1, level="extended")
        options.optimized_model_filepath = str(Path(folder, "model.ort"))
        options.add_session_config_entry("session.save_model_format", "ORT")
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        config = Path(folder, "operators.config")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it does not close the file it reads
            create_config_from_models([Path(folder, "model.ort")], config, enable_type_reduction=True)
        # Its first line names a folder of this machine.
        lines = [line for line in config.read_text().splitlines() if not line.startswith("#")]
        return Path(folder, "model.ort").read_bytes(), "\n".join(lines) + "\n"
