"""PyTorch programs from other tools: TorchScript archives and files written by `torch.export.save`.

Both are code. TorchScript runs while it is loaded and can write files (`torch.from_file`); the shapes of an exported program
are expressions that Python evaluates. So nothing is loaded unless the user trusts it. Pickles, which `torch.export.load`
would unpickle in full where its restricted unpickler fails, and compiled machine code are rejected in any case.
"""

import io
import logging
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeline.export.external.model import (
    InputSpec,
    Model,
    ModelFormat,
    Precision,
    archive_entries,
    last_line,
    parse_input_spec,
)
from edgeline.serve.errors import VerificationError

SAVE = "save the program alone with torch.export.save"
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
NEVER_LOADED = {
    "data/aotinductor/": "compiled machine code",
    "data/constants/custom_obj_": "pickled objects",
    "data/constants/opaque_obj_": "pickled objects",
}
"""Parts of an exported program's archive that are rejected."""


def open_torch(path: Path, data: bytes, format: ModelFormat, *, default: InputSpec, trusted: bool) -> Model:
    """Load a PyTorch program.

    Args:
        path: for messages.
        data: the bytes of the file.
        format: `TorchScript` or `torch.export`.
        default: the input of the file it is compared with, for a program that does not declare its own.
        trusted: whether the user allows running its code.

    Raises:
        VerificationError: it is not trusted, cannot be loaded, or its input is not an image.
    """
    if not trusted:
        raise VerificationError(
            f"{path} is a {format} program: loading it executes its code with your privileges; add --trust-program if you "
            "made it or trust its author",
            code="program_not_trusted",
        )
    with _restricted_loading(), torch.no_grad():
        try:
            return _open_script(path, data, default) if format == "TorchScript" else _open_exported(path, data, default)
        except VerificationError:
            raise
        except pickle.UnpicklingError as error:
            raise VerificationError(f"{path} holds pickled objects, which edgeline never loads; {SAVE}") from error
        except Exception as error:  # hostile or outdated archives can fail anywhere in the loader
            raise VerificationError(f"{path} cannot be loaded by PyTorch {torch.__version__}: {last_line(error)}") from error


def _open_script(path: Path, data: bytes, default: InputSpec) -> Model:
    module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    module.eval()
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in module.parameters())
    precision: Precision = "int8" if "quantized::" in str(module.inlined_graph) else "float16" if half else "float32"
    usual = replace(default, layout="NCHW", dtype="float16" if half else "float32")
    for spec in (default, usual, replace(usual, batch=1)):
        model = Model(name=path.name, format="TorchScript", precision=precision, input=spec, outputs=_runner(module))
        try:
            model.outputs(_zeros(spec))
        except Exception as error:  # TorchScript does not declare its input, so it is found by trial
            reason = last_line(error)
        else:
            return model
    raise VerificationError(f"{path} accepts neither {default} nor {usual}: {reason}", code="input_unclear")


def _open_exported(path: Path, data: bytes, default: InputSpec) -> Model:
    names = archive_entries(path, data)
    for start, what in NEVER_LOADED.items():
        if any(name.startswith(start) for name in names):
            raise VerificationError(f"{path} holds {what}, which edgeline never loads; {SAVE}")
    exported = torch.export.load(io.BytesIO(data))
    inputs = [node.meta["val"] for node in exported.graph.nodes if node.name in exported.graph_signature.user_inputs]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        raise VerificationError(f"{path} is not an image classifier: it has {len(inputs)} inputs, expected one", code="inputs")
    dims = [dim if isinstance(dim, int) else None for dim in inputs[0].shape]
    dtype = str(inputs[0].dtype).removeprefix("torch.")
    spec = parse_input_spec(path.name, dims, dtype, None if all(dims[1:]) else (default.height, default.width))
    dtypes = {tensor.dtype for tensor in exported.state_dict.values()}
    precision: Precision = "float16" if dtypes & {torch.float16, torch.bfloat16} else "float32"
    if any("quantize" in str(node.target) for node in exported.graph.nodes):
        precision = "int8"
    module = exported.module()
    return Model(
        name=path.name,
        format="torch.export",
        precision=precision,
        input=spec,
        outputs=_runner(module),
        layers=lambda images: _layers(module, images),
    )


def _runner(module: Any) -> Any:
    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(_named_arrays(module(torch.from_numpy(images)), "output"))

    return run


def _layers(module: torch.fx.GraphModule, images: np.ndarray) -> dict[str, list[np.ndarray]]:
    outputs: dict[str, list[np.ndarray]] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            output = super().run_node(n)
            if isinstance(output, Tensor) and (path := _path(n)):
                outputs.setdefault(path, []).append(output.float().numpy().copy())  # an activation may work in place
            return output

    with torch.no_grad():
        Recorder(module).run(torch.from_numpy(images))
    return outputs


def _path(node: torch.fx.Node) -> str:
    """Path of the layer that a node computes; a batch norm has the path of the layer before it."""
    if node.op != "call_function" or len(node.args) < 2 or not isinstance(node.args[0], torch.fx.Node):
        return ""
    operator, weight = str(node.target), node.args[1]
    if "batch_norm" in operator:
        return _path(node.args[0])
    if not any(name in operator for name in ("conv", "linear")) or not isinstance(weight, torch.fx.Node):
        return ""
    return str(weight.target).removesuffix(".weight") if weight.op == "get_attr" else ""


def _named_arrays(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor in a model's return value, however nested."""
    if isinstance(value, Tensor):
        yield name, (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_arrays(item, str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _named_arrays(item, f"{name}_{index}")


def _zeros(spec: InputSpec) -> np.ndarray:
    sides = (spec.height, spec.width)
    shape = (3, *sides) if spec.layout == "NCHW" else (*sides, 3)
    return np.zeros((spec.batch or 1, *shape), spec.dtype)


@contextmanager
def _restricted_loading() -> Iterator[None]:
    """Force PyTorch's restricted unpickler, and silence its warnings and logs: failures are raised as errors."""
    before, level = os.environ.get(FORCE), logging.root.manager.disable
    os.environ[FORCE] = "1"
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before
